"""Several processes that share a training: one answer, a run's folder of the first alone, and going on after a kill."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import tensorflow as tf
from test_cli import call
from tiny_experiment import assert_same_run, untrained_teacher

from spkd_keras import training
from spkd_keras.cli import launcher
from spkd_keras.experiment import Data, ExperimentError
from spkd_keras.ports import free_ports
from spkd_keras.training import Devices, devices_for
from spkd_keras.training.devices import _find_cluster, _use

HERE = pathlib.Path(__file__).parent
EXPERIMENT = """
name: shared
data: {{name: digits, batch_size: 32, validation: 0.1, train_fraction: 0.3}}
teacher: {{path: {teacher}}}
student: {{model: wide_resnet, depth: 10, width: 0.25}}
schedule: {{epochs: 2, learning_rate: 0.05}}
methods: {{sp: [{{loss: similarity_preserving, weight: 100.0}}]}}
checkpoints: {{steps: 2}}
"""
WAITING = "Waiting for the 2 processes that TF_CONFIG names. Ctrl-C ends this one."


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    file = tmp_path_factory.mktemp("workers") / "facts.json"
    assert launcher.launch([sys.executable, str(HERE / "worker_facts.py"), str(file)], 2) == 0
    return json.loads(file.read_text())


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one_device(facts):
    assert facts["replicas"] == 2
    for data in ("arrays", "dataset", "weighted_dataset"):  # of 48 images, and of 53 whose last batch is 3 and 2
        assert facts[data]["weights"] < 1e-5
        assert facts[data]["logs"] < 1e-5
        assert facts[data]["same_accuracy"]
    assert max(facts["predictions"]) < 1e-5  # of an array and of a dataset of files


@pytest.mark.slow
def test_arrays_come_in_the_order_of_the_first_process(facts):
    assert facts["own_seeds"] == [1]
    for name in ("agreed_seeds", "first_batches"):
        both, summed = facts[name]
        assert both == summed, name


@pytest.mark.slow
def test_what_the_first_process_tells_the_others(facts):
    assert facts["exchanged"] == [2, 2, 2, 2]


@pytest.mark.slow
def test_keras_still_needs_the_fixes_between_workers(facts):
    """Once one of these is None, its fix in `ReplicatedTrainer` can go."""
    assert "PerReplica" in facts["plain_building"]
    assert "Invalid reduction dimension 0" in facts["plain_logs"]


# --- spkd run --------------------------------------------------------------------------------------------------------


def command(folder, out):
    return [sys.executable, "-m", "spkd_keras", "run", str(folder / "shared.yaml"), "--out", str(out), "--no-check"]


def start(folder, outs):
    """Two processes as on two machines, with a folder each."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    started = []
    for index, out in enumerate(outs):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = os.environ | {"TF_CONFIG": json.dumps(config)}
        with (folder / f"errors-{index}.txt").open("w") as errors:
            arguments = [*command(folder, out), "--strategy", "multiworker"]
            started.append(subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=errors))
    return started


@pytest.mark.slow
def test_a_killed_worker_and_a_new_start_give_the_same_run(tmp_path):
    (tmp_path / "shared.yaml").write_text(EXPERIMENT.format(teacher=untrained_teacher(tmp_path)))
    outs = [tmp_path / "first", tmp_path / "second"]
    workers = start(tmp_path, outs)
    backup = outs[0] / "shared" / "sp-seed0" / "backup"
    while all(worker.poll() is None for worker in workers):
        if any(re.match(r"epoch-1-batch-[1-9]", file.name) for file in backup.glob("*.npz")):
            workers[1].kill()  # in the middle of the second epoch
            break
        time.sleep(0.01)
    assert [worker.wait() for worker in workers] == [1, -signal.SIGKILL]
    said = (tmp_path / "errors-0.txt").read_text()
    assert "Another of the 2 processes of this training ended or cannot be reached" in said.replace("\n", " ")
    assert list(backup.glob("epoch-1-batch-*.npz"))
    # Both anew, by the launcher; and the same run without a kill.
    assert launcher.launch([*command(tmp_path, outs[0]), "--strategy", "multiworker"], 2) == 0
    assert not outs[1].exists()  # only the first writes
    whole = tmp_path / "whole"
    # With the check, which the first does alone, and which says that nobody trained this teacher.
    checked = [part.replace("--no-check", "--force") for part in command(tmp_path, whole)]
    assert launcher.launch([*checked, "--strategy", "multiworker"], 2) == 0
    runs = [out / "shared" / "sp-seed0" for out in (outs[0], whole)]
    assert_same_run(*runs)
    summary = json.loads((runs[0] / "summary.json").read_text())
    assert (summary["strategy"], summary["replicas"], summary["workers"]) == ("multiworker", 2, 2)
    assert summary["gathered_bytes_a_step"] == 32 * (2 * 2 * 32 + 3 * 2 * 2 * 16) * 4  # stage3 of both


def test_so_many_gpus_are_used(monkeypatch):
    seen = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["one", "two"] if kind == "GPU" else [])
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *given: seen.append(given))
    assert [_use(count) for count in (None, 1, 2)] == ["GPU"] * 3
    assert seen == [(["one", "two"], "GPU"), (["one"], "GPU"), (["one", "two"], "GPU")]
    with pytest.raises(ExperimentError, match=r"--devices must be at most 2, .* Received: 3\."):
        _use(3)


