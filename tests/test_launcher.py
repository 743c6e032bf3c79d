"""Processes that `--workers` starts on this machine, and those that Ray Train starts."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from test_cli import call
from test_workers import EXPERIMENT, heed_interruptions
from tiny_experiment import untrained_teacher

from spkd_keras.cli import launcher, runs
from spkd_keras.experiment import ExperimentError

HERE = pathlib.Path(__file__).parent


RAY = """
class ScalingConfig:
    def __init__(self, num_workers, use_gpu):
        assert (num_workers, use_gpu) == (2, False)


class RunConfig:
    def __init__(self, storage_path):
        self.storage_path = storage_path


def report(metrics):
    assert metrics == {"replicas": 2}
"""


RAY_TENSORFLOW = """
class TensorflowTrainer:
    def __init__(self, work, train_loop_config, scaling_config, run_config):
        self.fit = lambda: work(train_loop_config)
"""


@pytest.fixture
def in_ray(tmp_path, monkeypatch):
    """What of Ray Train the script uses; its workers are those of the launcher."""
    package = tmp_path / "ray" / "train"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()  # which comes before a Ray that is installed
    (package / "__init__.py").write_text(RAY)
    (package / "tensorflow.py").write_text(RAY_TENSORFLOW)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return [sys.executable, str(HERE.parent / "experiments" / "ray_train.py"), str(tmp_path / "shared.yaml")]


@pytest.mark.slow
def test_an_experiment_on_the_workers_of_ray_train(in_ray, tmp_path):
    (tmp_path / "shared.yaml").write_text(EXPERIMENT.format(teacher=untrained_teacher(tmp_path)))
    assert launcher.launch([*in_ray, "--out", str(tmp_path / "runs"), "--set", "schedule.epochs=1"], 2) == 0
    summary = json.loads((tmp_path / "runs" / "shared" / "sp-seed0" / "summary.json").read_text())
    assert (summary["epochs"], summary["workers"]) == (1, 2)


def test_ray_train_is_not_started_for_a_file_that_cannot_run(in_ray, tmp_path):
    (tmp_path / "shared.yaml").write_text("name: shared\nstudents: {}\n")
    done = subprocess.run(in_ray, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "students" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_what_workers_are_started_with(no_cluster):
    started = []
    no_cluster.setattr(launcher, "launch", lambda *given: started.append(given) or 3)
    given = ["run", "a.yaml", "--workers", "2"]
    no_cluster.setattr(sys, "argv", ["spkd", *given])
    assert launcher.start_workers(2, None) == 3
    no_cluster.setattr(sys, "argv", ["spkd", *given, "--strategy", "multiworker"])
    assert launcher.start_workers(2, "multiworker") == 3
    assert started == [([sys.executable, "-m", "spkd_keras", *given, "--strategy", "multiworker"], 2)] * 2
    with pytest.raises(ExperimentError, match="Received: --strategy mirrored"):
        launcher.start_workers(2, "mirrored")
    no_cluster.setenv("TF_CONFIG", "{}")
    with pytest.raises(ExperimentError, match="Unset TF_CONFIG"):
        launcher.start_workers(2, None)


def test_a_worker_starts_no_others(no_cluster, tmp_path):
    asks = "import sys; from spkd_keras.cli.launcher import is_worker; sys.exit(0 if is_worker() else 3)"
    assert not launcher.is_worker()
    assert launcher.launch([sys.executable, "-c", asks], 2) == 0
    started = []
    no_cluster.setattr(runs, "start_workers", lambda *given: started.append(given) or 3)
    (tmp_path / "shared.yaml").write_text(EXPERIMENT.format(teacher="teacher.keras"))
    command = ("run", tmp_path / "shared.yaml", "--workers", "2", "--devices", "2")
    assert call(*command).exit_code == 3
    no_cluster.setenv(launcher.STARTED, "1")
    assert "--devices needs --strategy" in call(*command).stderr  # what comes next
    assert started == [(2, None)]


LAST = "import json, os, sys, time; index = json.loads(os.environ['TF_CONFIG'])['task']['index']; "


@pytest.mark.slow
def test_ctrl_c_of_a_terminal_reaches_each_once(tmp_path):
    """The terminal sends it to the whole group of the launcher, which passes it on."""
    code = (
        f"import os, pathlib, signal, time; file = pathlib.Path({str(tmp_path)!r}, str(os.getpid())); "
        "signal.signal(signal.SIGINT, lambda *_: file.write_text(file.read_text() + 'x')); file.touch(); time.sleep(3)"
    )
    command = f"[sys.executable, '-c', {code!r}]"
    launch = f"import sys; from spkd_keras.cli.launcher import launch; sys.exit(launch({command}, 2))"
    process = subprocess.Popen([sys.executable, "-c", launch], start_new_session=True, preexec_fn=heed_interruptions)
    end = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130
    assert [file.read_text() for file in tmp_path.iterdir()] == ["x", "x"]


def test_one_that_does_not_end_is_ended_and_the_first_code_is_told(monkeypatch):
    monkeypatch.setattr(launcher, "GRACE", 0.2)
    begun = time.monotonic()
    code = LAST + "sys.exit(2) if index else time.sleep(600)"
    assert launcher.launch([sys.executable, "-c", code], 2) == 2
    assert time.monotonic() - begun < 60


def test_the_first_failure_is_told(capfd):
    code = "import json, os, sys; sys.exit('so it is' if json.loads(os.environ['TF_CONFIG'])['task']['index'] else 0)"
    assert launcher.launch([sys.executable, "-c", code], 2) == 1
    assert "worker 1 ended with exit code 1. It said: so it is" in capfd.readouterr().err


def test_a_first_worker_that_is_killed_is_told(capfd):
    """As the system does where memory is short."""
    code = f"import os, signal; {LAST}index or os.kill(os.getpid(), signal.SIGKILL)"
    assert launcher.launch([sys.executable, "-c", code], 2) == 1
    assert capfd.readouterr().err == "spkd: worker 0 ended with signal 9.\n"


def test_a_signal_ends_all(tmp_path):
    code = f"import os, pathlib, time; pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch(); time.sleep(60)"
    launch = (
        f"import sys; from spkd_keras.cli.launcher import launch; sys.exit(launch([sys.executable, '-c', {code!r}], 2))"
    )
    process = subprocess.Popen([sys.executable, "-c", launch])
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.02)
    process.terminate()
    assert process.wait() == 128 + signal.SIGTERM
    for file in tmp_path.iterdir():
        assert not pathlib.Path("/proc", file.name).exists()
