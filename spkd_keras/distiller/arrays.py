"""The arrays that `fit` is given, in another order in every epoch."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from spkd_keras.distiller.labels import as_classes
from spkd_keras.distiller.strategies import agreed_seed
from spkd_keras.prefetching import prefetched


def in_new_orders(
    x: Any, y: Any, batch_size: int | None, options: dict[str, Any], epoch: Callable[[], int]
) -> tuple[Any, Any, int | None, dict[str, Any]]:
    """Turns arrays to be shuffled into batches whose order is another one in every epoch.

    After `keras.utils.set_random_seed`, Keras (3.15) shuffles arrays alike in every epoch, so that a loss over the
    pairs of a batch would see the same few pairs all along. Here it is a function of that seed and of the epoch, so
    that a training that goes on sees what it would have seen. `tests/test_arrays.py` says when this can go.

    Args:
        x: images, or several arrays in any structure.
        y: labels, likewise; or None.
        batch_size: None for Keras' default, 32.
        options: the other arguments of `fit`.
        epoch: gives the epoch when its first batch is asked for.

    Returns:
        The same arguments, with a dataset in the place of the arrays; unchanged if x is anything else than NumPy arrays
        and tensors, if nothing is to be shuffled, if `steps_per_epoch` divides them, if several outputs share weights,
        and where Keras will refuse them.
    """
    unchanged = x, y, batch_size, options
    arrays = keras.tree.lists_to_tuples((x, y, options.get("sample_weight")))
    leaves = [leaf for leaf in keras.tree.flatten(arrays) if leaf is not None]
    class_weight = options.get("class_weight")
    if options.get("shuffle", True) is not True or options.get("steps_per_epoch") is not None:
        return unchanged
    if (arrays[2] is not None or class_weight is not None) and (y is None or keras.tree.is_nested(y)):
        return unchanged  # Keras gives each output the weights, or refuses
    if arrays[2] is not None and class_weight is not None:
        return unchanged
    if not all(isinstance(leaf, np.ndarray | tf.Tensor) and leaf.ndim > 0 for leaf in leaves):
        return unchanged
    counts = {len(leaf) for leaf in leaves}
    validated = options.get("validation_split") if options.get("validation_data") is None else None
    count = math.floor(max(counts) * (1.0 - (validated or 0.0)))
    if len(counts) > 1 or not 0 < count <= max(counts) or (validated and count == max(counts)):
        return unchanged
    taken_over = ("sample_weight", "class_weight", "validation_split")
    options = {name: value for name, value in options.items() if name not in taken_over}
    options |= {"shuffle": False, "validation_batch_size": options.get("validation_batch_size") or batch_size}
    if validated:
        options["validation_data"] = _parts(arrays, slice(count, None))
    x, y, weights = _parts(arrays, slice(count))
    weights = weights if class_weight is None else _weights_of(y, class_weight)
    batches = _shuffled(keras.utils.pack_x_y_sample_weight(x, y, weights), count, batch_size or 32, epoch)
    return batches, None, None, options


def _parts(arrays: Any, places: slice) -> Any:
    return keras.tree.map_structure(lambda array: None if array is None else array[places], arrays)


def _weights_of(y: Any, class_weight: dict[Any, float]) -> np.ndarray:
    """Returns the weight of each image by its class, as Keras does for arrays: 1 for a class that has none."""
    weights = [class_weight.get(label, 1.0) for label in as_classes(y).tolist()]
    return np.array(weights, keras.config.floatx())


def _shuffled(arrays: Any, count: int, batch_size: int, epoch: Callable[[], int]) -> tf.data.Dataset:
    # Of the state that `keras.utils.set_random_seed` sets; the next `fit` gets another one.
    seed = agreed_seed(tf.distribute.get_strategy())

    def places_of_batches() -> Iterator[np.ndarray]:
        order = np.random.default_rng((seed, epoch())).permutation(count)
        for start in range(0, count, batch_size):
            yield order[start : start + batch_size]

    def taken(array: Any, places: Any) -> Any:
        part = tf.gather(array, places)
        # As Keras does with arrays.
        return tf.cast(part, keras.config.floatx()) if part.dtype.is_floating else part

    def batch(places: Any, arrays: Any) -> Any:
        return tf.nest.map_structure(lambda array: taken(array, places), arrays)

    # Where all batches are whole their size is known, as from Keras.
    spec = tf.TensorSpec((batch_size if count % batch_size == 0 else None,), tf.int64)
    places = tf.data.Dataset.from_generator(places_of_batches, output_signature=spec)
    places = places.apply(tf.data.experimental.assert_cardinality(-(-count // batch_size)))
    # An element and not a constant of the graph, which must be under 2 GB.
    held = tf.data.Dataset.from_tensors(arrays).repeat()
    return prefetched(tf.data.Dataset.zip(places, held).map(batch, tf.data.AUTOTUNE))
