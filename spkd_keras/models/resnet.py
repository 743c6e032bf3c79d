"""Residual networks for small images."""

import numbers
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from spkd_keras.models import blocks, pretrained

WIDTHS = (16, 16, 32, 64)


def resnet(
    depth: int = 20,
    widths: Sequence[int] = WIDTHS,
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
    """ResNet-depth for small images: three stages of (depth - 2) / 6 residual blocks.

    Published are ResNet-20, 32, 56 and 110, and, with `widths=(32, 64, 128, 256)`, ResNet-8x4 and 32x4.

    | tap | output at 32x32 | |
    | --- | --- | --- |
    | `stage1` | 32x32x16 | after the last block's closing ReLU |
    | `stage2` | 16x16x32 | the same |
    | `stage3` | 8x8x64 | the same |
    | `logits` | classes | float32, no softmax |

    Args:
        depth: 6n + 2, for example 20 or 56.
        widths: channels of the stem and of the three stages.
        num_classes: at least 2.
        image_shape: (height, width, channels), sides of at least 4.
        weights: None for random ones, or the path of a `.keras` or `.weights.h5` file of the same network.
        skip_head: whether to leave `logits` as initialised when the weights are loaded, for other classes.
        mean: of the pixels in 0..255 units, a number or one for each channel; None is 127.5.
        std: the same; None is 127.5.
        synchronized: whether BatchNormalization is synchronised across replicas; None does so where the network is
            built under a strategy with several replicas.
        name: default `resnet_<depth>`, followed by the widths where they are not the default.

    Returns:
        A functional model from `image`, shape (batch, *image_shape), pixels 0..255, to `logits`,
        shape (batch, num_classes).

    Raises:
        ValueError: if an argument is out of range, or the weights are not of this network.

    Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2, with a 1x1 convolution
    and BatchNormalization as shortcut where the shape changes, as in the code that published results on these use.
    """
    if not isinstance(depth, numbers.Integral) or depth < 8 or (depth - 2) % 6:
        raise ValueError(f"`depth` must be 6n + 2, for example 20 or 56. Received: depth={depth!r}.")
    channels = tuple(np.asarray(widths).tolist()) if isinstance(widths, Sequence | np.ndarray) else ()
    if len(channels) != 4 or not all(type(count) is int and count > 0 for count in channels):
        raise ValueError(
            "`widths` must be the channels of the stem and of three stages, for example (16, 16, 32, 64). "
            f"Received: widths={widths!r}."
        )
    shape = blocks.check_arguments(1, num_classes, image_shape, total_stride=4)
    normalize = partial(blocks.batch_normalization, synchronized=synchronized)
    image, x = blocks.image_input(shape, mean, std)
    x = blocks.convolution(x, channels[0], 3, name="stem")
    x = normalize(x, name="stem_bn")
    x = layers.ReLU(name="stem_relu")(x)
    blocks_per_stage = (depth - 2) // 6
    for count, place in blocks.in_stages([(count,) * blocks_per_stage for count in channels[1:]]):
        x = _residual_block(x, count, place, normalize)
    suffix = "" if channels == WIDTHS else "".join(f"_{count}" for count in channels)
    model = blocks.classifier(image, x, num_classes, name or f"resnet_{depth}{suffix}")
    return pretrained.load(model, weights, skip_head)


def _residual_block(x: Any, channels: int, place: blocks.Place, normalize: Any) -> Any:
    """Two 3x3 convolutions; a 1x1 convolution as shortcut where the shape changes; ReLU behind the sum."""
    prefix, shortcut = place.prefix, x
    if place.stride > 1 or shortcut.shape[-1] != channels:
        shortcut = blocks.convolution(x, channels, 1, place.stride, name=f"{prefix}_shortcut")
        shortcut = normalize(shortcut, name=f"{prefix}_shortcut_bn")
    x = blocks.convolution(x, channels, 3, place.stride, name=f"{prefix}_conv1")
    x = normalize(x, name=f"{prefix}_bn1")
    x = layers.ReLU(name=f"{prefix}_relu1")(x)
    x = blocks.convolution(x, channels, 3, name=f"{prefix}_conv2")
    x = normalize(x, name=f"{prefix}_bn2")
    x = layers.Add(name=f"{prefix}_sum")([shortcut, x])
    return layers.ReLU(name=place.output)(x)
