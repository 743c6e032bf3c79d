"""Losses that compare the relations between the embeddings of a mini-batch."""

import math
from typing import Any

import keras
from keras import ops

from spkd_keras.losses.base import (
    DistillationLoss,
    RowLoss,
    Tap,
    at_least_float32,
    check_positive,
    check_same_size,
    flat,
    taken,
    unit,
)

PKT_EPSILON = 1e-7  # of the published code


def _pair(teacher: Any, student: Any) -> tuple[Any, Any]:
    """Returns both as (b, d), checked."""
    teacher, student = at_least_float32(teacher, student)
    check_same_size(teacher, student, 0, "images")
    return flat(teacher), flat(student)


def _differences(embeddings: Any, rows: slice | None = None) -> Any:
    """Returns `e[j] - e[i]` at `[i, j]`, shape `(b, b, d)`. Exact where a Gram matrix cancels, as for duplicates."""
    return embeddings[None] - taken(embeddings, rows)[:, None]


@keras.saving.register_keras_serializable("spkd_keras")
class RelationalDistance(DistillationLoss):
    """RKD-D: images are as far from each other for the student as for the teacher, in mean distances.

        L = 1/b^2 sum_ij h(d_T[i, j] / mean(d_T) - d_S[i, j] / mean(d_S)),  h: smooth L1

    The means are over the pairs of two images. The published weight is 25. Devices that share a batch each compute all
    pairs, since the mean needs them.

    Args: those of `DistillationLoss`.

    Reference: Park et al., "Relational Knowledge Distillation", CVPR 2019, eq. 5-8, as mean, not sum.
    """

    default_tap: Tap = "embedding"
    batch_relational = True

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns one value per example, shape `(batch,)`."""

        def distances(embeddings: Any) -> Any:
            squared = ops.sum(ops.square(_differences(embeddings)), axis=-1)
            apart = ops.logical_not(squared <= 0)
            distance = ops.where(apart, ops.sqrt(ops.where(apart, squared, ops.ones_like(squared))), 0.0)
            images = ops.cast(ops.shape(embeddings)[0], distance.dtype)
            mean = ops.sum(distance) / ops.maximum(images * (images - 1), 1.0)
            return distance / ops.where(mean <= 0, 1.0, mean)

        teacher, student = _pair(y_true, y_pred)
        return keras.losses.huber(distances(teacher), distances(student))


@keras.saving.register_keras_serializable("spkd_keras")
class RelationalAngle(RowLoss):
    """RKD-A: three images form the same angles for the student as for the teacher.

        L = 1/b^3 sum_ijk h(cos_T(j, i, k) - cos_S(j, i, k)),  h: smooth L1,  cos of the angle at image i

    The published weight is 50. Needs memory for b^3 cosines.

    Args: those of `DistillationLoss`.

    Reference: Park et al., "Relational Knowledge Distillation", CVPR 2019, eq. 9-10, as mean, not sum.
    """

    default_tap: Tap = "embedding"

    def call_rows(self, y_true: Any, y_pred: Any, rows: slice | None) -> Any:
        """Returns the values of some examples, from the angles at them alone."""

        def cosines(embeddings: Any) -> Any:
            directions = unit(_differences(embeddings, rows))
            return ops.matmul(directions, ops.transpose(directions, (0, 2, 1)))

        teacher, student = _pair(y_true, y_pred)
        return ops.mean(keras.losses.huber(cosines(teacher), cosines(student)), axis=1)


@keras.saving.register_keras_serializable("spkd_keras")
class PKT(RowLoss):
    """Probabilistic knowledge transfer: each image's neighbours are as probable for the student as for the teacher.

        L = 1/b^2 sum_ij p_T[i, j] log(p_T[i, j] / p_S[i, j]),  p: rows of (cosine + 1) / 2, scaled to sum one

    The published weight is 30000. With 1e-7 in the quotient, as in the published code.

    Args: those of `DistillationLoss`.

    Reference: Passalis & Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018,
    eq. 5-7.
    """

    default_tap: Tap = "embedding"

    def call_rows(self, y_true: Any, y_pred: Any, rows: slice | None) -> Any:
        """Returns the values of some examples, from their rows of probabilities."""

        def probabilities(embeddings: Any) -> Any:
            directions = unit(embeddings)
            similarity = (ops.matmul(taken(directions, rows), ops.transpose(directions)) + 1) / 2
            return similarity / ops.sum(similarity, axis=1, keepdims=True)

        teacher, student = map(probabilities, _pair(y_true, y_pred))
        return ops.mean(teacher * ops.log((teacher + PKT_EPSILON) / (student + PKT_EPSILON)), axis=1)


@keras.saving.register_keras_serializable("spkd_keras")
class CorrelationCongruence(RowLoss):
    """CC: images are correlated for the student as for the teacher, by a Gaussian kernel expanded into a series.

        L = 1/b^2 ||C_T - C_S||_F^2,  C_ij = exp(-2 gamma) sum_{p <= order} (2 gamma)^p / p! (f_i . f_j)^p,  ||f|| = 1

    Code that peers compare with has another loss by this name, so that its weight of 0.02 is none for this one.

    Args:
        gamma: of the kernel, above 0, default 0.4.
        order: of the series, an integer of at least 1, default 2.
        reduction, name, dtype: those of `DistillationLoss`.

    Raises:
        ValueError: if an argument is out of range.

    Reference: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, eq. 6-11.
    """

    default_tap: Tap = "embedding"

    def __init__(self, gamma: float = 0.4, order: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive(gamma=gamma)
        if type(order) is not int or order < 1:
            raise ValueError(f"`order` must be an integer of at least 1. Received: order={order!r}.")
        self.gamma, self.order = float(gamma), order

    def call_rows(self, y_true: Any, y_pred: Any, rows: slice | None) -> Any:
        """Returns the values of some examples, from their rows of correlations."""

        def correlations(embeddings: Any) -> Any:
            directions = unit(embeddings)
            cosine = ops.matmul(taken(directions, rows), ops.transpose(directions))
            series: Any = 1.0
            for power in range(1, self.order + 1):
                series = series + (2 * self.gamma) ** power / math.factorial(power) * cosine**power
            return math.exp(-2 * self.gamma) * series

        teacher, student = map(correlations, _pair(y_true, y_pred))
        return ops.mean(ops.square(teacher - student), axis=1)

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration."""
        return {**super().get_config(), "gamma": self.gamma, "order": self.order}
