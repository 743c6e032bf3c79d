"""Distillation with `model.fit`: `Distiller(teacher, student, terms)`."""

import keras

if keras.config.backend() != "tensorflow":
    raise ImportError(
        f"spkd_keras needs Keras' TensorFlow backend. Received: '{keras.config.backend()}'. "
        "Set the environment variable KERAS_BACKEND=tensorflow."
    )

import spkd_keras.losses
import spkd_keras.optimizers  # noqa: F401 - a saved Distiller names its classes
from spkd_keras.distiller.guard import NotFiniteError
from spkd_keras.distiller.model import Distiller
from spkd_keras.distiller.parts import LossPart, compared_layers, gathered_bytes, loss_parts, tap_values
from spkd_keras.distiller.schedules import TermWeightSchedule, WeightSchedule
from spkd_keras.distiller.stand_in import Cached, StandIn
from spkd_keras.distiller.term import Term

__all__ = [
    "Cached",
    "Distiller",
    "LossPart",
    "NotFiniteError",
    "StandIn",
    "Term",
    "TermWeightSchedule",
    "WeightSchedule",
    "compared_layers",
    "gathered_bytes",
    "loss_parts",
    "tap_values",
]
