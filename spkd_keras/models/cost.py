"""What a network costs."""

import math
from typing import Any

import keras
from keras import layers

from spkd_keras.models.graph import first_argument, input_structure, inputs_like, is_graph, replay_laid_open


def multiply_adds(model: keras.Model) -> int:
    """Counts the multiply-adds of the two-dimensional convolutions and dense layers for one image.

    Every call of a layer in the graph counts, also of one that is called twice or is in a nested model.

    Args:
        model: a built functional or Sequential model with a fixed image size.

    Returns:
        The number for one image; biases, normalisation, activations and pooling are not counted.

    Raises:
        ValueError: if the image size is not fixed, or the model's inside cannot be reached.
    """
    if not is_graph(model):
        raise ValueError(
            "Multiply-adds are counted in a functional or built Sequential model. Received: "
            f"{type(model).__name__} '{model.name}'."
        )
    total = 0

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal total
        outputs = layer(*args, **kwargs)
        total += _of_layer(layer, first_argument(args, kwargs), outputs)
        return outputs

    replay_laid_open(model, inputs_like(input_structure(model)), call)
    return total


def _of_layer(layer: Any, inputs: Any, outputs: Any) -> int:
    """A convolution uses its kernel once for each output position; a transposed one for each input position."""
    if isinstance(layer, layers.SeparableConv2D):
        kernels = [layer.depthwise_kernel, layer.pointwise_kernel]
    elif isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D | layers.Conv2DTranspose | layers.Dense):
        kernels = [layer.kernel]
    else:
        return 0
    shape = inputs.shape if isinstance(layer, layers.Conv2DTranspose) else outputs.shape
    channels_first = getattr(layer, "data_format", None) == "channels_first"
    positions = shape[2:] if channels_first else shape[1:-1]
    if None in positions:
        raise ValueError(f"Multiply-adds need a fixed image size. Received: layer {layer.name} with shape {shape}.")
    return math.prod(positions) * sum(math.prod(kernel.shape) for kernel in kernels)
