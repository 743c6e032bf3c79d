"""How the terms are connected to the two networks."""

import dataclasses
import math
import numbers
import re
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from spkd_keras import losses, models
from spkd_keras.distiller import taps
from spkd_keras.distiller.inputs import check_same_images, warn_of_augmentation, warn_of_preprocessor
from spkd_keras.distiller.outputs import DIFFERENCES, check_logits, check_outputs
from spkd_keras.distiller.stand_in import Absent, Cached, StandIn
from spkd_keras.distiller.term import Term
from spkd_keras.models.copying import settle

ADVICE = "Name other layers, or give the term an `adapter` in Python, for example"
REFUSALS = (ValueError, TypeError, tf.errors.OpError)  # of shapes, by losses and layers


class Wiring:
    """The tapped networks and which tap goes to which term. Holds no state that is saved.

    Args:
        student: the student.
        terms: by their names.
        teacher_dtype: in which a copy of the teacher runs, or None.
        fingerprint: of the teacher that may be connected, or None for any.
    """

    def __init__(
        self,
        student: keras.Model,
        terms: dict[str, Term],
        teacher_dtype: str | None,
        fingerprint: str | None,
    ) -> None:
        self.student = student
        self.terms = terms
        self.teacher_dtype = teacher_dtype
        self.fingerprint = fingerprint
        self.teacher: keras.Model | StandIn | None = None
        if teacher_dtype is not None and teacher_dtype not in models.PRECISIONS:
            raise ValueError(
                f"`teacher_dtype` must be one of {', '.join(models.PRECISIONS)} or None. Received: {teacher_dtype!r}."
            )
        self.student_taps = [
            taps.resolve(student, term.student, term.default_tap, "student") for term in terms.values()
        ]
        self._student_places = list(dict.fromkeys(tap for group in self.student_taps for tap in group))
        self._tapped_student: Any = taps.tapped(student, self._student_places, with_output=True) if terms else None
        self.teacher_taps: list[tuple[taps.Tap, ...]] = []
        self._teacher_places: list[taps.Tap] = []
        self._tapped_teacher: Any = None

    def connect(self, teacher: keras.Model | StandIn | None) -> None:
        """Takes the teacher, or lets go of it.

        Raises:
            ValueError: if it is not the teacher of before, or does not fit the terms.
        """
        if teacher is None:
            self.teacher = self._tapped_teacher = None
            return
        warn_of_preprocessor(teacher, "teacher")
        absent = isinstance(teacher, StandIn)
        if absent and self.teacher_dtype not in (None, teacher.dtype):
            raise ValueError(
                f"`teacher_dtype` must be {teacher.dtype!r}, as when the cache was computed, or None. Received: "
                f"{self.teacher_dtype!r}."
            )
        fingerprint = teacher.fingerprint if absent else self._checked_fingerprint(teacher)
        if self.fingerprint not in (None, fingerprint):
            raise ValueError(
                f"`teacher` must be the one that this student was distilled from, fingerprint {self.fingerprint}. "
                f"Received: '{teacher.name}' with fingerprint {fingerprint}. To distil from another teacher, construct "
                "a new Distiller with this student."
            )
        teacher_taps = [
            teacher.resolve(term.teacher, term.default_tap, term.takes_sketches)
            if absent
            else taps.resolve(teacher, term.teacher, term.default_tap, "teacher")
            for term in self.terms.values()
        ]
        for term, from_teacher, from_student in zip(self.terms.values(), teacher_taps, self.student_taps, strict=True):
            self._check_pair(teacher, term, from_teacher, from_student)
        places = list(dict.fromkeys(tap for group in teacher_taps for tap in group))
        if absent:
            tapped = Absent(teacher, places)
        elif self.terms:
            tapped = tapped_teacher(teacher, self.teacher_dtype, places)
        else:
            tapped = None
        self.teacher, self.teacher_taps, self._teacher_places = teacher, teacher_taps, places
        self._tapped_teacher, self.fingerprint = tapped, fingerprint

    def follow_teacher(self) -> bool:
        """Takes the teacher with the weights that it has now. Returns whether they are others than before."""
        if self.teacher is None or isinstance(self.teacher, StandIn):
            return False
        if models.fingerprint(self.teacher) == self.fingerprint:
            return False
        self.fingerprint = None
        self.connect(self.teacher)  # a copy in another dtype has the weights of before
        return True

    def _checked_fingerprint(self, teacher: keras.Model) -> str:
        _check_built(teacher, "teacher")
        check_same_images(teacher, self.student)
        changing = [*self.student.trainable_weights, *_statistics(self.student)]
        shared = {id(weight) for weight in teacher.weights} & {id(weight) for weight in changing}
        if shared:
            raise ValueError(
                f"`teacher` and `student` must not share what training changes. Received: {len(shared)} such. "
                "Copy the teacher (keras.models.clone_model and set_weights) or freeze the layers."
            )
        return models.fingerprint(teacher)

    def _check_pair(
        self,
        teacher: keras.Model | StandIn,
        term: Term,
        from_teacher: tuple[taps.Tap, ...],
        from_student: tuple[taps.Tap, ...],
    ) -> None:
        if len(from_teacher) != len(from_student):
            raise ValueError(
                f"The term '{term.name}' pairs layers by position and finds {len(from_teacher)} in the teacher "
                f"({', '.join(map(str, from_teacher))}) and {len(from_student)} in the student "
                f"({', '.join(map(str, from_student))}). Name as many of each in the term."
            )
        if len(from_student) > 1 and not term.takes_several_layers:
            raise ValueError(
                f"The term '{term.name}' compares one layer of each network, since {type(term.loss).__name__} does not "
                f"take several. Received: {', '.join(map(str, from_teacher))} of the teacher and "
                f"{', '.join(map(str, from_student))} of the student. Write a term for each pair of layers."
            )
        check_logits(term, "teacher", teacher, from_teacher)
        check_logits(term, "student", self.student, from_student)
        if from_teacher == from_student == (taps.LOGITS,):
            check_outputs(term, teacher, self.student)

    def build_adapters(self) -> dict[str, keras.layers.Layer]:
        """Builds the layers that go on the student's taps, and puts them into the terms.

        Returns:
            The adapters by their terms' names. Those of a loaded Distiller are in its terms; without a
            teacher none are made.

        Raises:
            ValueError: if the shapes of a tap do not fit.
        """
        adapters = {}
        for index, (name, term) in enumerate(self.terms.items()):
            student_shape = taps.shape(self._tapped_student, self._student_places, self.student_taps[index])
            try:
                adapter = term.adapter
                if adapter is None:
                    adapter = self._default_adapter(index, term.loss, student_shape)
                if adapter is not None:
                    adapters[name] = _built_copy(adapter, student_shape)
            except REFUSALS as error:
                raise ValueError(
                    f"The term '{name}' cannot put an adapter on the student's tap of shape {student_shape}: "
                    f"{_reason(error)} {ADVICE} a keras.Sequential that begins with keras.layers.UpSampling2D(2)."
                ) from error
        self.terms = {name: dataclasses.replace(term, adapter=adapters.get(name)) for name, term in self.terms.items()}
        return adapters

    def _default_adapter(self, index: int, loss: keras.losses.Loss, student_shape: Any) -> keras.layers.Layer | None:
        if self.teacher is None or not isinstance(loss, losses.DistillationLoss):
            return None
        teacher_shape = taps.shape(self._tapped_teacher, self._teacher_places, self.teacher_taps[index])
        return loss.default_adapter(teacher_shape, student_shape)

    def try_losses(self, adapters: dict[str, keras.layers.Layer]) -> None:
        """Calls every loss once, on zeros, so that shapes that do not fit are seen at once and not in the first step.

        Raises:
            ValueError: if a loss refuses the shapes of its taps.
        """
        if self.teacher is None or not self.terms:
            return
        teacher_values, student_values = taps.zeros(self._tapped_teacher), taps.zeros(self._tapped_student)
        if teacher_values is None or student_values is None:
            return
        for name, teacher, student in self.pairs(teacher_values, student_values):
            term, student = self.terms[name], adapters[name](student) if name in adapters else student
            error = self._refusal(term, teacher, student)
            if error:
                shapes = [keras.tree.map_structure(lambda x: tuple(x.shape[1:]), side) for side in (teacher, student)]
                advice = f" {ADVICE} keras.layers.AveragePooling2D(2)." if shapes[0] != shapes[1] else ""
                raise ValueError(
                    f"The term '{name}' cannot compare the teacher's tap of shape {shapes[0]} with the student's of "
                    f"shape {shapes[1]}: {_reason(error)}{advice}"
                ) from error

    def _refusal(self, term: Term, teacher: Any, student: Any) -> Exception | None:
        """Returns why a loss refuses its taps, None if it does not."""
        if type(term.loss) in DIFFERENCES and _sizes(teacher) != _sizes(student):
            return ValueError(f"{type(term.loss).__name__} would repeat the values of one to fit the other.")
        targets = [teacher]
        if term.needs_labels:  # integers, or shares of classes: a loss may take one of them alone
            shares = keras.ops.zeros((2, taps.num_classes(self.student) or 1))
            targets = [(teacher, keras.ops.zeros((2,), "int32")), (teacher, shares)]
        refusals = []
        for target in targets:
            try:
                term.loss(target, student)
                return None
            except REFUSALS as error:
                refusals.append(error)
        return refusals[0]

    def run_teacher(self, x: Any) -> list[Any]:
        """Runs the teacher in inference mode, without gradients, as far as its last tap; or takes what a batch carries.

        Raises:
            ValueError: if there is no teacher, or the batch lacks one of its taps.
        """
        if isinstance(x, Cached):
            missing = [tap.key for tap in self._teacher_places if tap.key not in x.teacher]
            if missing:
                raise ValueError(
                    f"The cached batch must carry {', '.join(missing)} of the teacher. It has: {', '.join(x.teacher)}."
                )
            return [tf.stop_gradient(x.teacher[tap.key]) for tap in self._teacher_places]
        if self._tapped_teacher is None:
            raise ValueError(
                "The terms need the teacher, which is not saved with the Distiller. Hand it back: "
                f"distiller.teacher = teacher (fingerprint {self.fingerprint})."
            )
        return [tf.stop_gradient(value) for value in self._tapped_teacher(x, training=False)["taps"]]

    def run_student(self, x: Any, training: bool, with_taps: bool) -> tuple[Any, list[Any]]:
        """Runs the student once; returns its output and the values at its taps."""
        x = x.images if isinstance(x, Cached) else x
        if not with_taps:
            return self.student(x, training=training), []
        results = self._tapped_student(x, training=training)
        return results["output"], results["taps"]

    def pairs(self, teacher_values: list[Any], student_values: list[Any]) -> Iterator[tuple[str, Any, Any]]:
        """Yields each term's name and its two sides: two tensors for one layer, two lists of them for several."""
        for name, from_teacher, from_student in zip(self.terms, self.teacher_taps, self.student_taps, strict=True):
            teacher = [teacher_values[self._teacher_places.index(tap)] for tap in from_teacher]
            student = [student_values[self._student_places.index(tap)] for tap in from_student]
            yield (name, teacher, student) if len(teacher) > 1 else (name, teacher[0], student[0])


