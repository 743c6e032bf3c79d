"""Wide residual networks."""

import numbers
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
from keras import layers

from spkd_keras.models import blocks, pretrained

CHANNELS = (16, 32, 64)  # of the stages, before widening


def wide_resnet(
    depth: int = 16,
    width: float = 1,
    *,
    num_classes: int = 10,
    image_shape: Sequence[int] = (32, 32, 3),
    dropout: float = 0.0,
    weights: str | Path | None = None,
    skip_head: bool = False,
    mean: blocks.PixelStatistics = None,
    std: blocks.PixelStatistics = None,
    synchronized: bool | None = None,
    name: str | None = None,
) -> keras.Model:
    """WideResNet-depth-width: three groups of (depth - 4) / 6 pre-activation residual blocks.

    | tap | output at 32x32 | |
    | --- | --- | --- |
    | `stage1` | 32x32x16k | sum of the last block, before any activation |
    | `stage2` | 16x16x32k | the same |
    | `stage3` | 8x8x64k | the same |
    | `head` | 8x8x64k | after the final BatchNormalization and ReLU |
    | `logits` | classes | float32, no softmax |

    Args:
        depth: 6n + 4, for example 16, 28 or 40.
        width: multiplier k of the channels, above 0.
        num_classes: at least 2.
        image_shape: (height, width, channels), sides of at least 4.
        dropout: rate of the dropout between the two convolutions of a block, in [0, 1); default none.
        weights: None for random ones, or the path of a `.keras` or `.weights.h5` file of the same network.
        skip_head: whether to leave `logits` as initialised when the weights are loaded, for other classes.
        mean: of the pixels in 0..255 units, a number or one for each channel; None is 127.5.
        std: the same; None is 127.5.
        synchronized: whether BatchNormalization is synchronised across replicas; None does so where the network is
            built under a strategy with several replicas.
        name: default `wide_resnet_<depth>_<width>`.

    Returns:
        A functional model from `image`, shape (batch, *image_shape), pixels 0..255, to `logits`,
        shape (batch, num_classes).

    Raises:
        ValueError: if an argument is out of range, or the weights are not of this network.

    Reference: Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016.
    """
    if not isinstance(depth, numbers.Integral) or depth < 10 or (depth - 4) % 6:
        raise ValueError(f"`depth` must be 6n + 4, for example 16 or 40. Received: depth={depth!r}.")
    shape = blocks.check_arguments(width, num_classes, image_shape, total_stride=4)
    if isinstance(dropout, bool) or not isinstance(dropout, numbers.Real) or not 0 <= dropout < 1:
        raise ValueError(f"`dropout` must be in [0, 1), for example 0.3. Received: dropout={dropout!r}.")
    normalize = partial(blocks.batch_normalization, synchronized=synchronized)
    image, x = blocks.image_input(shape, mean, std)
    x = blocks.convolution(x, 16, 3, name="stem")
    blocks_per_stage = (depth - 4) // 6
    for channels, place in blocks.in_stages([(channels,) * blocks_per_stage for channels in CHANNELS]):
        x = _residual_block(x, blocks.scale_channels(channels, width), place, normalize, float(dropout))
    x = normalize(x, name="head_bn")
    x = layers.ReLU(name="head")(x)
    model = blocks.classifier(image, x, num_classes, name or f"wide_resnet_{depth}_{width:g}")
    return pretrained.load(model, weights, skip_head)


def _residual_block(x: Any, channels: int, place: blocks.Place, normalize: Any, dropout: float) -> Any:
    """Two pre-activated 3x3 convolutions; a 1x1 shortcut, after the first BN-ReLU, where the shape changes."""
    prefix, shortcut = place.prefix, x
    x = normalize(x, name=f"{prefix}_bn1")
    x = layers.ReLU(name=f"{prefix}_relu1")(x)
    if place.stride > 1 or shortcut.shape[-1] != channels:
        shortcut = blocks.convolution(x, channels, 1, place.stride, name=f"{prefix}_shortcut")
    x = blocks.convolution(x, channels, 3, place.stride, name=f"{prefix}_conv1")
    x = normalize(x, name=f"{prefix}_bn2")
    x = layers.ReLU(name=f"{prefix}_relu2")(x)
    if dropout:
        x = layers.Dropout(dropout, name=f"{prefix}_dropout")(x)
    x = blocks.convolution(x, channels, 3, name=f"{prefix}_conv2")
    return layers.Add(name=place.output)([shortcut, x])
