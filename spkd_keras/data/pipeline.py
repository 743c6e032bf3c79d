"""Images to batches, in an order that is a function of seed, epoch and position alone."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from spkd_keras.data.augmentation import Augmentation, Mixer, central_crop, crop_and_flip, random_resized_crop
from spkd_keras.data.splits import AnyImages, Images, Photos
from spkd_keras.prefetching import prefetched


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

    def read(self, element: Any) -> Any:
        """Returns the epoch, in the graph of a pipeline that has come to this element.

        Where operations must be deterministic, TensorFlow (2.21) takes the prefetching and the threads from a pipeline
        with an operation that has state, as reading a variable is. `tests/test_workarounds.py` says when this can go.
        """
        variable = self.epoch  # and no more of this: TensorFlow keeps what a pipeline calls until the process ends
        epoch = tf.numpy_function(lambda _: variable.numpy(), [element], tf.int64, stateful=False)
        return tf.ensure_shape(epoch, ())


def check_augmentation(images: AnyImages, augmentation: Augmentation) -> None:
    """Checks that an augmentation can be done to images.

    Raises:
        ValueError: if it is another kind's, the images are too small for it, or two of its parts exclude each other.
    """
    wanted = {"cifar": Images, "imagenet": Photos}.get(augmentation.name)
    if wanted is not None and not isinstance(images, wanted):
        raise ValueError(
            "`augmentation` must be none or cifar for images of one size, none or imagenet for photos of different "
            f"sizes. Received: {augmentation.name}."
        )
    if augmentation.name == "cifar" and min(images.image_shape[:2]) < 5:
        raise ValueError(f"`augmentation` cifar needs sides of at least 5. Received: {images.image_shape}.")
    if augmentation.randaugment > 0 and images.image_shape[-1] != 3:
        raise ValueError(f"`randaugment` needs 3 channels. Received: images of shape {images.image_shape}.")
    Mixer(augmentation)


def training_batches(
    images: AnyImages,
    batch_size: int,
    seed: int,
    clock: EpochClock,
    augmentation: Augmentation | None = None,
    skip: int = 0,
) -> tf.data.Dataset:
    """Returns one epoch of shuffled, augmented batches each time it is iterated; pass `clock` to `fit` as a callback.

    Keras' own shuffling and stateful random ops repeat the same order in every epoch, or depend on the process.
    A loss over the composition of batches needs new batches every epoch. Here the place of an image and the two
    integers that its augmentation is made of are drawn for a whole epoch at once, from seed and epoch.

    Args:
        images: to train on.
        batch_size: the last batch is smaller where the number of images asks for it.
        seed: of order and augmentation.
        clock: gives the epoch.
        augmentation: what is done to the images; None for nothing.
        skip: how many batches to leave out at the beginning of each epoch.

    Returns:
        Batches of (pixels, labels), shapes (batch, height, width, channels) uint8 and (batch,), or (batch, classes)
        where labels are mixed.

    Raises:
        ValueError: as `check_augmentation`.
    """
    augmentation = augmentation or Augmentation()
    check_augmentation(images, augmentation)
    count, classes, mixer = len(images), len(images.class_names), Mixer(augmentation)

    def places(element: Any) -> tf.data.Dataset:
        key = tf.stack([seed, clock.read(element)])
        order = _order(count, key)
        seeds = tf.random.stateless_uniform([count, 2], tf.random.fold_in(key, 1), None, None, tf.int32)
        return tf.data.Dataset.from_tensor_slices((order, seeds)).skip(skip * batch_size)

    def finished(pixels: Any, labels: Any, seeds: Any) -> tuple[Any, Any]:
        labels = tf.one_hot(labels, classes) if augmentation.mixes_labels else labels
        return mixer(pixels, labels, seeds[0])

    order = _one_epoch(places, max(0, count - skip * batch_size))
    return prefetched(_map(_taken(order, images, batch_size, augmentation.name), finished))


def view_batches(
    images: AnyImages,
    batch_size: int,
    seed: int | None,
    clock: EpochClock,
    augmentation: Augmentation,
    views: int,
    view_seed: int,
    skip: int = 0,
) -> tf.data.Dataset:
    """As `training_batches`, of images that have a fixed number of augmented views each, which take turns.

    Epoch e shows view e modulo `views` of every image, in the order of `training_batches`.

    Args:
        images: to train on.
        batch_size: as there.
        seed: of the order; None for that of the images.
        clock: gives the epoch.
        augmentation: of what is done to one image at a time.
        views: how many there are.
        view_seed: of the views.
        skip: as there.

    Returns:
        Batches of (pixels, labels, numbers), with int64 numbers view * images + image, shape (batch,).

    Raises:
        ValueError: as `check_augmentation`, or if an augmentation needs the other images of a batch.
    """
    check_augmentation(images, augmentation)
    if augmentation.mixup > 0 or augmentation.cutmix > 0 or augmentation.randaugment > 0:
        raise ValueError(
            "`augmentation` by mixup, cutmix or randaugment is of whole batches, so that an image has no views of its "
            f"own. Received: {augmentation}."
        )
    count = len(images)

    def places(element: Any) -> tf.data.Dataset:
        epoch = clock.read(element)
        view = tf.math.floormod(epoch, views)
        # Of all views as one epoch each, so that more views are the same ones and others.
        seeds = tf.random.stateless_uniform([count, 2], tf.stack([view_seed, view]), None, None, tf.int32)
        order = tf.range(count) if seed is None else _order(count, tf.stack([seed, epoch]))
        numbers = view * count + tf.cast(order, tf.int64)
        return tf.data.Dataset.from_tensor_slices((order, tf.gather(seeds, order), numbers)).skip(skip * batch_size)

    order = _one_epoch(places, max(0, count - skip * batch_size))
    taken = _taken(order.map(lambda place, seeds, number: (place, seeds)), images, batch_size, augmentation.name)
    numbered = tf.data.Dataset.zip(taken, order.map(lambda place, seeds, number: number).batch(batch_size))
    return prefetched(_map(numbered, lambda taken, numbers: (taken[0], taken[1], numbers)))


def _one_epoch(places: Any, count: int) -> tf.data.Dataset:
    """What `places` gives when an epoch begins."""
    return tf.data.Dataset.range(1).flat_map(places).apply(tf.data.experimental.assert_cardinality(count))


def batch_places(count: int, batch_size: int, seed: int, epoch: int, batch: int) -> np.ndarray:
    """Returns which of the training images were in a batch of `training_batches`, in their order.

    Args:
        count: number of training images.
        batch_size: as there.
        seed: as there.
        epoch: counted from 0.
        batch: counted from 0.
    """
    order = _order(count, tf.constant([seed, epoch], tf.int64)).numpy()
    return order[batch * batch_size : (batch + 1) * batch_size]


def _order(count: int, key: Any) -> Any:
    return tf.random.experimental.stateless_shuffle(tf.range(count), seed=key)


def evaluation_batches(images: AnyImages, batch_size: int, one_hot: bool = False) -> tf.data.Dataset:
    """Returns all images in their order, as batches of (pixels, labels); labels as shares of classes if `one_hot`."""
    count, classes = len(images), len(images.class_names)
    order = tf.data.Dataset.from_tensor_slices((np.arange(count), np.zeros((count, 2), np.int32)))

    def finished(pixels: Any, labels: Any, seeds: Any) -> tuple[Any, Any]:
        del seeds
        return pixels, tf.one_hot(labels, classes) if one_hot else labels

    return prefetched(_map(_taken(order, images, batch_size, None), finished))


def _taken(order: tf.data.Dataset, images: AnyImages, batch_size: int, augmentation: str | None) -> tf.data.Dataset:
    """Batches of (pixels, labels, seeds), from (place, seeds of an image)."""
    labels = tf.constant(images.labels)
    if isinstance(images, Images):
        pixels = tf.constant(images.pixels)

        def take_batch(index: Any, seeds: Any) -> tuple[Any, Any, Any]:
            batch = tf.gather(pixels, index)
            return crop_and_flip(batch, seeds) if augmentation == "cifar" else batch, tf.gather(labels, index), seeds

        return _map(order.batch(batch_size), take_batch)  # a whole batch in few operations
    numbers, read, size = tf.constant(images.numbers), images.read, images.size

    def take_one(index: Any, seeds: Any) -> tuple[Any, Any, Any]:
        photo = read(numbers[index])
        cut = random_resized_crop(photo, seeds, size) if augmentation == "imagenet" else central_crop(photo, size)
        return cut, labels[index], seeds

    return _map(order, take_one).batch(batch_size)


def _map(dataset: tf.data.Dataset, function: Any) -> tf.data.Dataset:
    return dataset.map(function, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
