"""Wide residual networks."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from spkd_keras.models import blocks

# (channels before widening, stride) of each group of residual blocks.
GROUPS = ((16, 1), (32, 2), (64, 2))


def wide_resnet(
    depth: int = 16,
    width: float = 1,
    *,
    num_classes: int = 10,
    image_shape: Sequence[int] = (32, 32, 3),
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
        mean: of the pixels in 0..255 units, a number or one for each channel; None is 127.5.
        std: the same; None is 127.5.
        synchronized: whether BatchNormalization is synchronised across replicas; None does so where the network is
            built under a strategy with several replicas.
        name: default `wide_resnet_<depth>_<width>`.

    Returns:
        A functional model from `image`, shape (batch, *image_shape), pixels 0..255, to `logits`,
        shape (batch, num_classes).

    Raises:
        ValueError: if an argument is out of range.

    Reference: Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016.
    """
    if not isinstance(depth, int) or depth < 10 or (depth - 4) % 6:
        raise ValueError(f"`depth` must be 6n + 4, for example 16 or 40. Received: depth={depth!r}.")
    shape = blocks.check_arguments(width, num_classes, image_shape, total_stride=4)
    image, x = blocks.image_input(shape, mean, std)
    x = blocks.convolution(x, 16, 3, name="stem")
    blocks_per_group = (depth - 4) // 6
    for stage, (channels, stride) in enumerate(GROUPS, start=1):
        for index in range(blocks_per_group):
            x = _residual_block(
                x,
                blocks.scale_channels(channels, width),
                stride if index == 0 else 1,
                synchronized=synchronized,
                prefix=f"stage{stage}_block{index}",
                output_name=f"stage{stage}" if index == blocks_per_group - 1 else f"stage{stage}_block{index}",
            )
    x = blocks.batch_normalization(x, synchronized=synchronized, name="head_bn")
    x = layers.ReLU(name="head")(x)
    return keras.Model(image, blocks.classifier(x, num_classes), name=name or f"wide_resnet_{depth}_{width:g}")


def _residual_block(
    x: Any, channels: int, stride: int, *, synchronized: bool | None, prefix: str, output_name: str
) -> Any:
    """Two pre-activated 3x3 convolutions; a 1x1 shortcut, after the first BN-ReLU, where the shape changes."""
    shortcut = x
    x = blocks.batch_normalization(x, synchronized=synchronized, name=f"{prefix}_bn1")
    x = layers.ReLU(name=f"{prefix}_relu1")(x)
    if stride > 1 or shortcut.shape[-1] != channels:
        shortcut = blocks.convolution(x, channels, 1, stride, name=f"{prefix}_shortcut")
    x = blocks.convolution(x, channels, 3, stride, name=f"{prefix}_conv1")
    x = blocks.batch_normalization(x, synchronized=synchronized, name=f"{prefix}_bn2")
    x = layers.ReLU(name=f"{prefix}_relu2")(x)
    x = blocks.convolution(x, channels, 3, name=f"{prefix}_conv2")
    return layers.Add(name=output_name)([shortcut, x])
