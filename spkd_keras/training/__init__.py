"""Running an experiment: every method with every seed, each into a folder of its own."""

from spkd_keras.training.describe import describe
from spkd_keras.training.run import run_experiment

__all__ = ["describe", "run_experiment"]
