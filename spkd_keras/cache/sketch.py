"""Random projections of activations, which keep the inner products between images nearly."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from spkd_keras.losses import similarity_matrix

SMALLEST = 64


def projection(size: int, sketch: int, seed: int) -> Any:
    """Returns a matrix of independent normal numbers of variance 1 / sketch, shape (size, sketch).

    Inner products of projected vectors are those of the vectors in the mean, and each is off by about
    |x| |y| / sqrt(sketch).

    Reference: Johnson & Lindenstrauss, "Extensions of Lipschitz mappings into a Hilbert space", 1984; Indyk & Motwani,
    STOC 1998, for normal numbers.
    """
    return tf.random.stateless_normal((size, sketch), seed=(seed, size)) / tf.sqrt(float(sketch))


class SketchError(NamedTuple):
    """What a sketch costs and keeps.

    Attributes:
        size: of the sketch; the number of values for no sketch.
        bytes_an_image: in the files.
        error: |G_sketch - G| / |G|, Frobenius norms of the batch's similarity matrices.
    """

    size: int
    bytes_an_image: int
    error: float


def sketch_errors(activations: Any, seed: int, store: str) -> list[SketchError]:
    """Measures sketches of 64, 128, ... values, and the values themselves, each rounded to the dtype of the files.

    Args:
        activations: of a batch, shape (batch, ...).
        seed: of the projections.
        store: "float16" or "float32".
    """
    flat = tf.reshape(tf.cast(activations, tf.float32), (activations.shape[0], -1))
    exact, values = similarity_matrix(flat), int(flat.shape[1])
    sizes = [SMALLEST << power for power in range(30) if SMALLEST << power < values]
    found = []
    for size in (*sizes, values):
        kept = flat if size == values else tf.matmul(flat, projection(values, size, seed))
        rounded = tf.cast(tf.cast(kept, store), tf.float32)
        error = tf.norm(similarity_matrix(rounded) - exact) / tf.norm(exact)
        found.append(SketchError(size, size * np.dtype(store).itemsize, float(error)))
    return found