def _built_copy(adapter: keras.layers.Layer, student_shape: Any) -> keras.layers.Layer:
    """Returns a copy, so that no other Distiller trains it, with the weights that there are."""
    copy = type(adapter).from_config(adapter.get_config())
    if student_shape is None:  # the student's inside cannot be reached
        copy.build(None)
    else:  # layers that are made of others are built where they are called, not by `build`
        copy(keras.tree.map_shape_structure(keras.KerasTensor, student_shape))
    if adapter.built and adapter.weights:
        copy.set_weights(adapter.get_weights())
        for layer in copy._flatten_layers():
            settle(layer)
    several = tf.distribute.get_strategy().num_replicas_in_sync > 1
    return models.synchronized(copy) if several and isinstance(copy, keras.Model) else copy


def _sizes(values: Any) -> list[list[int]]:
    """Returns the shapes of one tensor or several, without the ones at their ends, which Keras' losses leave out."""
    shapes = [list(value.shape) for value in keras.tree.flatten(values)]
    for shape in shapes:
        while shape[-1] == 1:
            shape.pop()
    return shapes


def _reason(error: Exception) -> str:
    text = re.sub(r"\{\{function_node .*?\}\}|\[Op:\w+\]( name:)?", "", str(error))  # where TensorFlow was
    return " ".join(text.split())[:200]


