"""A term of the objective: a loss, its weight, and where in the two networks it looks."""

import dataclasses
import inspect
import itertools
import math
import numbers
import re
from collections.abc import Sequence
from typing import Any, get_args

import keras

from spkd_keras.losses.base import Tap, snake_case

VALIDATION = "val_"  # before the names of what Keras measures on validation data


@dataclasses.dataclass(frozen=True)
class Term:
    """One distillation term: weight * loss(teacher's tap, student's tap).

    Args:
        loss: a `keras.losses.Loss`, called as `loss(teacher_tensor, student_tensor)`.
        weight: at least 0, default 1.
        teacher: name of the teacher's layer whose output is compared, `backbone/block_12_add` for a layer in a nested
            model, or a tuple of names for a loss over several layers. None is the loss' `default_tap`;
            for a loss that has none (a plain Keras loss) that is the logits. One layer is a tensor for the loss, in a
            tuple or not; several are a list of tensors.
        student: the same for the student; as many names as `teacher`, paired by position.
        name: under which the term's value is logged; default is the loss' class name in snake case, made unique in
            its Distiller by a suffix `_2`.
        adapter: a serialisable layer of which the Distiller puts a copy on the student's tap, trained with the student
            and not exported. The copy of a built layer starts from its weights. None is what the loss'
            `default_adapter` gives, which is nothing for most.

    Raises:
        ValueError: if an argument has the wrong type or is out of range.
    """

    loss: keras.losses.Loss
    weight: float = 1.0
    teacher: str | tuple[str, ...] | None = None
    student: str | tuple[str, ...] | None = None
    name: str | None = None
    adapter: keras.layers.Layer | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.loss, keras.losses.Loss):
            raise ValueError(
                "`loss` of a Term must be a keras.losses.Loss object, for example SimilarityPreserving(). "
                f"Received: loss={self.loss!r}."
            )
        if self.loss.reduction in (None, "none"):
            raise ValueError(
                "`loss` of a Term must reduce to one number: reduction='sum_over_batch_size'. "
                f"Received: reduction={self.loss.reduction!r}."
            )
        if isinstance(self.weight, bool) or not isinstance(self.weight, numbers.Real):
            raise ValueError(f"`weight` of a Term must be a number. Received: weight={self.weight!r}.")
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"`weight` of a Term must be finite and at least 0. Received: weight={self.weight}.")
        if self.default_tap not in get_args(Tap):
            raise ValueError(
                f"`default_tap` of a loss must be one of {', '.join(get_args(Tap))}. Received: {self.default_tap!r} of "
                f"{type(self.loss).__name__}."
            )
        if self.adapter is not None and not isinstance(self.adapter, keras.layers.Layer):
            raise ValueError(f"`adapter` of a Term must be a Keras layer. Received: adapter={self.adapter!r}.")
        for role in ("teacher", "student"):
            names = getattr(self, role)
            if isinstance(names, list):
                names = tuple(names)
                object.__setattr__(self, role, names)
            parts = names if isinstance(names, tuple) else (names,)
            if names is not None and not (parts and all(isinstance(part, str) and part for part in parts)):
                raise ValueError(
                    f"`{role}` of a Term must be a layer's name, a tuple of names, or None. Received: {names!r}."
                )
        if self.teacher is not None and self.student is not None and count(self.teacher) != count(self.student):
            raise ValueError(
                "`teacher` and `student` of a Term must name the same number of layers, paired by position. "
                f"Received: teacher={self.teacher!r}, student={self.student!r}."
            )

    @property
    def default_tap(self) -> str:
        """Where the loss looks when no layer is named."""
        return getattr(self.loss, "default_tap", "logits")

    @property
    def batch_relational(self) -> bool:
        """Whether the loss compares the examples of a batch with each other."""
        return getattr(self.loss, "batch_relational", False)

    @property
    def needs_labels(self) -> bool:
        """Whether the loss gets the labels beside the teacher's tensor."""
        return getattr(self.loss, "needs_labels", False)

    @property
    def compares_classes(self) -> bool:
        """Whether the loss takes the logits of two classes or more."""
        return getattr(self.loss, "compares_classes", False)

    @property
    def takes_sketches(self) -> bool:
        """Whether a random projection of the teacher's activations will do."""
        return getattr(self.loss, "takes_sketches", False)

    @property
    def takes_several_layers(self) -> bool:
        """Whether the loss may get lists of tensors; one that does not say so may."""
        return getattr(self.loss, "takes_several_layers", True)

    def get_config(self) -> dict[str, Any]:
        """Returns a configuration that `from_config` takes, with the loss and the adapter serialised."""
        loss = keras.saving.serialize_keras_object(self.loss)
        takes_dtype = "dtype" in inspect.signature(type(self.loss)).parameters
        if takes_dtype and self.loss.dtype != keras.config.floatx():  # Keras' own losses (3.15) leave it out
            loss["config"].setdefault("dtype", self.loss.dtype)
        adapter = self.adapter and keras.saving.serialize_keras_object(self.adapter)
        if adapter:
            adapter.pop("build_config", None)  # the Distiller builds its copy; Keras (3.15) would by `build` alone
        return {
            "loss": loss,
            "weight": float(self.weight),
            "teacher": list(self.teacher) if isinstance(self.teacher, tuple) else self.teacher,
            "student": list(self.student) if isinstance(self.student, tuple) else self.student,
            "name": self.name,
            "adapter": adapter,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Term":
        """Returns the term of a configuration."""
        config = dict(config)
        for key in ("loss", "adapter"):
            config[key] = config[key] and keras.saving.deserialize_keras_object(config[key])
        return cls(**config)


def count(names: str | tuple[str, ...]) -> int:
    """Returns how many layers are named."""
    return len(names) if isinstance(names, tuple) else 1


def named(terms: Sequence[Term], reserved: Sequence[str]) -> dict[str, Term]:
    """Gives every term a name of its own.

    Args:
        terms: names that were given are kept; default ones get a suffix `_2`, `_3` where needed.
        reserved: names that a term cannot have.

    Raises:
        ValueError: if something else than a Term is among them, a given name is reserved, there twice, or no word, or
            a name begins as Keras' names of validation metrics do.
    """
    for term in terms if isinstance(terms, Sequence) else [terms]:
        if not isinstance(term, Term) or not isinstance(terms, Sequence):
            raise ValueError(f"`terms` must be a list of Term. Received: {term!r}. Write Term(loss, weight=...).")
    taken = list(reserved)
    for name in (term.name for term in terms if term.name is not None):
        if name in taken or not re.fullmatch(r"[A-Za-z]\w*", name):
            raise ValueError(
                "`name` of a Term must be a word of letters, digits and underscores that no other term has and that is "
                f"not one of {', '.join(reserved)}. Received: name={name!r}."
            )
        taken.append(name)
    result = {}
    for term in terms:
        name = term.name or _free_name(term, taken)
        if name.startswith(VALIDATION):
            raise ValueError(
                f"`name` of a Term must not begin with {VALIDATION}, which stands before what is measured on held-out "
                f"images. Received: name={name!r}. Give the term another `name`."
            )
        taken.append(name)
        result[name] = dataclasses.replace(term, name=name)
    return result


def _free_name(term: Term, taken: Sequence[str]) -> str:
    base = snake_case(type(term.loss).__name__)
    candidates = (f"{base}_{index}" if index > 1 else base for index in itertools.count(1))
    return next(name for name in candidates if name not in taken)
