"""Runs as processes: killed for good, side by side, kept apart by a lock, and without room on the disk."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import filelock
import pytest
from kill_runs import compare
from tiny_experiment import Listener, assert_same_run, content, tiny

from spkd_keras.experiment import ExperimentError
from spkd_keras.storage import BusyError
from spkd_keras.training import RunsFailedError, StorageError, checkpoints, run_experiment
from spkd_keras.training.folder import RunFolder
from spkd_keras.training.interruption import Interruption
from spkd_keras.training.parallel import run_in_processes
from spkd_keras.training.processes import Worker

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("case", "kills"), [("dropout", 3), ("ema", 2)])
def test_killed_at_random_moments(tmp_path, case, kills):
    differing, done = compare(case, kills, seed=1, folder=tmp_path)
    assert (differing, done) == ([], kills)


# --- side by side ----------------------------------------------------------------------------------------------------


def two_seeds(folder):
    return tiny(folder, "seeds=[0, 1]", "schedule.epochs=1").select(["student", "sp"])


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_by_one")
    return run_experiment(two_seeds(folder), folder / "runs")


def test_side_by_side_gives_the_same_runs(one_by_one, tmp_path):
    listener = Listener()
    root = run_experiment(two_seeds(tmp_path), tmp_path / "runs", listener, jobs=2)
    runs = sorted(path.name for path in one_by_one.iterdir())
    assert sorted(path.name for path in root.iterdir()) == runs
    for name in runs:
        assert_same_run(one_by_one / name, root / name)
    told = [(kind, run) for kind, run, *_ in listener.told if kind in ("started", "completed")]
    assert sorted(told) == sorted([(kind, run) for kind in ("started", "completed") for run in runs])
    begun = [run for kind, run in told[2:] if kind == "started"]  # behind the teacher
    assert set(begun[:2]) == {"student-seed0", "sp-seed0"}


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_fails_does_not_stop_the_others(tmp_path, jobs):
    changes = ["methods.broken=[{loss: similarity_preserving, weight: 1.0e+35}]", "schedule.epochs=1"]
    experiment = tiny(tmp_path, *changes).select(["broken", "student", "sp"])
    listener = Listener()
    with pytest.raises(RunsFailedError) as caught:
        run_experiment(experiment, tmp_path / "runs", listener, jobs=jobs)
    assert list(caught.value.reasons) == ["broken-seed0"]
    assert "The loss is not finite in epoch 1, batch 1: gradient" in caught.value.reasons["broken-seed0"]
    assert list(listener.of("failed")) == ["broken-seed0"]
    assert set(listener.of("completed")) == {"teacher-seed0", "student-seed0", "sp-seed0"}
    # The same command does only what is missing, and fails again.
    again = Listener()
    with pytest.raises(RunsFailedError):
        run_experiment(experiment, tmp_path / "runs", again)
    assert again.of("started") == ["broken-seed0"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_another_process_is_at_does_not_stop_the_others(tmp_path, monkeypatch, jobs):
    experiment = tiny(tmp_path, "seeds=[0, 1, 2]", "schedule.epochs=1", "teacher=", "methods={student: []}")
    monkeypatch.setattr(RunFolder, "check_free", lambda run: None)  # it began behind that
    root = tmp_path / "runs" / "tiny"
    taken = RunFolder(root, experiment.single("student", 1))
    with taken.locked(), pytest.raises(BusyError, match=r"student-seed1 is being run by another process. Wait"):
        run_experiment(experiment, tmp_path / "runs", jobs=jobs)
    done = sorted(summary.parent.name for summary in root.rglob("summary.json"))
    assert done == ["student-seed0", "student-seed2"]


def test_a_process_that_is_killed_does_not_stop_the_others(tmp_path):
    class Killer(Listener):
        def started(self, run, epochs):
            super().started(run, epochs)
            if run == "student-seed0":
                subprocess.run(["pkill", "-KILL", "-P", str(os.getpid()), "-o", "-f", "spawn_main"], check=True)

    listener = Killer()
    experiment = tiny(tmp_path, "schedule.epochs=1", "teacher=", "seeds=[0, 1, 2]", "methods={student: []}")
    with pytest.raises(RunsFailedError) as caught:
        run_experiment(experiment, tmp_path / "runs", listener, jobs=2)
    ((name, reason),) = caught.value.reasons.items()
    said = "its process was ended by SIGKILL, perhaps for want of memory. The same command continues."
    assert reason.startswith(said)
    assert {*listener.of("completed"), name} == {"student-seed0", "student-seed1", "student-seed2"}
    run_experiment(experiment, tmp_path / "runs")


COMMAND = [sys.executable, "-m", "spkd_keras", "run", "tiny.yaml", "--no-check"]


def spkd_run(folder, *options):
    return subprocess.Popen([*COMMAND, *options], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(pattern, folder, process, count=1):
    """Waits until files are there; the process must still be at work."""
    while len(list(folder.glob(pattern))) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def is_free(folder, run):
    """Whether no process is left that holds a run's lock."""
    with filelock.FileLock(folder / "runs" / "tiny" / run / ".lock").acquire(timeout=30):
        return True


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_sigterm_checkpoints_and_the_same_command_goes_on(one_by_one, tmp_path, jobs):
    two_seeds(tmp_path)
    long = ["--methods", "student,sp", "--seeds", "0,1", "--set", "schedule.epochs=500", "--jobs", jobs]
    process = spkd_run(tmp_path, *long)
    wait_for("runs/tiny/s*-seed0/backup/epoch-*", tmp_path, process, count=2 * int(jobs) - 1)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, "")
    assert errors.splitlines()[-1] == "spkd: Interrupted by SIGTERM. The same command continues where it stopped."
    assert "Traceback" not in errors
    assert "failed" not in errors
    left = {file.parent.parent.name for file in tmp_path.glob("runs/tiny/*/backup/epoch-*")}
    assert left == ({"student-seed0"} if jobs == "1" else {"student-seed0", "sp-seed0"})
    assert all(is_free(tmp_path, run) for run in left)


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    tiny(tmp_path)
    options = ["--set", "teacher=", "--set", "methods={student: []}", "--set", "schedule.epochs=500"]
    first = spkd_run(tmp_path, *options)
    wait_for("runs/tiny/student-seed0/backup/epoch-*", tmp_path, first)
    second = spkd_run(tmp_path, *options)
    out, errors = second.communicate(timeout=120)
    assert (second.returncode, out) == (2, "")
    (line,) = errors.splitlines()
    assert line.startswith("spkd: runs/tiny/student-seed0 is being run by another process.")
    first.kill()
    first.communicate()
    assert is_free(tmp_path, "student-seed0")


