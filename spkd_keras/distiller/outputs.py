"""What the outputs of the two networks are: logits or probabilities, and of how many classes."""

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import keras

from spkd_keras.distiller import taps
from spkd_keras.distiller.stand_in import StandIn
from spkd_keras.distiller.term import Term

Kind = Literal["logits", "probabilities"]

# Of Keras' own losses alone something is known: a subclass may do with its arguments what it likes.
DIFFERENCES = (keras.losses.MeanSquaredError, keras.losses.MeanAbsoluteError, keras.losses.Huber)
CROSSENTROPIES = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalCrossentropy,
    keras.losses.BinaryCrossentropy,
)
OF_CLASSES = (keras.losses.KLDivergence, *CROSSENTROPIES)
OF_PROBABILITIES = ("sparse_categorical_crossentropy", "categorical_crossentropy", "binary_crossentropy")


def check_logits(term: Term, role: str, model: keras.Model | StandIn, places: Sequence[taps.Tap]) -> None:
    """Checks that a term that compares classes by their logits does not get probabilities.

    Raises:
        ValueError: if a place is behind a softmax or a sigmoid.
    """
    if not term.compares_classes:
        return
    for place in places:
        if output_kind(model, place) == "probabilities":
            raise ValueError(
                f"The term '{term.name}' compares logits. Received: a {role} '{model.name}' that ends in a softmax or "
                f"sigmoid and so gives probabilities. {_way_out(model, place, role)}"
            )


def check_outputs(term: Term, teacher: keras.Model | StandIn, student: keras.Model) -> None:
    """Checks a term that compares the outputs of the two networks, as far as it is known what it needs.

    Raises:
        ValueError: if their numbers of classes differ or are too small, or if a network gives logits where
            probabilities are compared, or the other way round.
    """
    loss = type(term.loss)
    if term.adapter is not None or not (term.compares_classes or loss in (*DIFFERENCES, *OF_CLASSES)):
        return
    classes = taps.num_classes(teacher), taps.num_classes(student)
    if None not in classes and classes[0] != classes[1]:
        raise ValueError(
            f"The term '{term.name}' compares {'logits' if term.compares_classes else 'outputs'}, so teacher and "
            f"student must have the same number of classes. Received: {classes[0]} for '{teacher.name}' and "
            f"{classes[1]} for '{student.name}'."
        )
    if term.compares_classes and 1 in classes:
        raise ValueError(
            f"The term '{term.name}' compares the probabilities of classes and needs at least 2. Received: outputs of "
            "1. Give both networks a logit for each of the two classes, or compare by keras.losses.MeanSquaredError."
        )
    kinds = output_kind(teacher, taps.LOGITS), output_kind(student, taps.LOGITS)
    if loss in DIFFERENCES and None not in kinds and kinds[0] != kinds[1]:
        role, model = ("teacher", teacher) if kinds[0] == "probabilities" else ("student", student)
        raise ValueError(
            f"The term '{term.name}' compares outputs, so both must be logits or both probabilities. Received: "
            f"{kinds[0]} of the teacher '{teacher.name}' and {kinds[1]} of the student '{student.name}'. "
            f"{_way_out(model, taps.LOGITS, role)}"
        )
    if loss in OF_CLASSES:
        from_logits = term.loss.get_config().get("from_logits", False)
        _check_kind(term, "teacher", teacher, kinds[0], "probabilities")
        _check_kind(term, "student", student, kinds[1], "logits" if from_logits else "probabilities")


def _check_kind(term: Term, role: str, model: keras.Model | StandIn, found: Kind | None, wanted: Kind) -> None:
    if found not in (None, wanted):
        advice = "Use spkd_keras.losses.SoftTargets, which takes the logits of both."
        raise ValueError(
            f"The term '{term.name}' is a {type(term.loss).__name__} and takes {wanted} of the {role}. Received: "
            f"{found} of '{model.name}'. {advice if found == 'logits' else _way_out(model, taps.LOGITS, role)}"
        )


def warn_of_logits(student: keras.Model, loss: Any) -> None:
    """Warns if the loss on the labels takes probabilities and the student gives logits."""
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", None)
    of_probabilities = type(loss) in CROSSENTROPIES and not loss.get_config().get("from_logits")
    if (name in OF_PROBABILITIES or of_probabilities) and output_kind(student, taps.LOGITS) == "logits":
        warnings.warn(
            f"The student '{student.name}' gives logits, and its loss on the labels takes probabilities: without a "
            "softmax in the student, use keras.losses.SparseCategoricalCrossentropy(from_logits=True) or the like.",
            stacklevel=4,
        )


def output_kind(model: keras.Model | StandIn, place: taps.Tap) -> Kind | None:
    """Returns what a place gives; None where that cannot be seen."""
    if isinstance(model, StandIn):
        return "probabilities" if model.gives_probabilities and place == taps.LOGITS else None
    if taps.probability_layer(model, place) is not None:
        return "probabilities"
    return "logits" if place == taps.LOGITS and taps.is_graph(model) and taps.gives_logits(model) else None


def _way_out(model: keras.Model | StandIn, place: taps.Tap, role: str) -> str:
    layer = None if isinstance(model, StandIn) else taps.probability_layer(model, place)
    if layer is not None and getattr(layer, "weights", None):
        name = next((path for path, other in taps.layer_paths(model) if other is layer), layer.name)
        return (
            f"Set the `activation` of its layer '{name}' to keras.activations.linear, which changes no weight, "
            "before constructing the Distiller."
        )
    return f"Remove that activation, or name the layer before it: {role}=..."
