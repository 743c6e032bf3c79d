"""Losses on where and how the channels of inner layers respond."""

from typing import Any

import keras
from keras import ops

from spkd_keras.losses.base import (
    DistillationLoss,
    Tap,
    at_least_float32,
    check_positive,
    check_same_size,
    flat,
    stages,
    unit,
)


def channel_adapter(teacher_shape: Any, student_shape: Any) -> keras.layers.Layer | None:
    """Returns a 1x1 convolution to the teacher's number of channels and BatchNormalization; None where they agree.

    At the published weights and rates a bare convolution diverges. Features without positions get a dense layer in its
    place.

    Args:
        teacher_shape: (batch, height, width, channels) or (batch, channels).
        student_shape: the same of the student.

    Raises:
        ValueError: if the student's shape is another kind.
    """
    if teacher_shape is None or student_shape is None or teacher_shape[-1] == student_shape[-1]:
        return None
    channels = teacher_shape[-1]
    if len(student_shape) == 4:
        linear = keras.layers.Conv2D(channels, 1, use_bias=False)
    elif len(student_shape) == 2:
        linear = keras.layers.Dense(channels, use_bias=False)
    else:
        raise ValueError(
            "The student's features must be of shape (batch, height, width, channels) or (batch, channels) to be "
            f"adapted. Received: {tuple(student_shape)}."
        )
    return keras.Sequential([linear, keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)])


def at_same_positions(teacher: Any, student: Any) -> tuple[Any, Any]:
    """Average-pools the larger of two activations to the size of the smaller.

    Args:
        teacher: shape `(b, h, w, c)`.
        student: shape `(b, h', w', c')`; of each side, one must be a multiple of the other, and sides that a graph does
            not know must be equal.

    Raises:
        ValueError: if they are no activations of an image, or a side is no multiple.
    """
    if len(teacher.shape) != 4 or len(student.shape) != 4:
        raise ValueError(
            "Teacher and student must be activations of shape (batch, height, width, channels). "
            f"Received: {tuple(teacher.shape)} and {tuple(student.shape)}."
        )
    sides = [*zip(teacher.shape[1:3], student.shape[1:3], strict=True)]
    if any(None in side for side in sides):
        return teacher, student
    if any(max(side) % min(side) for side in sides):
        raise ValueError(
            "The height and width of one activation must be multiples of the other's. Received: "
            f"{tuple(teacher.shape)} and {tuple(student.shape)}."
        )
    return (
        _pooled(teacher, [max(1, of_teacher // of_student) for of_teacher, of_student in sides]),
        _pooled(student, [max(1, of_student // of_teacher) for of_teacher, of_student in sides]),
    )


def _pooled(activations: Any, size: list[int]) -> Any:
    if size == [1, 1]:
        return activations
    return ops.average_pool(activations, size, size, padding="valid", data_format="channels_last")


def channel_maps(activations: Any) -> Any:
    """Returns activations of shape `(b, h, w, c)` as one row for each channel, `(b, c, h * w)`."""
    shape = ops.shape(activations)
    return ops.transpose(ops.reshape(activations, (shape[0], -1, activations.shape[-1])), (0, 2, 1))


@keras.saving.register_keras_serializable("spkd_keras")
class AttentionTransfer(DistillationLoss):
    """AT: the student looks where the teacher looks.

        L = sum over stages mean over positions (M_T / ||M_T||_2 - M_S / ||M_S||_2)^2,  M = mean over channels |a|^p

    One term over all stages, paired by position; the larger of two activations is average-pooled first. The published
    weight (beta) is 1000, as the original code uses it, with the mean of the squares as here; the paper's equation has
    the norm of the difference, not squared, and half of beta in front of the sum.

    Args:
        power: p, at least 1, default 2.
        reduction, name, dtype: those of `DistillationLoss`.

    Raises:
        ValueError: if the power is below 1.

    Reference: Zagoruyko & Komodakis, "Paying More Attention to Attention", ICLR 2017, eq. 2, squared.
    """

    default_tap: Tap = "all_stages"
    takes_several_layers = True

    def __init__(self, power: float = 2.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive(power=power)
        if power < 1:
            raise ValueError(f"`power` must be at least 1: below, its gradient at 0 is infinite. Received: {power!r}.")
        self.power = float(power)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns one value per example, shape `(batch,)`: the sum over the stages."""

        def attention(activations: Any) -> Any:
            strength = ops.square(activations) if self.power == 2 else ops.power(ops.abs(activations), self.power)
            return unit(flat(ops.mean(strength, axis=-1)))

        def stage(teacher: Any, student: Any) -> Any:
            teacher, student = at_same_positions(*at_least_float32(teacher, student))
            check_same_size(teacher, student, 0, "images")
            return ops.mean(ops.square(attention(teacher) - attention(student)), axis=-1)

        return sum(stage(*pair) for pair in stages(y_true, y_pred))

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration."""
        return {**super().get_config(), "power": self.power}


@keras.saving.register_keras_serializable("spkd_keras")
class NeuronSelectivity(DistillationLoss):
    """NST: the student's channels respond to the same places as the teacher's, as two distributions of maps.

        L = sum over stages mean k(t, t') + mean k(s, s') - 2 mean k(t, s),  k(a, b) = (a . b)^2

    over the pairs of an image's channels, whose maps are scaled to length one. The larger of two activations is
    average-pooled first. The published weight is 50.

    Args: those of `DistillationLoss`.

    Reference: Huang & Wang, "Like What You Like", 2017, eq. 5 and the polynomial kernel.
    """

    default_tap: Tap = "all_stages"
    takes_several_layers = True

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns one value per example, shape `(batch,)`: the sum over the stages."""

        def kernel(one: Any, other: Any) -> Any:
            return ops.mean(ops.square(ops.matmul(one, ops.transpose(other, (0, 2, 1)))), axis=(1, 2))

        def stage(teacher: Any, student: Any) -> Any:
            teacher, student = at_same_positions(*at_least_float32(teacher, student))
            check_same_size(teacher, student, 0, "images")
            teacher, student = unit(channel_maps(teacher)), unit(channel_maps(student))
            return kernel(teacher, teacher) + kernel(student, student) - 2 * kernel(teacher, student)

        return sum(stage(*pair) for pair in stages(y_true, y_pred))


@keras.saving.register_keras_serializable("spkd_keras")
class InterChannelCorrelation(DistillationLoss):
    """ICKD: the student's channels are as similar to each other as the teacher's are.

        L = 1/c ||G_T - G_S||_F^2,  G: rows of F F^T scaled to length one, F of shape (c, h w)

    The sizes of the two maps may differ; where the numbers of channels do, a trained 1x1 convolution with
    BatchNormalization is put on the student. The published weight is 2.5.

    Args: those of `DistillationLoss`.

    Reference: Liu et al., "Exploring Inter-Channel Correlation for Diversity-Preserved Knowledge Distillation",
    ICCV 2021, eq. 3-5, with 1/c and rows of length one as in the authors' code; the paper has 1/c^2 and F F^T as it is.
    """

    default_tap: Tap = "last_stage"
    default_adapter = staticmethod(channel_adapter)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns one value per example, shape `(batch,)`."""
        teacher, student = at_least_float32(y_true, y_pred)
        check_same_size(teacher, student, 0, "images")
        check_same_size(teacher, student, -1, "channels")

        def correlations(activations: Any) -> Any:
            maps = channel_maps(activations)
            return unit(ops.matmul(maps, ops.transpose(maps, (0, 2, 1))))

        difference = correlations(teacher) - correlations(student)
        return ops.sum(ops.mean(ops.square(difference), axis=1), axis=1)
