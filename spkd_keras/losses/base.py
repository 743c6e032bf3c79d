"""What every distillation loss has in common."""

import math
import numbers
import re
from collections.abc import Sequence
from typing import Any, Literal

import keras
from keras import ops

Tap = Literal["last_stage", "all_stages", "embedding", "logits"]
Shape = tuple[Any, ...]  # of integers, and None for what is open

# Squared length at which a vector counts as dead, for example of an image on which every activation is zero after ReLU.
DEAD = 1e-24


class DistillationLoss(keras.losses.Loss):
    """Base class: a `keras.losses.Loss` that says where it wants to look and computes in float32 or more.

    A subclass implements `call(y_true, y_pred)` with `y_true` the teacher's tensor and `y_pred` the
    student's (two lists of tensors where a term is over several layers), and returns one value per
    example, shape `(batch,)`; reduction and serialisation are Keras'.

    Class attributes:
        default_tap: which layers are compared when a `Term` names none: `"last_stage"`,
            `"all_stages"`, `"embedding"` (what goes into the classifier) or `"logits"`.
        batch_relational: whether the value of one example depends on the other examples of the batch.
            Such a loss has nothing to say about a batch of one.
        needs_labels: whether `y_true` is a pair of the teacher's tensor and the labels, integers of shape `(batch,)` or
            shares of classes of shape `(batch, classes)`.
        compares_classes: whether it takes the logits of two classes or more, so that probabilities are refused.
        takes_sketches: whether the teacher's activations count by their inner products between images alone, so that a
            random projection of them will do.
        takes_several_layers: whether `call` takes lists of tensors too, paired by position. A term over one layer gives
            it two tensors all the same.

    Args:
        reduction: as in `keras.losses.Loss`; default `"sum_over_batch_size"`, the mean over the batch.
        name: default is the class' name in snake case.
        dtype: `"float32"` or `"float64"`; None is `keras.config.floatx()`.

    Raises:
        ValueError: if the dtype is narrower than float32, in which a Gram matrix overflows.
    """

    default_tap: Tap = "logits"
    batch_relational: bool = False
    needs_labels: bool = False
    compares_classes: bool = False
    takes_sketches: bool = False
    takes_several_layers: bool = False

    def __init__(
        self, reduction: str | None = "sum_over_batch_size", name: str | None = None, dtype: Any = None
    ) -> None:
        # Keras would number the losses of a process.
        super().__init__(name=name or snake_case(type(self).__name__), reduction=reduction, dtype=dtype)
        if self.dtype not in ("float32", "float64"):
            raise ValueError(
                "`dtype` of a distillation loss must be 'float32' or 'float64', whatever the dtype policy of "
                f"the networks. Received: dtype={dtype} (keras.config.floatx() is '{keras.config.floatx()}'). "
                "Pass dtype='float32'."
            )

    def call_rows(self, y_true: Any, y_pred: Any, rows: slice | None) -> Any:
        """Returns the values of some examples of a batch, those of one of the devices that share it.

        A loss whose every example has a row of a matrix computes these rows alone, so that the devices share the work.
        Others compute all on each device: `RelationalDistance`, for its mean distance, and `DIST`, for its classes.

        Args:
            y_true: of the whole batch, as in `call`.
            y_pred: of the whole batch.
            rows: which examples; None for all.

        Returns:
            As many values as there are rows.
        """
        return taken(self.call(y_true, y_pred), rows)

    def default_adapter(
        self, teacher_shape: Shape | Sequence[Shape], student_shape: Shape | Sequence[Shape]
    ) -> keras.layers.Layer | None:
        """Returns the layer to put on the student's tap where the `Term` names none.

        Args:
            teacher_shape: shape of the teacher's tap, batch dimension None; a list of shapes for
                a loss over several layers.
            student_shape: the same of the student.

        Returns:
            A serialisable layer, or None for a loss that compares the two taps as they are.
        """
        del teacher_shape, student_shape
        return None

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration; unlike Keras' own (3.15), it keeps the dtype."""
        return {**super().get_config(), "dtype": self.dtype}


class RowLoss(DistillationLoss):
    """Base class of a loss whose every example has a row of a matrix: a subclass implements `call_rows` alone."""

    batch_relational = True

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns one value per example, shape `(batch,)`; over several layers, the sum over their pairs."""
        return self.call_rows(y_true, y_pred, None)


def check_positive(**values: Any) -> None:
    """Checks that arguments are finite numbers above 0.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < float(value) < math.inf:
            raise ValueError(f"`{name}` must be finite and above 0. Received: {name}={value!r}.")


def unit(vectors: Any, axis: int = -1) -> Any:
    """Returns vectors scaled to length one along an axis; a dead one (squared length up to 1e-24) becomes zero.

    It is masked before the reciprocal square root, so that no gradient passes it.
    """
    squared = ops.sum(ops.square(vectors), axis=axis, keepdims=True)
    alive = ops.logical_not(squared <= DEAD)  # "not below", so that NaN stays NaN and is seen
    inverse = ops.rsqrt(ops.where(alive, squared, ops.ones_like(squared)))
    return ops.where(alive, vectors * inverse, ops.zeros_like(vectors))


def centered(values: Any, axis: int) -> Any:
    """Returns values less their mean along an axis; exactly zero where they are equal, which a mean alone is not."""
    shifted = values - ops.take(values, [0], axis=axis)
    return shifted - ops.mean(shifted, axis=axis, keepdims=True)


def flat(tensor: Any) -> Any:
    """Returns a tensor as one row for each example."""
    return ops.reshape(tensor, (ops.shape(tensor)[0], -1))


def stages(teacher: Any, student: Any) -> list[tuple[Any, Any]]:
    """Returns the stages of two networks in pairs.

    Raises:
        ValueError: if one has more than the other.
    """
    one, other = keras.tree.flatten(teacher), keras.tree.flatten(student)
    if len(one) != len(other):
        raise ValueError(f"Teacher and student must have as many stages. Received: {len(one)} and {len(other)}.")
    return [*zip(one, other, strict=True)]


def taken(tensor: Any, rows: slice | None) -> Any:
    """Returns some rows of a tensor, or the tensor itself."""
    return tensor if rows is None else tensor[rows]


def snake_case(name: str) -> str:
    """Returns a class' name in snake case."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def at_least_float32(*tensors: Any) -> list[Any]:
    """Returns the tensors in float32, or in float64 if one of them is float64 already."""
    converted = [ops.convert_to_tensor(tensor) for tensor in tensors]
    dtype = keras.backend.result_type("float32", *(tensor.dtype for tensor in converted))
    return [ops.cast(tensor, dtype) for tensor in converted]


def check_same_size(teacher: Any, student: Any, axis: int, what: str) -> None:
    """Checks that two tensors agree along an axis, so that nothing is broadcast in silence.

    Raises:
        ValueError: if both sizes are known and differ.
    """
    sizes = teacher.shape[axis], student.shape[axis]
    if None not in sizes and sizes[0] != sizes[1]:
        raise ValueError(
            f"Teacher and student must have the same number of {what}. Received: {sizes[0]} and {sizes[1]}, "
            f"shapes {tuple(teacher.shape)} and {tuple(student.shape)}."
        )