def test_runs_end_with_their_parent(tmp_path):
    two_seeds(tmp_path)
    changes = ["teacher=", "methods={student: []}", "schedule.epochs=500"]
    overrides = [part for change in changes for part in ("--set", change)]
    process = spkd_run(tmp_path, "--seeds", "0,1", "--jobs", "2", *overrides)
    wait_for("runs/tiny/*/backup/epoch-*", tmp_path, process, count=3)
    process.kill()
    process.communicate()
    assert is_free(tmp_path, "student-seed0")
    assert is_free(tmp_path, "student-seed1")


def wait_until(true):
    """For a minute at most, so that nothing is left behind."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def keeps_its_state(folder, observer, interruption):
    """The job of a process that takes a while to write its state."""
    with interruption.deferred():
        observer.noticed("begun")
        wait_until(lambda: interruption.received is not None)
        observer.noticed("told")
        time.sleep(0.6)
        (folder / "state").touch()


def test_a_second_signal_waits_for_the_state(tmp_path):
    worker = Worker("one", keeps_its_state, tmp_path)
    assert worker.receive() == ("noticed", ("begun",))
    worker.terminate()
    time.sleep(0.2)
    worker.terminate()
    assert worker.end()[0] == 143
    assert (tmp_path / "state").exists()


PARENT = """
import pathlib, sys, time
from test_training_processes import Worker, keeps_its_state

if __name__ == "__main__":
    worker = Worker("one", keeps_its_state, pathlib.Path(sys.argv[1]))
    print(worker.receive()[0], flush=True)
    time.sleep(600)
