"""The functions that an export consists of: pixels, or bytes of pictures, to logits and probabilities."""

from typing import Any

import keras
import tensorflow as tf

from spkd_keras.data.augmentation import central_crop, decode
from spkd_keras.export.metadata import INPUT_DTYPES, Metadata

DECODED_CHANNELS = (1, 3)  # that pictures can be decoded to


class Serving:
    """An inference network as TensorFlow functions, with nothing else attached to them.

    Args:
        network: of `inference_network`.
        metadata: of the export.

    Attributes:
        module: what is saved: the functions, and each variable once, under its layer's name.
        by_dtype: the function for uint8 and the one for float32 pixels; input `image`.
    """

    def __init__(self, network: keras.Model, metadata: Metadata) -> None:
        self.metadata = metadata
        height, width, channels = metadata.image_shape

        def classify(image: Any) -> dict[str, Any]:
            logits = network(tf.cast(image, tf.float32), training=False)
            return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

        def classify_bytes(image_bytes: Any) -> dict[str, Any]:
            def read(encoded: Any) -> Any:
                return read_picture(encoded, metadata.image_shape, metadata.resize)

            return classify(tf.map_fn(read, image_bytes, fn_output_signature=tf.uint8))

        # The network itself is not attached: Keras would have its variables written a second time.
        self.module = tf.Module()
        self.module.weights = {weight.path: weight.value for weight in network.weights}
        self.module.__call__ = tf.function(classify)
        self.by_dtype = {
            dtype: self.module.__call__.get_concrete_function(
                tf.TensorSpec((None, height, width, channels), dtype, name="image")
            )
            for dtype in INPUT_DTYPES
        }
        self.signatures = {f"serving_{dtype}": function for dtype, function in self.by_dtype.items()}
        self.signatures["serving_default"] = self.function
        if channels in DECODED_CHANNELS:
            self.signatures["serving_bytes"] = tf.function(classify_bytes).get_concrete_function(
                tf.TensorSpec((None,), tf.string, name="image_bytes")
            )

    @property
    def function(self) -> Any:
        """The concrete function for pixels of the dtype that the metadata say."""
        return self.by_dtype[self.metadata.input_dtype]


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

    def scaled() -> Any:
        pixels = tf.image.resize(image, (height, width), antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(pixels), 0, 255), tf.uint8)

    fits = tf.logical_and(shape[0] == height, shape[1] == width)
    return tf.ensure_shape(tf.cond(fits, lambda: image, scaled), image_shape)
