"""Folding batch normalisation into the convolution before it, in a network that only infers."""

from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

from spkd_keras.models.graph import first_argument, input_structure, inputs_like, replay_laid_open, sole_readers

CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D)  # subclasses may compute something else


class FoldedConvolution(layers.Layer):
    """A convolution and the batch normalisation behind it, in inference, as one convolution.

        scale = gamma / sqrt(moving variance + epsilon)
        outputs = x * (kernel scale) + beta + (bias - moving mean) scale

    The two layers' own weights are read at every call. The kernel is scaled in float32, then rounded to the dtype
    that is computed in.

    Args:
        convolution: a Conv2D or DepthwiseConv2D, channels last, without activation.
        normalization: on the last axis.
    """

    def __init__(self, convolution: layers.Layer, normalization: layers.Layer) -> None:
        super().__init__(name=f"{convolution.name}_folded", dtype=convolution.dtype_policy)
        self.convolution, self.normalization = convolution, normalization
        self.built = True

    def call(self, x: Any) -> Any:
        """Returns what the batch normalisation gives."""
        convolution, normalization = self.convolution, self.normalization
        scale = ops.rsqrt(_exact(normalization.moving_variance) + normalization.epsilon)
        if normalization.scale:
            scale = scale * _exact(normalization.gamma)
        shift = -_exact(normalization.moving_mean) * scale
        if convolution.use_bias:
            shift = shift + _exact(convolution.bias) * scale
        if normalization.center:
            shift = shift + _exact(normalization.beta)
        kernel = _exact(convolution.kernel)
        arguments = {
            "strides": convolution.strides,
            "padding": convolution.padding,
            "data_format": convolution.data_format,
            "dilation_rate": convolution.dilation_rate,
        }
        if isinstance(convolution, layers.DepthwiseConv2D):
            kernel = kernel * ops.reshape(scale, (-1, convolution.depth_multiplier))
            outputs = ops.depthwise_conv(x, ops.cast(kernel, self.compute_dtype), **arguments)
        else:
            outputs = ops.conv(x, ops.cast(kernel * scale, self.compute_dtype), **arguments)
        return tf.nn.bias_add(outputs, ops.cast(shift, self.compute_dtype))


def folded(model: keras.Model) -> keras.Model:
    """Returns a model for inference with the same outputs, in which batch normalisation costs nothing where it can.

    It is folded into the convolution before it where that convolution's output goes nowhere else, so that all outputs
    are the same up to rounding. Nested models are laid open. All weights are the given model's own.

    Args:
        model: functional or Sequential. Where nested models have layers of one name, which cannot stand beside each
            other, it is returned as it is.
    """
    pairs = {id(pair[0]): pair for pair in sole_readers(model) if _fits(*pair)}
    if not pairs:
        return model
    normalizations = {id(normalization) for _, normalization in pairs.values()}

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if id(layer) in normalizations:
            return first_argument(args, kwargs)
        if id(layer) in pairs:
            return FoldedConvolution(*pairs[id(layer)])(first_argument(args, kwargs))
        return layer(*args, **kwargs)

    inputs = inputs_like(input_structure(model))
    outputs = replay_laid_open(model, inputs, call)
    try:
        return keras.Model(inputs, outputs, name=model.name)
    except ValueError:  # for the names
        return model


def _exact(variable: keras.Variable) -> Any:
    """Returns a variable in float32. In a mixed policy its `value` is rounded first (Keras 3.15)."""
    return ops.cast(variable._value, "float32")


def _fits(convolution: Any, normalization: Any) -> bool:
    return (
        type(convolution) in CONVOLUTIONS
        and isinstance(normalization, layers.BatchNormalization)
        and convolution.activation is keras.activations.linear
        and convolution.data_format == "channels_last"
        and normalization.axis in (-1, 3)
        and convolution.compute_dtype == normalization.compute_dtype
        and not getattr(convolution, "quantization_mode", None)
        and not getattr(convolution, "lora_enabled", False)  # its kernel is a sum, in the dtype that is computed in
    )
