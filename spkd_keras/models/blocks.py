"""The functional pieces that every network is made of."""

import math
import numbers
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from spkd_keras.models.normalization import BatchNormalization

PixelStatistics = float | Sequence[float] | np.ndarray | None


class Place(NamedTuple):
    """Where a block is in its network.

    Attributes:
        stride: 2 for the first block of every stage but `stage1`, else 1.
        prefix: of the names of the layers inside, `stage2_block0`.
        output: name of the layer that gives the block's output: `stage2` for the last block of a stage, else `prefix`.
    """

    stride: int
    prefix: str
    output: str


def in_stages(stages: Sequence[Sequence[Any]], start: int = 1) -> Iterator[tuple[Any, Place]]:
    """Yields every row of a network's table, a row for each block of each stage, with the block's place."""
    for stage, rows in enumerate(stages, start):
        for index, row in enumerate(rows):
            prefix = f"stage{stage}_block{index}"
            is_last = index == len(rows) - 1
            yield row, Place(2 if stage > 1 and index == 0 else 1, prefix, f"stage{stage}" if is_last else prefix)


def scale_channels(channels: float, width: float, divisor: int = 1, truncated: bool = True) -> int:
    """Returns the number of channels at a width multiplier.

    It is int(channels * width), or channels * width where that is not `truncated`, rounded to the nearest multiple of
    `divisor` that is at least 90% of it, and at least one `divisor`.
    """
    scaled = int(channels * width) if truncated else channels * width
    rounded = max(divisor, int(scaled + divisor // 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * scaled else rounded + divisor


def check_arguments(
    width: float, num_classes: int, image_shape: Sequence[int], total_stride: int
) -> tuple[int, int, int]:
    """Checks what all builders have in common and returns the image shape as a tuple of Python's integers.

    Args:
        width: above 0.
        num_classes: at least 2.
        image_shape: (height, width, channels), each side at least `total_stride`.
        total_stride: product of the network's strides.

    Raises:
        ValueError: if one of them is out of range.
    """
    if isinstance(width, bool) or not isinstance(width, numbers.Real) or not 0 < width < math.inf:
        raise ValueError(f"`width` must be finite and above 0, for example 1 or 0.5. Received: width={width!r}.")
    if isinstance(num_classes, bool) or not isinstance(num_classes, numbers.Integral) or num_classes < 2:
        raise ValueError(f"`num_classes` must be an integer of at least 2. Received: num_classes={num_classes!r}.")
    shape = tuple(image_shape) if isinstance(image_shape, Iterable) else ()
    whole = (isinstance(side, numbers.Integral) and type(side) is not bool and side > 0 for side in shape)
    if len(shape) != 3 or not all(whole):
        raise ValueError(
            "`image_shape` must be (height, width, channels), for example (32, 32, 3). "
            f"Received: image_shape={image_shape!r}."
        )
    if min(shape[:2]) < total_stride:
        raise ValueError(
            f"`image_shape` must be at least {total_stride}x{total_stride}, the product of the network's strides. "
            f"Received: image_shape={image_shape}. Resize the images."
        )
    return int(shape[0]), int(shape[1]), int(shape[2])


def image_input(image_shape: tuple[int, int, int], mean: PixelStatistics, std: PixelStatistics) -> tuple[Any, Any]:
    """Returns the input `image` (pixels 0..255) and the normalised image after the layer `preprocessing`.

    Args:
        image_shape: (height, width, channels).
        mean: a number or one for each channel, in 0..255 units. None, with std None too: x / 127.5 - 1.
        std: the same for the standard deviation.

    Raises:
        ValueError: if only one of them is given, a number of values is not that of the channels, or std is not above 0.
    """
    if (mean is None) != (std is None):
        raise ValueError(f"`mean` and `std` must be given together. Received: mean={mean}, std={std}.")
    if mean is None or std is None:
        mean, std = 127.5, 127.5
    per_channel = {}
    for name, given in (("mean", mean), ("std", std)):
        try:
            values = np.asarray(given).flatten().tolist()
        except ValueError:  # of lists of several lengths
            values = []
        numeric = all(type(value) in (int, float) and math.isfinite(value) for value in values)
        if not numeric or len(values) not in (1, image_shape[-1]):
            raise ValueError(
                f"`{name}` must be one number or one for each of the {image_shape[-1]} channels. "
                f"Received: {name}={given!r}."
            )
        per_channel[name] = values * (image_shape[-1] // len(values))
    if not min(per_channel["std"]) > 0:
        raise ValueError(f"`std` must be above 0, in 0..255 units. Received: std={std}.")
    scale = [1 / deviation for deviation in per_channel["std"]]
    offset = [-center / deviation for center, deviation in zip(per_channel["mean"], per_channel["std"], strict=True)]
    if keras.config.image_data_format() != "channels_last":
        raise ValueError("The networks are built for channels_last. Call keras.config.set_image_data_format.")
    image = keras.Input(image_shape, name="image")
    # float32 whatever the policy: float16 and bfloat16 would round the pixels.
    return image, layers.Rescaling(scale, offset, dtype="float32", name="preprocessing")(image)


def he_normal() -> keras.initializers.Initializer:
    """He-normal initialisation by the fan-out, not cut off, as the published recipes have it."""
    return keras.initializers.VarianceScaling(2.0, mode="fan_out", distribution="untruncated_normal")


def convolution(x: Any, channels: int, kernel: int, stride: int = 1, *, name: str) -> Any:
    """A convolution without bias, "same" padding."""
    return layers.Conv2D(
        channels, kernel, stride, padding="same", use_bias=False, kernel_initializer=he_normal(), name=name
    )(x)


def depthwise_convolution(x: Any, stride: int, *, name: str) -> Any:
    """A 3x3 convolution of each channel by itself, without bias, "same" padding."""
    return layers.DepthwiseConv2D(
        3, stride, padding="same", use_bias=False, depthwise_initializer=he_normal(), name=name
    )(x)


def batch_normalization(x: Any, *, synchronized: bool | None, epsilon: float = 1e-5, name: str) -> Any:
    """Batch normalisation with the published recipes' constants.

    PyTorch's momentum of 0.1 is Keras' 0.9. `synchronized=None` synchronises the statistics across replicas when
    the network is built under a strategy that has several.
    """
    if synchronized not in (None, True, False):
        raise ValueError(f"`synchronized` must be True, False or None. Received: synchronized={synchronized!r}.")
    if synchronized is None:
        synchronized = tf.distribute.get_strategy().num_replicas_in_sync > 1
    return BatchNormalization(momentum=0.9, epsilon=epsilon, synchronized=synchronized, name=name)(x)


def classifier(image: Any, x: Any, num_classes: int, name: str) -> keras.Model:
    """Returns the network: global average pooling and a dense layer `logits`, in float32 whatever the policy."""
    x = layers.GlobalAveragePooling2D(name="pooling")(x)
    return keras.Model(image, layers.Dense(int(num_classes), dtype="float32", name="logits")(x), name=name)
