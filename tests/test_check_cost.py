"""What `spkd check` says that an experiment will take."""

import os
import time

import pytest
import tensorflow as tf
from tiny_experiment import tiny

from spkd_keras import data
from spkd_keras.training import Check, build, cost
from spkd_keras.training.cost import RunCost


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", validation=0.1)


def test_what_all_runs_take_adds_up():
    costs = {"sp": RunCost(0.1, 10.0, 100, 7, 50), "teacher": RunCost(0.1, 3.0, 40, 9, 30)}
    check = Check(costs=costs, runs={"sp": 3, "teacher": 1}, cache=1000, jobs=2)
    assert check.seconds == 3 * 10 + 3
    assert check.peak_memory == 2 * 50
    assert check.disk == 3 * 100 + 40 + 1000 + 2 * 9


def test_the_time_of_a_run(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "_fastest", lambda do: 1.0)
    experiment = tiny(tmp_path, "schedule.epochs=4")  # 808 images: 26 steps; 90 held out, evaluated in one batch
    distiller = build.build_distiller(None, build.build_student(experiment, digits.train), experiment, "student")
    batches = data.training_batches(digits.train, 32, 0, data.EpochClock())
    found = cost.measure(distiller, batches, digits, experiment)
    assert found.seconds == pytest.approx(4 * (26 + 1) + (90 + 2 * 899) / 90)
    student = 4 * distiller.student.count_params()
    assert found.bytes_left == 2 * student + cost.OTHER_BYTES
    assert found.bytes_meanwhile > 3 * 1.9 * student  # two checkpoints and one on its way, of weights and momentum


def test_a_batch_takes_as_long_as_in_the_middle_of_an_epoch():
    """Those that wait ready when the steps begin say nothing."""

    def slowly(number):
        time.sleep(0.05)
        return number

    def made(number):
        return tf.ensure_shape(tf.numpy_function(slowly, [number], tf.int64, stateful=False), ())

    batches = data.prefetched(tf.data.Dataset.range(100).map(made, num_parallel_calls=tf.data.AUTOTUNE))
    threads = min(16, len(os.sched_getaffinity(0)))
    assert cost.seconds_a_batch(batches) >= 0.9 * 0.05 / threads


def test_the_time_of_making_batches_counts(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "_fastest", lambda do: 1.0)
    experiment = tiny(tmp_path)
    for gpus, step in (([], 1.5), (["a GPU"], 1.0)):
        monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind, gpus=gpus: gpus)
        distiller = build.build_distiller(None, build.build_student(experiment, digits.train), experiment, "student")
        batches = data.training_batches(digits.train, 32, 0, data.EpochClock())
        assert cost.measure(distiller, batches, digits, experiment, 0.5).step_seconds == step
