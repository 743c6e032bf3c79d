"""What a network costs."""

import math

import keras
from keras import layers


def multiply_adds(model: keras.Model) -> int:
    """Counts the multiply-adds of the convolutions and dense layers for one image.

    Args:
        model: a built functional or Sequential model, nested ones included, with a fixed image size.

    Returns:
        The number for one image; biases, normalisation, activations and pooling are not counted.

    Raises:
        ValueError: if the image size is not fixed.
    """
    return sum(
        multiply_adds(layer) if isinstance(layer, keras.Model) else _layer_multiply_adds(layer)
        for layer in model.layers
    )


def _layer_multiply_adds(layer: layers.Layer) -> int:
    """A kernel is used once for each output position; a depthwise one has its channels in the kernel already."""
    if isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D):
        positions = layer.output.shape[1:3]
    elif isinstance(layer, layers.Dense):
        positions = layer.output.shape[1:-1]
    else:
        return 0
    if None in positions:
        raise ValueError(
            f"Multiply-adds need a fixed image size. Received: layer {layer.name} with output {layer.output.shape}."
        )
    return math.prod(layer.kernel.shape) * math.prod(positions)
