"""A run that is killed at any moment and started again gives the same student, bit for bit."""

import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from tiny_experiment import Listener, assert_same_run, history_of, tiny, weights_of

from spkd_keras import models
from spkd_keras.distiller import Distiller
from spkd_keras.training import run, run_experiment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The file of a network that nobody trained."""
    keras.utils.set_random_seed(5)
    path = tmp_path_factory.mktemp("teacher") / "teacher.keras"
    models.wide_resnet(10, 0.5, image_shape=(8, 8, 1)).save(path)
    return path


def three_epochs(folder, teacher, seed=1):
    # A rate that changes with every epoch, so that a wrong one would be seen.
    drops = "schedule.drops={1: 0.5, 2: 0.5}"
    return tiny(folder, f"teacher={{path: '{teacher}'}}", "schedule.epochs=3", drops, f"seeds=[{seed}]").select(["sp"])


@pytest.fixture(scope="module")
def uninterrupted(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return run_experiment(three_epochs(folder, teacher), folder / "runs") / "sp-seed1"


def kill(*_, **__):
    raise KeyboardInterrupt


def kill_at(count, method, then):
    """Wraps a method that writes a file: its call number `count` is followed by something else."""
    calls = []

    def wrapped(self, filepath, *args, **kwargs):
        calls.append(filepath)
        method(self, filepath, *args, **kwargs)
        if len(calls) == count:
            then(filepath)

    return wrapped


def tear(path):
    """Leaves the first half of a file, as a kill during writing does."""
    os.truncate(path, os.path.getsize(path) // 2)
    raise KeyboardInterrupt


# Each moment makes the run kill itself there.


def within_the_second_epoch(patch):
    steps = []

    def count_steps(self, batch, logs=None):
        steps.append(batch)
        if len(steps) == 5:  # an epoch has three
            raise KeyboardInterrupt

    patch.setattr(keras.callbacks.LearningRateScheduler, "on_train_batch_end", count_steps)


def within_the_first_backup(patch):
    patch.setattr(Distiller, "save_weights", kill_at(1, Distiller.save_weights, tear), raising=False)


def within_the_second_backup(patch):
    patch.setattr(Distiller, "save_weights", kill_at(2, Distiller.save_weights, tear), raising=False)


def between_the_weights_of_the_second_backup_and_its_epoch(patch):
    patch.setattr(Distiller, "save_weights", kill_at(2, Distiller.save_weights, kill), raising=False)


def between_the_weights_of_the_first_backup_and_its_epoch(patch):
    patch.setattr(Distiller, "save_weights", kill_at(1, Distiller.save_weights, kill), raising=False)


def after_the_student_is_saved(patch):
    patch.setattr(run, "similarity_matrix", kill)


@pytest.mark.parametrize(
    "moment",
    [
        within_the_second_epoch,
        within_the_first_backup,
        within_the_second_backup,
        between_the_weights_of_the_first_backup_and_its_epoch,
        between_the_weights_of_the_second_backup_and_its_epoch,
        after_the_student_is_saved,
    ],
    ids=lambda moment: moment.__name__,
)
def test_killed_and_started_again(uninterrupted, teacher, tmp_path, moment):
    experiment = three_epochs(tmp_path, teacher)
    with pytest.MonkeyPatch.context() as patch:
        moment(patch)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(experiment, tmp_path / "runs")
    folder = tmp_path / "runs" / "tiny" / "sp-seed1"
    assert not (folder / "summary.json").exists()
    run_experiment(experiment, tmp_path / "runs")
    assert_same_run(uninterrupted, folder)
    assert {path.name for path in folder.iterdir()} == {path.name for path in uninterrupted.iterdir()}


def test_it_goes_on_where_it_was(uninterrupted, teacher, tmp_path):
    experiment, folder = three_epochs(tmp_path, teacher), tmp_path / "runs" / "tiny" / "sp-seed1"
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, tmp_path / "runs", Listener(stop_after=1))
    assert [row["epoch"] for row in history_of(folder)] == [1]
    listener = Listener()
    run_experiment(experiment, tmp_path / "runs", listener)
    assert [done for kind, _, done in listener.told if kind == "progressed"] == [1, 2, 3]
    assert_same_run(uninterrupted, folder)


def test_killed_in_another_process(uninterrupted, teacher, tmp_path):
    experiment = three_epochs(tmp_path, teacher)
    (tmp_path / "run.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
    code = f"""
import os
from spkd_keras.experiment import load_experiment
from spkd_keras.observer import Observer
from spkd_keras.training import run_experiment

class Killer(Observer):
    def progressed(self, run, epochs_done, logs):
        if epochs_done == 1:
            os.kill(os.getpid(), {int(signal.SIGKILL)})

run_experiment(load_experiment("run.yaml"), "runs", Killer())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    run_experiment(experiment, tmp_path / "runs")
    assert_same_run(uninterrupted, tmp_path / "runs" / "tiny" / "sp-seed1")


def test_another_seed_is_another_student(uninterrupted, teacher, tmp_path):
    other = run_experiment(three_epochs(tmp_path, teacher, seed=2), tmp_path / "runs") / "sp-seed2"
    kernels = [
        weights for weights in zip(weights_of(uninterrupted), weights_of(other), strict=True) if weights[0].ndim > 1
    ]
    assert kernels
    assert not any(np.array_equal(one, two) for one, two in kernels)
