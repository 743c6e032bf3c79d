"""Running an experiment: every method with every seed, each into a folder of its own."""

from spkd_keras.storage import StorageError
from spkd_keras.training.check import Check, check_experiment
from spkd_keras.training.describe import describe
from spkd_keras.training.devices import STRATEGIES, Devices, WorkerLostError, devices_for, processes_for
from spkd_keras.training.interruption import Interrupted
from spkd_keras.training.run import RunsFailedError, cache_teacher, run_experiment
from spkd_keras.training.teacher_run import trained_teacher

__all__ = [
    "STRATEGIES",
    "Check",
    "Devices",
    "Interrupted",
    "RunsFailedError",
    "StorageError",
    "WorkerLostError",
    "cache_teacher",
    "check_experiment",
    "describe",
    "devices_for",
    "processes_for",
    "run_experiment",
    "trained_teacher",
]
