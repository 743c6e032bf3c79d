"""What the outputs of the two networks are: logits or probabilities, and of how many classes."""

import warnings
from collections.abc import Sequence
from typing import Any

import keras

from spkd_keras import losses
from spkd_keras.distiller import taps
from spkd_keras.distiller.stand_in import StandIn
from spkd_keras.distiller.term import Term

# Functions of Keras that take probabilities unless they are told otherwise.
CROSSENTROPIES = ("sparse_categorical_crossentropy", "categorical_crossentropy", "binary_crossentropy")


def check_logits(term: Term, role: str, model: keras.Model | StandIn, places: Sequence[taps.Tap]) -> None:
    """Checks that a term that compares logits does not get probabilities.

    Raises:
        ValueError: if a place is behind a softmax or a sigmoid.
    """
    if not _compares_logits(term):
        return
    for place in places:
        if gives_probabilities(model, place):
            raise ValueError(
                f"The term '{term.name}' compares logits. Received: a {role} '{model.name}' that ends in a softmax or "
                f"sigmoid and so gives probabilities. {_way_out(model, place, role)}"
            )


def check_outputs(term: Term, teacher: keras.Model | StandIn, student: keras.Model) -> None:
    """Checks a term that compares the outputs of the two networks.

    Raises:
        ValueError: if their numbers of classes differ or are too small, if one gives logits and the other
            probabilities, or if both give logits to a loss of Keras that takes probabilities.
    """
    classes = taps.num_classes(teacher), taps.num_classes(student)
    if None not in classes and classes[0] != classes[1]:
        raise ValueError(
            f"The term '{term.name}' compares outputs, so teacher and student must have the same number of classes. "
            f"Received: {classes[0]} for '{teacher.name}' and {classes[1]} for '{student.name}'."
        )
    if _compares_logits(term):
        if 1 in classes:
            raise ValueError(
                f"The term '{term.name}' compares the probabilities of classes and needs at least 2. Received: outputs "
                "of 1. Give both networks a logit for each of the two classes, or compare by "
                "keras.losses.MeanSquaredError."
            )
        return  # `check_logits` has looked
    if not all(isinstance(model, StandIn) or taps.is_graph(model) for model in (teacher, student)):
        return  # what cannot be seen from outside
    kinds = [gives_probabilities(model, taps.LOGITS) for model in (teacher, student)]
    if kinds[0] != kinds[1]:
        names = ["probabilities" if kind else "logits" for kind in kinds]
        role, model = ("teacher", teacher) if kinds[0] else ("student", student)
        raise ValueError(
            f"The term '{term.name}' compares outputs, so both must be logits or both probabilities. Received: "
            f"{names[0]} of the teacher '{teacher.name}' and {names[1]} of the student '{student.name}'. "
            f"{_way_out(model, taps.LOGITS, role)}"
        )
    if taps.gives_logits(student) and _takes_probabilities(term.loss):
        raise ValueError(
            f"The term '{term.name}' is a {type(term.loss).__name__} of probabilities. Received: the logits of "
            f"'{student.name}'. Use spkd_keras.losses.SoftTargets, or from_logits=True where the loss has it."
        )


def warn_of_logits(student: keras.Model, loss: Any) -> None:
    """Warns if the loss on the labels takes probabilities and the student gives logits."""
    if taps.is_graph(student) and taps.gives_logits(student) and _takes_probabilities(loss):
        warnings.warn(
            f"The student '{student.name}' gives logits, and its loss on the labels takes probabilities: without a "
            "softmax in the student, use keras.losses.SparseCategoricalCrossentropy(from_logits=True) or the like.",
            stacklevel=4,
        )


def gives_probabilities(model: keras.Model | StandIn, place: taps.Tap) -> bool:
    """Whether what a place gives are probabilities, as far as can be seen."""
    if isinstance(model, StandIn):
        return model.gives_probabilities and place == taps.LOGITS
    return taps.probability_layer(model, place) is not None


def _compares_logits(term: Term) -> bool:
    return term.default_tap == "logits" and isinstance(term.loss, losses.DistillationLoss)


def _takes_probabilities(loss: Any) -> bool:
    if isinstance(loss, str):
        return loss in CROSSENTROPIES
    name = getattr(loss, "__name__", None)
    return name in CROSSENTROPIES or isinstance(loss, keras.losses.KLDivergence) or _from_logits(loss) is False


def _from_logits(loss: Any) -> bool | None:
    crossentropies = (
        keras.losses.SparseCategoricalCrossentropy,
        keras.losses.CategoricalCrossentropy,
        keras.losses.BinaryCrossentropy,
    )
    return loss.get_config()["from_logits"] if isinstance(loss, crossentropies) else None


def _way_out(model: keras.Model | StandIn, place: taps.Tap, role: str) -> str:
    layer = None if isinstance(model, StandIn) else taps.probability_layer(model, place)
    if layer is not None and getattr(layer, "weights", None):
        return (
            f"Set the `activation` of its layer '{layer.name}' to keras.activations.linear, which changes no weight, "
            "before constructing the Distiller."
        )
    return f"Remove that activation, or name the layer before it: {role}=..."