"""


def test_a_process_writes_its_state_when_its_parent_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": os.path.dirname(__file__)}
    command = [sys.executable, str(tmp_path / "parent.py"), str(tmp_path)]
    parent = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout.readline() == "noticed\n"
    finally:
        parent.kill()
        parent.communicate()
    wait_until((tmp_path / "state").exists)


def test_in_another_thread_signals_are_left_alone():
    before, entered = signal.getsignal(signal.SIGTERM), []

    def enter():
        with Interruption().listening():
            entered.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [before]


# --- the disk --------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    experiment = tiny(tmp_path, "teacher=", "methods={student: []}", "schedule.epochs=3")
    whole = run_experiment(experiment, tmp_path / "whole") / "student-seed0"
    savez, calls = checkpoints.np.savez, []

    def full(file, **arrays):
        calls.append(file)
        if len(calls) == 2:
            file.write(b"a part")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        savez(file, **arrays)

    run = tmp_path / "runs" / "tiny" / "student-seed0"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.np, "savez", full)
        with pytest.raises(StorageError) as caught:
            run_experiment(experiment, tmp_path / "runs")
    assert len(str(caught.value).splitlines()) == 1
    assert "epoch-2-batch-0.npz cannot be written (No space left on device). What was there before is intact." in str(
        caught.value
    )
    assert [file.name for file in (run / "backup").iterdir()] == ["epoch-1-batch-0.npz"]
    run_experiment(experiment, tmp_path / "runs")
    assert_same_run(whole, run)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1.2 MB, where this process may mount one."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "none", place], capture_output=True).returncode:
        pytest.skip("this process may not mount a file system")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_really_full(small_disk, tmp_path):
    experiment = tiny(tmp_path, "teacher=", "methods={student: []}", "schedule.epochs=3", "student.width=1")
    with pytest.raises(StorageError, match="No space left on device") as caught:
        run_experiment(experiment, small_disk)
    assert len(str(caught.value).splitlines()) == 1
    files = {file.name for file in (small_disk / "tiny" / "student-seed0").rglob("*") if file.is_file()}
    assert not [name for name in files if name.startswith(".partial")]
    assert "student.keras" not in files
    assert "epoch-1-batch-0.npz" in files
    # With room it goes on.
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    root = run_experiment(experiment, small_disk)
    assert_same_run(root / "student-seed0", run_experiment(experiment, tmp_path / "whole") / "student-seed0")


def fills_the_disk(folder, observer, interruption):
    """The job of a run that meets what the next one would meet too."""
    observer.started(folder.path.name, 1)
    if folder.seed:
        with interruption.deferred():
            (folder.path.parent / "second").touch()
            wait_until(lambda: interruption.received is not None)
            (folder.path.parent / "state").touch()
    wait_until((folder.path.parent / "second").exists)
    raise StorageError("The disk is full.")


def test_what_all_runs_would_meet_ends_them_and_each_writes_its_state(tmp_path):
    runs = [RunFolder(tmp_path, two_seeds(tmp_path).single("student", seed)) for seed in (0, 1, 2)]
    listener, interruption = Listener(), Interruption()
    with pytest.raises(StorageError) as caught:
        run_in_processes(runs, fills_the_disk, 2, listener, interruption)
    assert str(caught.value) == "The disk is full."
    assert "in fills_the_disk" in caught.value.__notes__[0]  # where it was, for who wants to know
    assert listener.of("failed") == []
    assert sorted(listener.of("started")) == ["student-seed0", "student-seed1"]
    assert (tmp_path / "state").exists()


def test_a_locked_folder_is_refused_before_a_teacher_is_trained(tmp_path):
    experiment, listener = tiny(tmp_path).select(["sp"]), Listener()
    refused = pytest.raises(ExperimentError, match="is being run by another process")
    with RunFolder(tmp_path / "runs" / "tiny", experiment).locked(), refused:
        run_experiment(experiment, tmp_path / "runs", listener)
    assert listener.of("started") == []


def test_a_locked_folder_is_refused_and_not_touched(tmp_path):
    experiment = tiny(tmp_path, "teacher=", "methods={student: []}", "schedule.epochs=1")
    root = run_experiment(experiment, tmp_path / "runs")
    (root / "student-seed0" / "summary.json").unlink()
    with filelock.FileLock(root / "student-seed0" / ".lock"):
        before = content(tmp_path)
        with pytest.raises(ExperimentError, match="is being run by another process"):
            run_experiment(experiment, tmp_path / "runs")
        assert content(tmp_path) == before
