"""Similarity-preserving knowledge distillation of image classifiers, in Keras 3 on TensorFlow.

    import spkd_keras

    distiller = spkd_keras.Distiller(
        teacher, student, terms=[spkd_keras.Term(spkd_keras.losses.SimilarityPreserving(), weight=3000.0)]
    )
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    distiller.fit(images, labels)
    distiller.student.save("student.keras")

The names are loaded when they are first used, so that `import spkd_keras` does not import TensorFlow. Where Keras is
imported already they are loaded at once, so that `keras.saving.load_model` knows them; where it is not, import one of
them before: `from spkd_keras import Distiller`.
"""

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spkd_keras import cache, data, export, losses, models, optimizers, search
    from spkd_keras.distiller import Distiller, Term, TermWeightSchedule, WeightSchedule

__version__ = "0.1.0"
_CLASSES = ("Distiller", "Term", "TermWeightSchedule", "WeightSchedule")
__all__ = [
    "Distiller",
    "Term",
    "TermWeightSchedule",
    "WeightSchedule",
    "cache",
    "data",
    "export",
    "losses",
    "models",
    "optimizers",
    "search",
]


def __getattr__(name: str) -> object:
    if name in _CLASSES:
        return getattr(importlib.import_module("spkd_keras.distiller"), name)
    if name in __all__:
        return importlib.import_module(f"spkd_keras.{name}")
    raise AttributeError(f"module 'spkd_keras' has no attribute {name!r}. Available: {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


if "keras" in sys.modules:
    importlib.import_module("spkd_keras.distiller")