# --- what is refused, and how workers are found ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, r"needs the environment variable TF_CONFIG.*Received: neither.*--workers 2"),
        ("{", r"needs the environment variable TF_CONFIG.*Received: \{"),
        ('{"cluster": {"worker": ["a:1"]}}', r"Received: .*KeyError: 'task'"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "workers alone, and this one"),
        ('{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}', "workers alone"),
    ],
)
def test_a_cluster_that_is_none(no_cluster, config, said):
    if config is not None:
        no_cluster.setenv("TF_CONFIG", config)
    with pytest.raises(ExperimentError, match=said):
        devices_for("multiworker")


def two_workers():
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    return json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": 0}})


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN])
def test_who_waits_for_other_processes_says_so_and_can_be_ended(no_cluster, tmp_path, before):
    handlers = []

    def wait(*_):
        handlers.append(signal.getsignal(signal.SIGINT))
        raise ExperimentError("Enough.")

    no_cluster.setattr(training, "devices_for", wait)
    (tmp_path / "shared.yaml").write_text(EXPERIMENT.format(teacher="teacher.keras"))
    found = signal.signal(signal.SIGINT, before)
    try:
        # One that waits for nobody has nothing to say.
        assert call("run", tmp_path / "shared.yaml").stderr == "spkd: Enough.\n"
        no_cluster.setenv("TF_CONFIG", two_workers())
        result = call("run", tmp_path / "shared.yaml", "--strategy", "multiworker")
        assert (result.exit_code, result.stderr) == (2, f"{WAITING}\nspkd: Enough.\n")
        assert signal.getsignal(signal.SIGINT) == before
    finally:
        signal.signal(signal.SIGINT, found)
    assert handlers == [before, before if before == signal.SIG_IGN else signal.SIG_DFL]


@pytest.mark.slow
def test_ctrl_c_ends_one_that_waits(no_cluster, tmp_path):
    """When SIGTERM ends it too, TensorFlow no longer takes that over, and a thread that waits may do better."""
    no_cluster.setenv("TF_CONFIG", two_workers())
    (tmp_path / "shared.yaml").write_text(EXPERIMENT.format(teacher="teacher.keras"))
    arguments = [*command(tmp_path, tmp_path / "runs"), "--strategy", "multiworker"]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interruptions) as process:
        try:
            assert WAITING in process.stderr.readline()
            status = pathlib.Path(f"/proc/{process.pid}/status")
            while not caught(status.read_text()) & 1 << signal.SIGTERM - 1:  # TensorFlow waits from here on
                time.sleep(0.1)
                assert process.poll() is None
            process.terminate()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(2)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == -signal.SIGINT
        finally:
            process.kill()
    assert not (tmp_path / "runs").exists()


def heed_interruptions():
    """The tests may run in the background of a shell, which has SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def caught(status):
    """The signals that a process handles, as bits."""
    return int(re.findall(r"SigCgt:\s*(\w+)", status)[0], 16)


@pytest.mark.slow
@pytest.mark.parametrize("address", ["busy", "nowhere"])
def test_an_address_that_cannot_be_had(no_cluster, tmp_path, address):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        if address == "busy":
            address = f"127.0.0.1:{taken.getsockname()[1]}"
        workers = [address, f"127.0.0.1:{free_ports(1)[0]}"]
        no_cluster.setenv(
            "TF_CONFIG", json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": 0}})
        )
        (tmp_path / "shared.yaml").write_text(EXPERIMENT.format(teacher=untrained_teacher(tmp_path)))
        arguments = [*command(tmp_path, tmp_path / "runs"), "--strategy", "multiworker"]
        done = subprocess.run(arguments, capture_output=True, text=True)
    said = " ".join(done.stderr.split())
    assert done.returncode == 2
    assert said.startswith(
        f"{WAITING} spkd: TF_CONFIG must give this process an address HOST:PORT of this machine that is free."
    )
    assert f"Received: {address} (" in said


def test_slurm_names_the_workers(no_cluster):
    """Two nodes with two tasks each; this is the third task."""
    variables = {
        "SLURM_PROCID": "2",
        "SLURM_JOB_ID": "10042",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_NODELIST": "node[1-2]",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    }
    for name, value in variables.items():
        no_cluster.setenv(name, value)
    no_cluster.setenv("TF_CONFIG", "")  # so that what is written goes with the test
    no_cluster.delenv("TF_CONFIG")
    _find_cluster()
    assert json.loads(os.environ["TF_CONFIG"]) == {
        "cluster": {"worker": ["node1:20042", "node1:20043", "node2:20042", "node2:20043"]},
        "task": {"type": "worker", "index": 2},
    }


def test_an_unknown_strategy():
    with pytest.raises(ExperimentError, match=r"--strategy must be one of mirrored, multiworker. Received: horovod."):
        devices_for("horovod")


def test_logical_devices_of_several_processes(no_cluster):
    with pytest.raises(ExperimentError, match=r"--devices is for GPUs with --strategy multiworker. Received: 2"):
        devices_for("multiworker", 2)


@pytest.mark.parametrize(
    ("size", "images", "said"),
    [
        (30, 300, r"data.batch_size must be a multiple of 4.*Received: 30."),
        (32, 99, r"must have an image for each of the 4 replicas. Received: 3, of 99 training images in batches of 32"),
        (32, 100, None),
        (32, 96, None),
    ],
)
def test_batches_that_cannot_be_shared_out(size, images, said):
    devices = Devices()
    devices.replicas = 4
    if said is None:
        devices.check(Data(name="digits", batch_size=size), images)
    else:
        with pytest.raises(ExperimentError, match=said):
            devices.check(Data(name="digits", batch_size=size), images)
