"""Reading what TFDS has prepared."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from spkd_keras.data.augmentation import decode
from spkd_keras.data.prepare import check_prepared, find_builder
from spkd_keras.data.splits import AnyImages, Images, Photos

BATCH = 1000
# Of the machine and not of the files: to prepare the set again would not help.
NOT_DAMAGE = (
    MemoryError,
    PermissionError,
    ImportError,
    tf.errors.ResourceExhaustedError,
    tf.errors.PermissionDeniedError,
)
LARGEST_IN_MEMORY = 4 * 2**30  # bytes of a split's pixels, or of its encoded photos where they are not indexed


def prepared(name: str, size: int | None) -> tuple[Sequence[str], Callable[[str], AnyImages]]:
    """A data set that TFDS has prepared, or `spkd data prepare`.

    Images of one size are decoded into memory, if each split fits there. Else all of them are photos, those of the
    small splits too, so that every split is cropped and resized alike. Photos are read when they are needed: from disk
    where the set is prepared as array records, as `spkd data prepare` does, else from memory.

    Args:
        name: as TFDS has it, `cifar10` or `dtd/fold3`.
        size: side to which photos of different sizes are brought; they need it.

    Returns:
        The names of the splits, and a function that reads one.

    Raises:
        ValueError: if there is no such set, it is not prepared, or it is not one of images with one label each; the
            function, if it is too large for the memory.
    """
    builder = find_builder(name)
    check_prepared(builder)
    image, label = _keys(builder)
    class_names = tuple(builder.info.features[label].names)
    shape = builder.info.features[image].shape
    largest = max(split.num_examples for split in builder.info.splits.values())
    in_memory = None not in shape and largest * np.prod(shape) <= LARGEST_IN_MEMORY

    def read(split: str) -> AnyImages:
        if not in_memory and size is None:
            raise ValueError(f"The photos of {name} differ in size or are too many for the memory: give `image_size`.")
        if not in_memory and not _is_indexed(builder) and builder.info.splits[split].num_bytes > LARGEST_IN_MEMORY:
            raise ValueError(
                f"{builder.data_dir} is too large for the memory, and cannot be read out of order in the format "
                f"{builder.info.file_format.value}. Remove that folder: `spkd data prepare {name}` then writes it as "
                "array records."
            )
        try:
            if in_memory:
                return _in_memory(builder, split, image, label, class_names)
            return _photos(builder, split, image, label, class_names, int(size or 0))
        except NOT_DAMAGE:
            raise
        except Exception as error:  # whatever TensorFlow or array_record make of damaged files
            raise ValueError(
                f"The {split} part of {builder.data_dir} cannot be read; remove that folder and run "
                f"`spkd data prepare {name}` again: {_reason(error)}"
            ) from error

    return list(map(str, builder.info.splits)), read


def _reason(error: Exception) -> str:
    """What an error says, without where in a graph it was."""
    places = ("Graph execution error", "Detected at node", 'File "', "[[")
    told = [line for line in str(error).splitlines() if not line.lstrip().startswith(places)]
    return " ".join(" ".join(told).split())[:200]


def _keys(builder: Any) -> tuple[str, str]:
    """Returns the names of the features that are the image and the label."""
    features = builder.info.features
    images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    supervised = builder.info.supervised_keys or ()
    images = [key for key in images if key in supervised] or images
    labels = [key for key in labels if key in supervised] or labels
    if len(images) != 1 or len(labels) != 1:
        raise ValueError(
            f"{builder.info.full_name} must have one image and one label. Received: {', '.join(features)}."
        )
    return images[0], labels[0]


def _in_memory(builder: Any, split: str, image: str, label: str, class_names: tuple[str, ...]) -> Images:
    count = builder.info.splits[split].num_examples
    shape = builder.info.features[image].shape
    pixels, labels, start = np.empty((count, *shape), np.uint8), np.empty(count, np.int64), 0

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])  # made once, for all batches
    def decoded(encoded: Any) -> Any:
        one = functools.partial(decode, channels=shape[-1])
        return tf.map_fn(one, encoded, fn_output_signature=tf.TensorSpec(shape, tf.uint8))

    for encoded, batch_labels in _batches(builder, split, image, label):
        end = start + len(batch_labels)
        pixels[start:end] = decoded(tf.constant(encoded))
        labels[start:end] = batch_labels
        start = end
    if start != count:
        raise ValueError(f"there are {start} images where {count} were written")
    return Images(pixels, labels, class_names)


def _batches(builder: Any, split: str, image: str, label: str) -> Iterator[tuple[list[bytes], Any]]:
    """Yields encoded images and their labels."""
    undecoded = {image: tfds.decode.SkipDecoding()}
    if _is_indexed(builder):
        examples = builder.as_data_source(split, decoders=undecoded)
        for start in range(0, len(examples), BATCH):
            some = [examples[index] for index in range(start, min(start + BATCH, len(examples)))]
            yield [example[image] for example in some], np.array([example[label] for example in some])
    else:
        for batch in builder.as_dataset(split, decoders=undecoded, batch_size=BATCH).as_numpy_iterator():
            yield batch[image], batch[label]


def _photos(builder: Any, split: str, image: str, label: str, class_names: tuple[str, ...], size: int) -> Photos:
    count = builder.info.splits[split].num_examples
    undecoded = {image: tfds.decode.SkipDecoding()}
    if _is_indexed(builder):
        examples = builder.as_data_source(split, decoders=undecoded)
        labels = np.array([examples[index][label] for index in range(count)], np.int64)

        def read(number: Any) -> Any:
            encoded = tf.numpy_function(lambda index: examples[int(index)][image], [number], tf.string, stateful=False)
            return tf.ensure_shape(encoded, ())

        return Photos(read, np.arange(count), labels, class_names, size)
    found = list(builder.as_dataset(split, decoders=undecoded).as_numpy_iterator())
    encoded, labels = (
        tf.constant([example[image] for example in found]),
        np.array([example[label] for example in found]),
    )
    return Photos(lambda number: encoded[number], np.arange(count), labels, class_names, size)


def _is_indexed(builder: Any) -> bool:
    """Whether examples can be read in any order."""
    return builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
