"""MobileNets of the second version, with inverted residuals."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import keras
from keras import layers

from spkd_keras.models import blocks, pretrained

# (expansion, channels before widening) of every block, stage by stage.
STAGES = (
    ((1, 16),),
    ((6, 24),) * 2,
    ((6, 32),) * 3,
    ((6, 64),) * 4 + ((6, 96),) * 3,
    ((6, 160),) * 3 + ((6, 320),),
)
HEAD_CHANNELS = 1280
IMAGENET = pretrained.ImageNet("MobileNetV2", alphas=(0.35, 0.5, 0.75, 1.0, 1.3, 1.4), sizes=(96, 128, 160, 192, 224))
EPSILON = 1e-3  # of BatchNormalization, as the public ImageNet weights have it


def mobilenet_v2(
    width: float = 1.0,
    *,
    num_classes: int = 47,
    image_shape: Sequence[int] = (224, 224, 3),
    weights: str | Path | None = None,
    skip_head: bool = False,
    head: Literal["scaled", "fixed"] = "scaled",
    mean: blocks.PixelStatistics = None,
    std: blocks.PixelStatistics = None,
    synchronized: bool | None = None,
    name: str | None = None,
) -> keras.Model:
    """MobileNetV2-width: seventeen inverted residual blocks between two convolutions.

    | tap | output at 224x224 | |
    | --- | --- | --- |
    | `stage1` | 112x112x16k | linear: after the last block's BatchNormalization or sum |
    | `stage2` | 56x56x24k | the same |
    | `stage3` | 28x28x32k | the same |
    | `stage4` | 14x14x96k | the same |
    | `stage5` | 7x7x320k | the same |
    | `head` | 7x7x1280k | after the closing 1x1 convolution's ReLU6 |
    | `logits` | classes | float32, no softmax |

    Args:
        width: multiplier k of the channels, above 0, rounded down, then to the nearest multiple of 8 that is not
            more than a tenth below that.
        num_classes: at least 2.
        image_shape: (height, width, channels), sides of at least 32.
        weights: None for random ones; "imagenet" for those that `keras.applications` downloads or finds in its cache
            (width 0.35, 0.5, 0.75, 1, 1.3 or 1.4, three channels; without `logits` unless `num_classes` is 1000; they
            expect the default `mean` and `std`); or the path of a `.keras` or `.weights.h5` file of the same network.
        skip_head: whether to leave `logits` as initialised when the weights are loaded, for other classes.
        head: "scaled" for 1280k channels in the closing convolution; "fixed" for at least 1280, as the ImageNet weights
            have it below width 1.
        mean: of the pixels in 0..255 units, a number or one for each channel; None is 127.5.
        std: the same; None is 127.5.
        synchronized: whether BatchNormalization is synchronised across replicas; None does so where the network is
            built under a strategy with several replicas.
        name: default `mobilenet_v2_<width>`.

    Returns:
        A functional model from `image`, shape (batch, *image_shape), pixels 0..255, to `logits`,
        shape (batch, num_classes).

    Raises:
        ValueError: if an argument is out of range, or the weights are not of this network.
        OSError: if the ImageNet weights are neither in Keras' cache nor to be downloaded.

    Reference: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, table 2.
    """
    shape = blocks.check_arguments(width, num_classes, image_shape, total_stride=32)
    if head not in ("scaled", "fixed"):
        raise ValueError(f'`head` must be "scaled" or "fixed". Received: head={head!r}.')
    if weights == "imagenet" and head == "scaled" and width < 1 and width in IMAGENET.alphas:
        raise ValueError(
            f'The ImageNet weights below width 1 have 1280 channels in the head: give head="fixed". Received: '
            f"width={width}, head={head!r}."
        )
    scale = partial(blocks.scale_channels, width=width, divisor=8)
    normalize = partial(blocks.batch_normalization, synchronized=synchronized, epsilon=EPSILON)
    image, x = blocks.image_input(shape, mean, std)
    # Keras rounds 32k itself here, and int(ck) elsewhere: 32 and not 24 channels at 0.84.
    x = blocks.convolution(x, scale(32, truncated=False), 3, 2, name="stem")
    x = normalize(x, name="stem_bn")
    x = layers.ReLU(6.0, name="stem_relu")(x)
    for (expansion, channels), place in blocks.in_stages(STAGES):
        x = _inverted_residual(x, expansion, scale(channels), place, normalize)
    channels = max(scale(HEAD_CHANNELS), HEAD_CHANNELS if head == "fixed" else 0)
    x = blocks.convolution(x, channels, 1, name="head_conv")
    x = normalize(x, name="head_bn")
    x = layers.ReLU(6.0, name="head")(x)
    model = blocks.classifier(image, x, num_classes, name or f"mobilenet_v2_{width:g}")
    return pretrained.load(model, weights, skip_head, IMAGENET, width)


def _inverted_residual(x: Any, expansion: int, channels: int, place: blocks.Place, normalize: Any) -> Any:
    """Expand by a 1x1 convolution, filter depthwise, project linearly; a shortcut where the shape stays."""
    prefix, shortcut = place.prefix, x
    has_shortcut = place.stride == 1 and shortcut.shape[-1] == channels
    if expansion > 1:
        x = blocks.convolution(x, expansion * x.shape[-1], 1, name=f"{prefix}_expand")
        x = normalize(x, name=f"{prefix}_expand_bn")
        x = layers.ReLU(6.0, name=f"{prefix}_expand_relu")(x)
    x = blocks.depthwise_convolution(x, place.stride, name=f"{prefix}_depthwise")
    x = normalize(x, name=f"{prefix}_depthwise_bn")
    x = layers.ReLU(6.0, name=f"{prefix}_depthwise_relu")(x)
    x = blocks.convolution(x, channels, 1, name=f"{prefix}_project")
    x = normalize(x, name=f"{prefix}_project_bn" if has_shortcut else place.output)
    return layers.Add(name=place.output)([shortcut, x]) if has_shortcut else x
