"""An experiment as data: a frozen, validated model of its YAML file. Imports no TensorFlow."""

from spkd_keras.experiment.loading import load_experiment, override, read_plain
from spkd_keras.experiment.presets import loss_facts, preset_methods, presets
from spkd_keras.experiment.problems import ClearError, ExperimentError, unknown, validated
from spkd_keras.experiment.records import damaged, read_record, walk
from spkd_keras.experiment.schema import BASELINE, TEACHER, Experiment, differences
from spkd_keras.experiment.searching import (
    METHOD,
    OBJECTIVES,
    TUNERS,
    Space,
    StudentSpec,
    check_objective,
    check_tuner,
    load_search,
    load_students,
    points,
)
from spkd_keras.experiment.sections import (
    CacheSpec,
    Checkpoints,
    Data,
    Method,
    Network,
    Published,
    Schedule,
    Teacher,
    TermSpec,
    WeightScheduleSpec,
)
from spkd_keras.experiment.space import Dimension, label

__all__ = [
    "BASELINE",
    "METHOD",
    "OBJECTIVES",
    "TEACHER",
    "TUNERS",
    "CacheSpec",
    "Checkpoints",
    "ClearError",
    "Data",
    "Dimension",
    "Experiment",
    "ExperimentError",
    "Method",
    "Network",
    "Published",
    "Schedule",
    "Space",
    "StudentSpec",
    "Teacher",
    "TermSpec",
    "WeightScheduleSpec",
    "check_objective",
    "check_tuner",
    "damaged",
    "differences",
    "label",
    "load_experiment",
    "load_search",
    "load_students",
    "loss_facts",
    "override",
    "points",
    "preset_methods",
    "presets",
    "read_plain",
    "read_record",
    "unknown",
    "validated",
    "walk",
]
