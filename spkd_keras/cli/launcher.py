"""Several processes on this machine that share a training, to try out what runs on several machines."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO, Any, NamedTuple

from spkd_keras.cli.console import FAILED
from spkd_keras.experiment import ExperimentError
from spkd_keras.ports import LOOPBACK, free_ports

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 60.0  # seconds for the others to end by themselves when one has
DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux
STARTED = "SPKD_STARTED_AS_WORKER"  # in the environment of those that have been started


class _Worker(NamedTuple):
    """A process, and what it writes to standard error; None for the first, whose it is this one's."""

    process: Any
    errors: IO[str] | Any


def is_worker() -> bool:
    """Whether this process is one of those that `launch` has started: its command says `--workers` as well."""
    return STARTED in os.environ


def start_workers(count: int, strategy: str | None) -> int:
    """Starts this very command so many times, as the workers of one training on this machine.

    Args:
        count: how many.
        strategy: as the user gave it.

    Returns:
        The exit code: the first worker's, or that of the one that failed first.

    Raises:
        ExperimentError: if another strategy is asked for, or the processes are named already.
    """
    if strategy not in (None, "multiworker"):
        raise ExperimentError(f"--workers is for --strategy multiworker. Received: --strategy {strategy}.")
    if "TF_CONFIG" in os.environ:
        raise ExperimentError("--workers starts processes of its own. Unset TF_CONFIG, or leave --workers out.")
    command = [sys.executable, "-m", "spkd_keras", *sys.argv[1:]]
    return launch(command if strategy else [*command, "--strategy", "multiworker"], count)


def launch(command: Sequence[str], count: int) -> int:
    """Runs a command as the workers of one training on this machine, with `TF_CONFIG` for each.

    The first has this process' standard output and error. A signal is passed on to all once. When one fails, the others
    get a minute to end by themselves.

    Returns:
        The exit code: the first worker's, or that of the one that failed first; 128 + the signal's number after one.
    """
    addresses = [f"{LOOPBACK}:{port}" for port in free_ports(count)]
    workers = [_start(command, addresses, index) for index in range(count)]
    received: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        del frame
        received.append(number)
        for worker in workers:
            worker.process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        failed = _wait(workers)
        if received:
            return 128 + received[0]
        if failed is None:
            return 0
        _tell(workers, failed)
        code = workers[failed].process.returncode
        return code if code > 0 else FAILED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for worker in workers[1:]:
            worker.errors.close()


def _start(command: Sequence[str], addresses: list[str], index: int) -> _Worker:
    config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    errors = None if index == 0 else tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - read at the end
    process = subprocess.Popen(
        command,
        env=os.environ | {"TF_CONFIG": json.dumps(config), STARTED: "1"},
        stdout=None if index == 0 else subprocess.DEVNULL,
        stderr=errors,
        start_new_session=True,  # a Ctrl-C is for this process, which passes it on
        preexec_fn=_die_with_parent,
    )
    return _Worker(process, errors)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGTERM)


def _wait(workers: list[_Worker]) -> int | None:
    """Waits for all; returns which failed first, or None."""
    failed, since = None, 0.0
    while None in [worker.process.poll() for worker in workers]:  # each is asked: else its end is not seen
        bad = [index for index, worker in enumerate(workers) if worker.process.returncode]
        if bad and failed is None:
            failed, since = bad[0], time.monotonic()
        if failed is not None and time.monotonic() - since > GRACE:
            for worker in workers:
                worker.process.kill()
        time.sleep(0.05)
    bad = [index for index, worker in enumerate(workers) if worker.process.returncode]
    return bad[0] if failed is None and bad else failed


def _tell(workers: list[_Worker], failed: int) -> None:
    """Says why a worker failed: one whose standard error nobody sees, or that had no time to say it."""
    process, errors = workers[failed]
    if errors is None and process.returncode > 0:
        return  # it said so itself
    said = _lines(errors) if errors else []
    ending = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
    print(f"spkd: worker {failed} ended with {ending}.{' It said: ' + said[-1] if said else ''}", file=sys.stderr)


def _lines(errors: IO[str]) -> list[str]:
    errors.seek(0)
    return errors.read().strip().splitlines()