def tapped_teacher(teacher: keras.Model, dtype: str | None, places: list[taps.Tap]) -> Any:
    """Returns the teacher as it is run: in another dtype if there is one, as far as its last tap."""
    tapped = taps.tapped(teacher if dtype is None else models.in_precision(teacher, dtype), places)
    # It only infers, so its batch normalisation can be part of its convolutions.
    return models.folded(tapped) if isinstance(tapped, keras.Model) else tapped


def _statistics(model: keras.Model) -> list[Any]:
    """Returns what training changes besides the trained weights: means and variances that are not frozen."""
    normalizations = (layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization))
    return [weight for layer in normalizations if layer.trainable for weight in layer.non_trainable_weights]


def _check_built(network: Any, role: str) -> None:
    if not isinstance(network, keras.Model) or not network.built:
        unbuilt = isinstance(network, keras.Model)
        advice = "Call it on a batch of images first" if unbuilt else "Load a file by keras.saving.load_model"
        raise ValueError(f"`{role}` must be a built keras.Model. Received: {network!r}. {advice}.")


def check_arguments(
    teacher: keras.Model | None,
    student: keras.Model,
    terms: list[str],
    student_loss_weight: float,
    teacher_fingerprint: str | None,
) -> None:
    """Checks the arguments of a Distiller that need no look into the networks.

    Raises:
        ValueError: if one cannot work.
    """
    _check_built(student, "student")
    warn_of_preprocessor(student, "student")
    if teacher is student:
        raise ValueError("`teacher` and `student` must be two models: the student's weights change.")
    if terms:
        warn_of_augmentation(student)
    if terms and teacher is None and teacher_fingerprint is None:
        raise ValueError(f"`teacher` must be a model, since there are terms: {', '.join(terms)}.")
    number = isinstance(student_loss_weight, numbers.Real) and not isinstance(student_loss_weight, bool)
    if not number or not 0 <= student_loss_weight < math.inf:
        raise ValueError(f"`student_loss_weight` must be finite and at least 0. Received: {student_loss_weight!r}.")
    if not student_loss_weight and not terms:
        raise ValueError("There is nothing to train on: `student_loss_weight` is 0 and there are no terms.")
