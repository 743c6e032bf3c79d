"""What an experiment will take, measured from a few real steps."""

import itertools
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from spkd_keras import data
from spkd_keras.distiller import Distiller
from spkd_keras.experiment import Experiment
from spkd_keras.training.checkpoints import KEPT
from spkd_keras.training.environment import peak_memory, reset_peak_memory
from spkd_keras.training.results import EVALUATION_BATCH

MEASURED_STEPS = 3
OTHER_BYTES = 200_000  # history, similarity matrices, what else is in a run's folder


class RunCost(NamedTuple):
    """What one run takes.

    Attributes:
        step_seconds: of a training step, the fastest of a few, and of making its batch.
        seconds: of the whole run, without starting it.
        bytes_left: on the disk when it is done.
        bytes_meanwhile: on the disk beside that while it runs.
        peak_memory: of the process, in bytes.
    """

    step_seconds: float
    seconds: float
    bytes_left: int
    bytes_meanwhile: int
    peak_memory: int


def measure(
    distiller: Distiller, batches: Any, splits: data.Splits, experiment: Experiment, batch_seconds: float = 0.0
) -> RunCost:
    """Trains for a few steps, and evaluates a batch; the student is of no use afterwards.

    Args:
        distiller: compiled.
        batches: a dataset of training batches.
        splits: give the numbers of images.
        experiment: gives batch size and epochs.
        batch_seconds: of making a batch: beside the steps of a GPU, and between those of a processor.
    """
    reset_peak_memory()
    distiller.make_train_function()
    train: Any = distiller.train_function
    endless = iter(batches.repeat())
    step = _fastest(lambda: keras.tree.map_structure(np.asarray, train(endless)))
    step = max(step, batch_seconds) if tf.config.list_logical_devices("GPU") else step + batch_seconds
    validation = splits.validation or splits.test
    pixels, _ = next(iter(data.evaluation_batches(validation, EVALUATION_BATCH)))
    evaluated = _fastest(lambda: distiller.student.predict_on_batch(pixels)) / len(pixels)
    steps = -(-len(splits.train) // experiment.data.batch_size)
    held_out = len(splits.validation) if splits.validation else 0
    # After the last epoch the held-out images once, the test images twice: for the last and for the best student.
    epochs = experiment.schedule.epochs
    seconds = epochs * (steps * step + held_out * evaluated) + (held_out + 2 * len(splits.test)) * evaluated
    student = sum(weight.value.numpy().nbytes for weight in distiller.student.weights)
    state = sum(v.value.numpy().nbytes for v in itertools.chain(distiller.variables, distiller.optimizer.variables))
    left = 2 * student + OTHER_BYTES
    return RunCost(step, seconds, left, (KEPT + 1) * state, peak_memory())


def seconds_a_batch(batches: Any) -> float:
    """Returns how long it takes to make a batch when none is waiting, in seconds, as in the middle of an epoch.

    Args:
        batches: a dataset.
    """
    endless = iter(batches.repeat())
    ahead = 2 * min(16, len(os.sched_getaffinity(0)))  # twice as many as are made at a time
    for _ in range(ahead):
        next(endless)
    begun = time.perf_counter()
    for _ in range(ahead):
        next(endless)
    return (time.perf_counter() - begun) / ahead


def _fastest(do: Callable[[], Any]) -> float:
    """Seconds of the fastest call after a first one, which compiles."""
    do()
    times = []
    for _ in range(MEASURED_STEPS):
        begun = time.perf_counter()
        do()
        times.append(time.perf_counter() - begun)
    return min(times)
