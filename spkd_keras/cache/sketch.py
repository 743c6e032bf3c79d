"""Random projections of activations, which keep the inner products between images nearly."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from spkd_keras.losses import similarity_matrix

SMALLEST, DOUBLINGS = 64, 7  # sketches that are measured, up to 4096: larger ones save little and take long
ROWS = 4096  # of a projection that are drawn at once
LARGEST_HELD = 2**28  # numbers of a projection; a larger one is drawn anew for each batch


def projection(size: int, sketch: int, seed: int) -> Any:
    """Returns a matrix of independent normal numbers of variance 1 / sketch, shape (size, sketch).

    Inner products of projected vectors are those of the vectors in the mean, and each is off by about
    |x| |y| / sqrt(sketch).

    Reference: Johnson & Lindenstrauss, "Extensions of Lipschitz mappings into a Hilbert space", 1984; Indyk & Motwani,
    STOC 1998, for normal numbers.
    """
    return tf.concat(list(_rows(size, sketch, seed)), axis=0)


def projector(size: int, sketch: int, seed: int) -> Callable[[Any], Any]:
    """Returns a function from activations, shape (batch, size), to their products with `projection`."""
    if size * sketch > LARGEST_HELD:
        return lambda flat: _projected(flat, sketch, seed)
    matrix = projection(size, sketch, seed)
    return lambda flat: tf.matmul(flat, matrix)


def _rows(size: int, sketch: int, seed: int) -> Iterator[Any]:
    """Yields the rows of a projection, some at a time: of wide taps the whole would not fit into the memory."""
    for start in range(0, size, ROWS):
        rows = min(ROWS, size - start)
        yield tf.random.stateless_normal((rows, sketch), seed=(seed, start)) / tf.sqrt(float(sketch))


def _projected(flat: Any, sketch: int, seed: int) -> Any:
    """Returns flat @ projection, which is never there as a whole."""
    parts = tf.split(flat, [min(ROWS, flat.shape[1] - start) for start in range(0, flat.shape[1], ROWS)], axis=1)
    rows = _rows(int(flat.shape[1]), sketch, seed)
    return tf.add_n([tf.matmul(part, some) for part, some in zip(parts, rows, strict=True)])


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
    """Measures sketches of 64, 128, ... 4096 values, and the values themselves, each rounded to the dtype of the files.

    Args:
        activations: of a batch, shape (batch, ...).
        seed: of the projections.
        store: "float16" or "float32".
    """
    flat = tf.reshape(tf.cast(activations, tf.float32), (activations.shape[0], -1))
    exact, values = similarity_matrix(flat), int(flat.shape[1])
    sizes = [size for size in (SMALLEST << power for power in range(DOUBLINGS)) if size < values]
    found = []
    for size in (*sizes, values):
        kept = flat if size == values else _projected(flat, size, seed)
        rounded = tf.cast(tf.cast(kept, store), tf.float32)
        error = tf.norm(similarity_matrix(rounded) - exact) / tf.norm(exact)
        found.append(SketchError(size, size * np.dtype(store).itemsize, float(error)))
    return found
