"""Ctrl-C before a command runs, and what TensorFlow says meanwhile."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from spkd_keras import cli, training
from spkd_keras.cli import console
from spkd_keras.experiment import ExperimentError

# Stands for `spkd` or another program, which is interrupted while it imports the command line.
PROGRAM = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
sys.argv = [sys.argv[1], "--version"]
signal.signal(signal.SIGINT, {handler})
from spkd_keras.cli import main
assert signal.getsignal(signal.SIGINT) is {handler}
main()
"""


def interrupted(program, handler="signal.default_int_handler"):
    """What becomes of a program that imports the command line when Ctrl-C comes at once."""
    # The package of this process, whether it is installed or that of the folder where the tests run.
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    command = [sys.executable, "-P", "-c", PROGRAM.format(handler=handler), program]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_an_interruption_of_the_first_imports():
    done = interrupted("/usr/bin/spkd")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "spkd: Interrupted.\n")
    assert interrupted(cli.__file__.replace("cli/__init__", "__main__")).returncode == 130, "python -m spkd_keras"
    ignoring = interrupted("/usr/bin/spkd", "signal.SIG_IGN")  # as of a shell's background job
    assert (ignoring.returncode, ignoring.stderr) == (0, "")
    assert "KeyboardInterrupt" in interrupted("another program").stderr


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (KeyboardInterrupt(), ""),
        (training.Interrupted(signal.SIGTERM), ""),
        (ExperimentError("wrong"), ""),
        (training.RunsFailedError("runs", {"sp-seed0": "it broke"}), ""),
        (RuntimeError("out of luck"), "What C++ code says."),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_held_back_is_shown_where_it_may_explain_an_error(capfd, error, shown):
    def fail():
        with console.quiet_standard_error():
            os.write(2, b"What C++ code says.")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert capfd.readouterr().err == shown
