"""ShuffleNets of the second version."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from spkd_keras.models import blocks, pretrained

STEM_CHANNELS = 24
UNITS = (4, 8, 4)  # of stages 2, 3 and 4; the channels double from one to the next
# Published channels of stage 2 by width; between them, and to 0, lie straight lines.
CHANNELS = {0.0: 0, 0.5: 48, 1.0: 116, 1.5: 176, 2.0: 244}


def shufflenet_v2(
    width: float = 1.0,
    *,
    num_classes: int = 10,
    image_shape: Sequence[int] = (32, 32, 3),
    weights: str | Path | None = None,
    skip_head: bool = False,
    mean: blocks.PixelStatistics = None,
    std: blocks.PixelStatistics = None,
    synchronized: bool | None = None,
    name: str | None = None,
) -> keras.Model:
    """ShuffleNetV2-width for small images: no stride in the first convolution, no max-pooling.

    | tap | output at 32x32, width 1 | |
    | --- | --- | --- |
    | `stage1` | 32x32x24 | after the first convolution's ReLU |
    | `stage2` | 16x16x116 | after the last unit's channel shuffle, all channels behind a ReLU |
    | `stage3` | 8x8x232 | the same |
    | `stage4` | 4x4x464 | the same |
    | `head` | 4x4x1024 | after the closing 1x1 convolution's ReLU |
    | `logits` | classes | float32, no softmax |

    Stage 2 has 48, 116, 176 and 244 channels at width 0.5, 1, 1.5 and 2, as published, and a multiple of 4 on straight
    lines through these at other widths; the head has 1024 channels below width 2, else 2048.

    Args:
        width: above 0.
        num_classes: at least 2.
        image_shape: (height, width, channels), sides of at least 8; the strides are the same at any size.
        weights: None for random ones, or the path of a `.keras` or `.weights.h5` file of the same network.
        skip_head: whether to leave `logits` as initialised when the weights are loaded, for other classes.
        mean: of the pixels in 0..255 units, a number or one for each channel; None is 127.5.
        std: the same; None is 127.5.
        synchronized: whether BatchNormalization is synchronised across replicas; None does so where the network is
            built under a strategy with several replicas.
        name: default `shufflenet_v2_<width>`.

    Returns:
        A functional model from `image`, shape (batch, *image_shape), pixels 0..255, to `logits`,
        shape (batch, num_classes).

    Raises:
        ValueError: if an argument is out of range, or the weights are not of this network.

    Reference: Ma et al., "ShuffleNet V2", ECCV 2018, table 5 and figure 3.
    """
    shape = blocks.check_arguments(width, num_classes, image_shape, total_stride=8)
    normalize = partial(blocks.batch_normalization, synchronized=synchronized)
    image, x = blocks.image_input(shape, mean, std)
    x = blocks.convolution(x, STEM_CHANNELS, 3, name="stem")
    x = normalize(x, name="stem_bn")
    x = layers.ReLU(name="stage1")(x)
    channels = _stage2_channels(width)
    stages = [(channels * 2**index,) * units for index, units in enumerate(UNITS)]
    for channels, place in blocks.in_stages(stages, start=2):
        x = _unit(x, channels, place, normalize)
    x = blocks.convolution(x, 1024 if width < 2 else 2048, 1, name="head_conv")
    x = normalize(x, name="head_bn")
    x = layers.ReLU(name="head")(x)
    model = blocks.classifier(image, x, num_classes, name or f"shufflenet_v2_{width:g}")
    return pretrained.load(model, weights, skip_head)


def _stage2_channels(width: float) -> int:
    widest = max(CHANNELS)
    within = min(width, widest)
    return blocks.scale_channels(np.interp(within, list(CHANNELS), list(CHANNELS.values())), width / within, divisor=4)


def _unit(x: Any, channels: int, place: blocks.Place, normalize: Any) -> Any:
    """Half of the channels pass by; all of them are filtered on both ways where the unit halves the resolution."""
    prefix = place.prefix
    if place.stride == 1:
        shortcut, x = keras.ops.split(x, 2, axis=-1)
    else:
        shortcut = blocks.depthwise_convolution(x, place.stride, name=f"{prefix}_shortcut_depthwise")
        shortcut = normalize(shortcut, name=f"{prefix}_shortcut_depthwise_bn")
        shortcut = blocks.convolution(shortcut, channels // 2, 1, name=f"{prefix}_shortcut_conv")
        shortcut = normalize(shortcut, name=f"{prefix}_shortcut_bn")
        shortcut = layers.ReLU(name=f"{prefix}_shortcut_relu")(shortcut)
    x = blocks.convolution(x, channels // 2, 1, name=f"{prefix}_conv1")
    x = normalize(x, name=f"{prefix}_bn1")
    x = layers.ReLU(name=f"{prefix}_relu1")(x)
    x = blocks.depthwise_convolution(x, place.stride, name=f"{prefix}_depthwise")
    x = normalize(x, name=f"{prefix}_depthwise_bn")
    x = blocks.convolution(x, channels // 2, 1, name=f"{prefix}_conv2")
    x = normalize(x, name=f"{prefix}_bn2")
    x = layers.ReLU(name=f"{prefix}_relu2")(x)
    x = layers.Concatenate(name=f"{prefix}_concat")([shortcut, x])
    return _shuffle(x, prefix, place.output)


def _shuffle(x: Any, prefix: str, name: str) -> Any:
    """Interleaves the halves of the channels: 0, n/2, 1, n/2 + 1, ...

    Positions are flattened meanwhile, because converters know transposes of four dimensions best.
    """
    height, width, channels = x.shape[1:]
    x = layers.Reshape((height * width, 2, channels // 2), name=f"{prefix}_groups")(x)
    x = layers.Permute((1, 3, 2), name=f"{prefix}_interleave")(x)
    return layers.Reshape((height, width, channels), name=name)(x)
