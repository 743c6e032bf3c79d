"""The functions that an export consists of: pixels, or bytes of pictures, to logits and probabilities."""

from typing import Any

import keras
import tensorflow as tf

from spkd_keras.data.augmentation import central_crop, decode, scaled
from spkd_keras.experiment import ClearError
from spkd_keras.export.formats import INPUT_DTYPES
from spkd_keras.export.metadata import Metadata

DECODED_CHANNELS = (1, 3)  # that pictures can be decoded to


class NotConvertible(ClearError, RuntimeError):  # noqa: N818  (it says what a network is)
    """A format has not what a network computes with. The message is one clear line."""


class Serving:
    """An inference network as TensorFlow functions, with nothing else attached to them.

    Args:
        network: of `inference_network`.
        metadata: of the export.

    Attributes:
        module: what is saved: the functions, and each variable once, under its layer's name.
        classify: the TensorFlow function from pixels to outputs.
    """

    def __init__(self, network: keras.Model, metadata: Metadata) -> None:
        self.metadata = metadata

        def classify(image: Any) -> dict[str, Any]:
            logits = network(tf.cast(image, tf.float32), training=False)
            return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

        # The network itself is not attached: Keras would have its variables written a second time.
        self.module = tf.Module()
        self.module.weights = {weight.path: weight.value for weight in network.weights}
        self.module.__call__ = self.classify = tf.function(classify)

    @property
    def pixel_spec(self) -> tf.TensorSpec:
        """The input of the dtype that the metadata say."""
        return self._spec(self.metadata.input_dtype)

    @property
    def function(self) -> Any:
        """The concrete function for it."""
        return self.classify.get_concrete_function(self.pixel_spec)

    def signatures(self) -> dict[str, Any]:
        """Returns the concrete functions by the names that TensorFlow Serving's clients use."""
        found = {f"serving_{dtype}": self.classify.get_concrete_function(self._spec(dtype)) for dtype in INPUT_DTYPES}
        found["serving_default"] = self.function
        if self.metadata.image_shape[2] in DECODED_CHANNELS:
            found["serving_bytes"] = tf.function(self._classify_bytes).get_concrete_function(
                tf.TensorSpec((None,), tf.string, name="image_bytes")
            )
        return found

    def _spec(self, dtype: str) -> tf.TensorSpec:
        return tf.TensorSpec((None, *self.metadata.image_shape), dtype, name="image")

    def _classify_bytes(self, image_bytes: Any) -> dict[str, Any]:
        def read(encoded: Any) -> Any:
            return read_picture(encoded, self.metadata.image_shape, self.metadata.resize)

        outputs: dict[str, Any] = self.classify(tf.map_fn(read, image_bytes, fn_output_signature=tf.uint8))
        return outputs


def read_picture(encoded: Any, image_shape: tuple[int, int, int], resize: str) -> Any:
    """Decodes a JPEG, PNG, GIF or BMP, JPEG exactly, and brings it to the size of the input.

    Args:
        encoded: bytes, a scalar string.
        image_shape: (height, width, channels), with 1 or 3 channels.
        resize: "crop" or "stretch", as in `Metadata`; a crop is of a square size.

    Returns:
        Shape `image_shape`, uint8.
    """
    height, width, channels = image_shape
    if resize == "crop":
        return central_crop(encoded, height)
    image = decode(encoded, channels)
    shape = tf.shape(image)
    fits = tf.logical_and(shape[0] == height, shape[1] == width)
    return tf.ensure_shape(tf.cond(fits, lambda: image, lambda: scaled(image, height, width)), image_shape)
