"""Losses that want the student's features to be the teacher's, behind a trained adapter."""

import math
from typing import Any

import keras
from keras import layers, ops

from spkd_keras.losses.base import (
    DistillationLoss,
    Shape,
    Tap,
    at_least_float32,
    check_positive,
    check_same_size,
    flat,
    unit,
)
from spkd_keras.losses.feature_maps import channel_adapter


def _check_same_shape(teacher: Any, student: Any) -> None:
    if len(teacher.shape) != len(student.shape):
        raise ValueError(
            f"Teacher and student must have as many axes. Received: shapes {tuple(teacher.shape)} and "
            f"{tuple(student.shape)}."
        )
    for axis in range(len(teacher.shape)):
        what = {0: "images", len(teacher.shape) - 1: "channels"}.get(axis, "positions")
        check_same_size(teacher, student, axis, what)


@keras.saving.register_keras_serializable("spkd_keras")
class Hint(DistillationLoss):
    """FitNets: the student's activations are the teacher's, behind an adapter where channels differ.

        L = mean over positions and channels (a_T - adapter(a_S))^2

    The adapter is a 1x1 convolution, or a dense layer for features without positions, and BatchNormalization. Where
    channels agree there is none and the activations are compared as they are, while the paper and the code that peers
    compare with always have a regressor, that code with BatchNormalization and ReLU. The two maps must be of one size;
    name layers of one size, or an adapter that resizes. The published weight is 100 in that code.

    Args: those of `DistillationLoss`.

    Reference: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, eq. 3, as mean, without its half and
    with this regressor.
    """

    default_tap: Tap = "last_stage"
    default_adapter = staticmethod(channel_adapter)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns one value per example, shape `(batch,)`."""
        teacher, student = at_least_float32(y_true, y_pred)
        _check_same_shape(teacher, student)
        return ops.mean(ops.square(teacher - student), axis=tuple(range(1, len(teacher.shape))))


@keras.saving.register_keras_serializable("spkd_keras")
class VariationalHead(layers.Layer):
    """Guesses the teacher's activations from the student's: a mean for each, and a variance for each channel.

    Three 1x1 convolutions with ReLU between them; the variance softplus(s) + epsilon is trained too. A map larger than
    `size` is average-pooled first.

    Args:
        channels: of the teacher.
        size: (height, width) of the teacher's map.
        initial_variance: of every channel.
        epsilon: the least variance.

    Returns (when called):
        Shape `(b, h, w, 2 * channels)`: means, then variances.

    Reference: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, eq. 5-6.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        initial_variance: float = 5.0,
        epsilon: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.channels, self.size = channels, tuple(size)
        self.initial_variance, self.epsilon = initial_variance, epsilon
        self.convolutions = [
            layers.Conv2D(channels, 1, use_bias=False, activation=activation, dtype=self.dtype_policy)
            for activation in ("relu", "relu", None)
        ]

    def build(self, input_shape: Any) -> None:
        """Makes the weights."""
        shape = tuple(input_shape)
        for convolution in self.convolutions:
            convolution.build(shape)
            shape = convolution.compute_output_shape(shape)
        above = self.initial_variance - self.epsilon
        start = above + math.log(-math.expm1(-above))  # its softplus is `above`; no overflow where that is large
        self.scale = self.add_weight(
            shape=(self.channels,), initializer=keras.initializers.Constant(start), name="scale", autocast=False
        )
        self.built = True

    def call(self, x: Any) -> Any:
        """Returns means and variances."""
        if tuple(x.shape[1:3]) != self.size:
            ratio = [a // b for a, b in zip(x.shape[1:3], self.size, strict=True)]
            x = ops.average_pool(x, ratio, ratio, padding="valid", data_format="channels_last")
        for convolution in self.convolutions:
            x = convolution(x)
        mean = ops.cast(x, "float32")  # a float16 variance would round to 0
        variance = ops.softplus(ops.cast(self.scale, "float32")) + self.epsilon
        return ops.concatenate([mean, ops.broadcast_to(variance, ops.shape(mean))], axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration."""
        own = {"channels": self.channels, "size": self.size}
        return {**super().get_config(), **own, "initial_variance": self.initial_variance, "epsilon": self.epsilon}


@keras.saving.register_keras_serializable("spkd_keras")
class VariationalInformation(DistillationLoss):
    """VID: the teacher's activations are probable under a Gaussian that a head of the student predicts.

        L = mean over positions and channels 1/2 ((a_T - mean)^2 / variance + log variance)

    Its value can be negative. The published weight is 1 in the code that peers compare with.

    Args:
        initial_variance: that the head begins with, above `epsilon`, default 5.
        epsilon: the least variance, above 0, default 1e-5.
        reduction, name, dtype: those of `DistillationLoss`.

    Raises:
        ValueError: if an argument is out of range.

    Reference: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, eq. 5, without its
    constant.
    """

    default_tap: Tap = "last_stage"

    def __init__(self, initial_variance: float = 5.0, epsilon: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive(initial_variance=initial_variance, epsilon=epsilon)
        if initial_variance <= epsilon:
            raise ValueError(f"`initial_variance` must be above epsilon={epsilon}. Received: {initial_variance!r}.")
        self.initial_variance, self.epsilon = float(initial_variance), float(epsilon)

    def default_adapter(self, teacher_shape: Shape | Any, student_shape: Shape | Any) -> layers.Layer:
        """Returns a `VariationalHead`.

        Raises:
            ValueError: if the shapes are open, or the student's map is not as large as the teacher's or a multiple.
        """
        if teacher_shape is None or student_shape is None or len(teacher_shape) != 4 or len(student_shape) != 4:
            raise ValueError("VariationalInformation needs activations of shape (batch, height, width, channels).")
        sizes = teacher_shape[1:3], student_shape[1:3]
        if None in (*sizes[0], *sizes[1]) or any(s % t for t, s in zip(*sizes, strict=True)):
            raise ValueError(
                "The student's map must be of the teacher's size or a multiple of it. Received: "
                f"{tuple(teacher_shape)} and {tuple(student_shape)}."
            )
        size = (teacher_shape[1], teacher_shape[2])
        return VariationalHead(teacher_shape[-1], size, self.initial_variance, self.epsilon, name="variational_head")

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns one value per example, shape `(batch,)`; `y_pred` is what the head gives."""
        teacher, head = at_least_float32(y_true, y_pred)
        if head.shape[-1] != 2 * teacher.shape[-1]:
            raise ValueError(
                "VariationalInformation needs a mean and a variance for each of the teacher's channels, as a "
                f"VariationalHead adapter gives them. Received: shapes {tuple(teacher.shape)} and {tuple(head.shape)}."
            )
        mean, variance = ops.split(head, 2, axis=-1)
        _check_same_shape(teacher, mean)
        values = 0.5 * (ops.square(teacher - mean) / variance + ops.log(variance))
        return ops.mean(values, axis=tuple(range(1, len(teacher.shape))))

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration."""
        return {**super().get_config(), "initial_variance": self.initial_variance, "epsilon": self.epsilon}


@keras.saving.register_keras_serializable("spkd_keras")
class ProjectorEnsemble(layers.Layer):
    """The mean of several projections, each a dense layer with ReLU.

    Args:
        units: of the output.
        projectors: how many.

    Returns (when called):
        Shape `(b, units)`.
    """

    def __init__(self, units: int, projectors: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units, self.projectors = units, projectors
        self.dense = [layers.Dense(units, activation="relu", dtype=self.dtype_policy) for _ in range(projectors)]

    def build(self, input_shape: Any) -> None:
        """Makes the weights."""
        for dense in self.dense:
            dense.build(input_shape)
        self.built = True

    def call(self, x: Any) -> Any:
        """Returns the mean of the projections."""
        return sum(dense(x) for dense in self.dense) / self.projectors

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration."""
        return {**super().get_config(), "units": self.units, "projectors": self.projectors}


@keras.saving.register_keras_serializable("spkd_keras")
class Projection(DistillationLoss):
    """The student's embedding, projected, points where the teacher's points.

        L = 1 - cosine(mean_k ReLU(W_k e_S + b_k), e_T)

    The published weight is 25.

    Args:
        projectors: how many projections are averaged, an integer of at least 1, default 3.
        reduction, name, dtype: those of `DistillationLoss`.

    Raises:
        ValueError: if `projectors` is out of range.

    Reference: Chen et al., "Improved Feature Distillation via Projector Ensemble", NeurIPS 2022, eq. 5-6.
    """

    default_tap: Tap = "embedding"

    def __init__(self, projectors: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if type(projectors) is not int or projectors < 1:
            raise ValueError(f"`projectors` must be an integer of at least 1. Received: projectors={projectors!r}.")
        self.projectors = projectors

    def default_adapter(self, teacher_shape: Shape | Any, student_shape: Shape | Any) -> layers.Layer | None:
        """Returns a `ProjectorEnsemble` to the width of the teacher's embedding."""
        del student_shape
        return None if teacher_shape is None else ProjectorEnsemble(teacher_shape[-1], self.projectors)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns one value per example, shape `(batch,)`."""
        teacher, student = at_least_float32(y_true, y_pred)
        _check_same_shape(teacher, student)
        cosine = ops.sum(unit(teacher) * unit(student), axis=-1)
        return 1 - ops.mean(flat(cosine), axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration."""
        return {**super().get_config(), "projectors": self.projectors}
