"""An experiment as data: a frozen, validated model of its YAML file. Imports no TensorFlow."""

from spkd_keras.experiment.loading import load_experiment, override
from spkd_keras.experiment.presets import loss_facts, presets
from spkd_keras.experiment.problems import ExperimentError, unknown, validated
from spkd_keras.experiment.published import Published
from spkd_keras.experiment.schema import (
    BASELINE,
    TEACHER,
    CacheSpec,
    Checkpoints,
    Data,
    Experiment,
    Method,
    Network,
    Schedule,
    Teacher,
    TermSpec,
    WeightScheduleSpec,
    differences,
)

__all__ = [
    "BASELINE",
    "TEACHER",
    "CacheSpec",
    "Checkpoints",
    "Data",
    "Experiment",
    "ExperimentError",
    "Method",
    "Network",
    "Published",
    "Schedule",
    "Teacher",
    "TermSpec",
    "WeightScheduleSpec",
    "differences",
    "load_experiment",
    "loss_facts",
    "override",
    "presets",
    "unknown",
    "validated",
]
