"""Images to batches, in an order that is a function of seed, epoch and position alone."""

from typing import Any

import keras
import tensorflow as tf

from spkd_keras.data.splits import Images


class EpochClock(keras.callbacks.Callback):
    """Tells the data which epoch begins, so that a resumed training sees what an uninterrupted one would.

    Attributes:
        epoch: an int64 variable that the pipeline reads when an epoch's first batch is asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.epoch = tf.Variable(0, dtype=tf.int64, trainable=False)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the epoch."""
        del logs
        self.epoch.assign(epoch)


def training_batches(images: Images, batch_size: int, seed: int, clock: EpochClock) -> tf.data.Dataset:
    """Returns one epoch of shuffled batches each time it is iterated; pass `clock` to `fit` among the callbacks.

    Keras' own shuffling and stateful random ops repeat the same order in every epoch, or depend on the process.
    A loss over the composition of batches needs new batches every epoch.

    Args:
        images: in memory.
        batch_size: the last batch is smaller where the number of images asks for it.
        seed: of the order.
        clock: gives the epoch.

    Returns:
        Batches of (pixels, labels), shapes (batch, height, width, channels) uint8 and (batch,).
    """
    count = len(images)

    def order(_: Any) -> tf.data.Dataset:
        shuffled = tf.random.experimental.stateless_shuffle(tf.range(count), seed=tf.stack([seed, clock.epoch]))
        return tf.data.Dataset.from_tensor_slices(shuffled)

    indices = tf.data.Dataset.range(1).flat_map(order).apply(tf.data.experimental.assert_cardinality(count))
    return _gathered(indices.batch(batch_size), images)


def evaluation_batches(images: Images, batch_size: int) -> tf.data.Dataset:
    """Returns all images in their order, as batches of (pixels, labels)."""
    return _gathered(tf.data.Dataset.range(len(images)).batch(batch_size), images)


def _gathered(batches_of_indices: tf.data.Dataset, images: Images) -> tf.data.Dataset:
    """Takes whole batches from memory in one operation each."""
    pixels, labels = tf.constant(images.pixels), tf.constant(images.labels)
    batches = batches_of_indices.map(
        lambda index: (tf.gather(pixels, index), tf.gather(labels, index)),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    return batches.prefetch(tf.data.AUTOTUNE)
