"""A tiny experiment that trains within seconds, and what the tests read of its run folders."""

import csv
import json

import keras
import numpy as np

from spkd_keras import models
from spkd_keras.experiment import load_experiment
from spkd_keras.observer import Observer

# 898 digits: 90 to validate on, and a tenth of the other 808 to train on.
TRAIN_IMAGES = 81
TINY = """
name: tiny
data: {name: digits, batch_size: 32, validation: 0.1, train_fraction: 0.1}
teacher: {model: wide_resnet, depth: 10, width: 0.5, schedule: {epochs: 1}}
student: {model: wide_resnet, depth: 10, width: 0.25}
schedule: {epochs: 2, learning_rate: 0.05, drops: {1: 0.2}}
methods:
  student: []
  kd: {student_loss_weight: 0.1, terms: [{loss: soft_targets, temperature: 4.0, weight: 0.9}]}
  sp: [{loss: similarity_preserving, weight: 100.0}]
seeds: [0]
"""
METHODS = ["student", "kd", "sp"]
RUNS = ["teacher-seed0", "student-seed0", "kd-seed0", "sp-seed0"]
TIMES = ("wall_seconds", "images_per_second", "peak_memory_bytes")


def tiny(folder, *overrides):
    """The experiment above from a file in the folder."""
    file = folder / "tiny.yaml"
    file.write_text(TINY, encoding="utf-8")
    return load_experiment(file, overrides)


def untrained_teacher(folder):
    """The file of a network that nobody trained, the same one each time."""
    keras.utils.set_random_seed(5)
    path = folder / "teacher.keras"
    models.wide_resnet(10, 0.5, image_shape=(8, 8, 1)).save(path)
    return path


class Listener(Observer):
    """Keeps what it is told, and can stop a run after some epochs."""

    def __init__(self, stop_after=None):
        self.told = []
        self.stop_after = stop_after

    def planned(self, runs, finished):
        self.told.append(("planned", runs, finished))

    def started(self, run, epochs):
        self.told.append(("started", run, epochs))

    def noticed(self, text):
        self.told.append(("noticed", text))

    def failed(self, run, reason):
        self.told.append(("failed", run, reason))

    def progressed(self, run, epochs_done, logs):
        self.told.append(("progressed", run, epochs_done))
        if epochs_done == self.stop_after:
            raise KeyboardInterrupt

    def completed(self, run, summary):
        self.told.append(("completed", run, summary["method"]))

    def of(self, kind):
        return [told[1] for told in self.told if told[0] == kind]


def summary_of(run_folder):
    return json.loads((run_folder / "summary.json").read_text(encoding="utf-8"))


def timeless(summary):
    return {key: value for key, value in summary.items() if key not in TIMES}


def history_of(run_folder):
    with (run_folder / "history.csv").open(newline="", encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def weights_of(run_folder, name="student.keras"):
    return keras.saving.load_model(run_folder / name).get_weights()


def assert_same_run(one, other):
    """The same student, bit for bit, by the same way."""
    for name in ("student.keras", "best.keras"):
        for left, right in zip(weights_of(one, name), weights_of(other, name), strict=True):
            np.testing.assert_array_equal(left, right)
    assert (one / "history.csv").read_text() == (other / "history.csv").read_text()
    assert timeless(summary_of(one)) == timeless(summary_of(other))


def content(folder):
    """Every file with its content and the moment it was written."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
