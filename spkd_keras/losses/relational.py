"""Losses that compare the relations between the examples of a mini-batch."""

from typing import Any

import keras
from keras import ops

from spkd_keras.losses.base import RowLoss, Tap, at_least_float32, check_same_size, flat, stages, taken, unit


def similarity_matrix(activations: Any, rows: slice | None = None) -> Any:
    """Pairwise similarities of the examples of a batch, each row scaled to length one.

        Q = reshape(A, (b, -1));  S = Q Q^T;  G[i, :] = S[i, :] / ||S[i, :]||_2

    The rows are normalised after the product, as in the paper. A dead row (||S[i, :]||^2 <= 1e-24) is zero
    and passes no gradient: it is masked before the reciprocal square root, since clamping the norm instead
    leaves gradients of 1e14, which overflow float16 and stop a loss-scaled training without a message.

    Args:
        activations: shape `(b, ...)`, any float dtype; computed in float32 at least.
        rows: of the matrix that are wanted; None for all. A row is normalised by itself alone.

    Returns:
        Shape `(b, b)`, or as many rows as are wanted, float32 (float64 if the activations are). Not symmetric.

    Reference: Tung & Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, eq. 1-3.
    """
    (activations,) = at_least_float32(activations)
    features = flat(activations)
    return unit(ops.matmul(taken(features, rows), ops.transpose(features)))


def similarity_preserving(teacher: Any, student: Any, rows: slice | None = None) -> Any:
    """Mean squared difference of each row of the two similarity matrices.

        l_i = 1/b * ||G_T[i, :] - G_S[i, :]||^2, so that mean(l) = 1/b^2 * ||G_T - G_S||_F^2

    Args:
        teacher: activations of shape `(b, ...)`.
        student: activations of shape `(b, ...)`; only b must agree.
        rows: of the matrices that are wanted; None for all.

    Returns:
        Shape `(b,)`, or a value for each row that is wanted, at most 2/b for non-negative activations and below 4/b for
        signed ones. Zero for a batch of one, in which there is no pair to compare.

    Raises:
        ValueError: if the two batches differ in size.

    Reference: Tung & Mori, ICCV 2019, eq. 4, for one pair of layers.
    """
    teacher, student = at_least_float32(teacher, student)
    check_same_size(teacher, student, 0, "images")
    difference = similarity_matrix(teacher, rows) - similarity_matrix(student, rows)
    per_example = ops.mean(ops.square(difference), axis=1)
    has_pairs = ops.cast(ops.shape(student)[0] > 1, per_example.dtype)
    return per_example * has_pairs


@keras.saving.register_keras_serializable("spkd_keras")
class SimilarityPreserving(RowLoss):
    """Similarity-preserving loss: the student matches the teacher's matrix of pairwise similarities.

        L_SP = 1/b^2 * sum over pairs of layers ||G_T - G_S||_F^2

    See `similarity_matrix` and `similarity_preserving`. The published weight (gamma) is 3000 for CIFAR-10 and, as
    remembered, 2000 for CINIC-10. The loss falls as 1/b, so gamma is tied to the batch size: 128 and 96 there.
    It looks at the last stage, before the closing activation or 1x1 convolution. The shapes of the two
    taps may differ in everything but the batch.

    Args: those of `DistillationLoss`.

    Reference: Tung & Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019.
    """

    default_tap: Tap = "last_stage"
    takes_sketches = True
    takes_several_layers = True

    def call_rows(self, y_true: Any, y_pred: Any, rows: slice | None) -> Any:
        """Returns the values of some examples, from their rows of the matrices."""
        return sum(similarity_preserving(teacher, student, rows) for teacher, student in stages(y_true, y_pred))
