"""MobileNets."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
from keras import layers

from spkd_keras.models import blocks, pretrained

# Channels of every block, stage by stage, before widening.
STAGES = ((64,), (128,) * 2, (256,) * 2, (512,) * 6, (1024,) * 2)
IMAGENET = pretrained.ImageNet("MobileNet", alphas=(0.25, 0.5, 0.75, 1.0), sizes=(128, 160, 192, 224))
EPSILON = 1e-3  # of BatchNormalization, as the public ImageNet weights have it


def mobilenet(
    width: float = 1.0,
    *,
    num_classes: int = 47,
    image_shape: Sequence[int] = (224, 224, 3),
    weights: str | Path | None = None,
    skip_head: bool = False,
    mean: blocks.PixelStatistics = None,
    std: blocks.PixelStatistics = None,
    synchronized: bool | None = None,
    name: str | None = None,
) -> keras.Model:
    """MobileNet-width: thirteen depthwise separable blocks behind a strided convolution.

    | tap | output at 224x224 | |
    | --- | --- | --- |
    | `stage1` | 112x112x64k | after the last block's closing ReLU6 |
    | `stage2` | 56x56x128k | the same |
    | `stage3` | 28x28x256k | the same |
    | `stage4` | 14x14x512k | the same |
    | `stage5` | 7x7x1024k | the same |
    | `logits` | classes | float32, no softmax |

    Padding is "same". Keras' own MobileNet pads strided layers on the right and at the bottom only, which is the same
    where sides are even; where a side is odd (not at multiples of 32) ours rounds up and Keras' down, so that the same
    weights give other logits there.

    Args:
        width: multiplier k of the channels, above 0, rounded down.
        num_classes: at least 2.
        image_shape: (height, width, channels), sides of at least 32.
        weights: None for random ones; "imagenet" for those that `keras.applications` downloads or finds in its cache
            (width 0.25, 0.5, 0.75 or 1, three channels; without `logits` unless `num_classes` is 1000; they expect the
            default `mean` and `std`); or the path of a `.keras` or `.weights.h5` file of the same network.
        skip_head: whether to leave `logits` as initialised when the weights are loaded, for other classes.
        mean: of the pixels in 0..255 units, a number or one for each channel; None is 127.5.
        std: the same; None is 127.5.
        synchronized: whether BatchNormalization is synchronised across replicas; None does so where the network is
            built under a strategy with several replicas.
        name: default `mobilenet_<width>`.

    Returns:
        A functional model from `image`, shape (batch, *image_shape), pixels 0..255, to `logits`,
        shape (batch, num_classes).

    Raises:
        ValueError: if an argument is out of range, or the weights are not of this network.
        OSError: if the ImageNet weights are neither in Keras' cache nor to be downloaded.

    Reference: Howard et al., "MobileNets", arXiv:1704.04861, 2017, table 1.
    """
    shape = blocks.check_arguments(width, num_classes, image_shape, total_stride=32)
    normalize = partial(blocks.batch_normalization, synchronized=synchronized, epsilon=EPSILON)
    image, x = blocks.image_input(shape, mean, std)
    x = blocks.convolution(x, blocks.scale_channels(32, width), 3, 2, name="stem")
    x = normalize(x, name="stem_bn")
    x = layers.ReLU(6.0, name="stem_relu")(x)
    for channels, place in blocks.in_stages(STAGES):
        x = _separable_block(x, blocks.scale_channels(channels, width), place, normalize)
    model = blocks.classifier(image, x, num_classes, name or f"mobilenet_{width:g}")
    return pretrained.load(model, weights, skip_head, IMAGENET, width)


def _separable_block(x: Any, channels: int, place: blocks.Place, normalize: Any) -> Any:
    """A depthwise 3x3 convolution, which has the stride, and a 1x1 convolution."""
    x = blocks.depthwise_convolution(x, place.stride, name=f"{place.prefix}_depthwise")
    x = normalize(x, name=f"{place.prefix}_depthwise_bn")
    x = layers.ReLU(6.0, name=f"{place.prefix}_depthwise_relu")(x)
    x = blocks.convolution(x, channels, 1, name=f"{place.prefix}_conv")
    x = normalize(x, name=f"{place.prefix}_bn")
    return layers.ReLU(6.0, name=place.output)(x)
