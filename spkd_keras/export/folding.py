"""The student for inference: in float32, with BatchNormalization folded into the layer before it."""

import itertools
from typing import Any

import keras
import numpy as np
from keras import layers

from spkd_keras.distiller import Distiller
from spkd_keras.models.copying import in_policy, settle
from spkd_keras.models.graph import (
    first_argument,
    input_structure,
    inputs_like,
    is_graph,
    replay_laid_open,
    sole_readers,
)

FOLDABLE = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)
ONLY_IN_TRAINING = (layers.Dropout, layers.SpatialDropout2D, layers.GaussianNoise, layers.GaussianDropout)


class ScaleAndShift(layers.Layer):
    """y = x * scale + shift for each channel: what is left of a BatchNormalization that nothing can take in.

    Args:
        channels: number of them.
        **kwargs: of the layer.
    """

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scale = self.add_weight(shape=(channels,), initializer="ones", trainable=False, name="scale")
        self.shift = self.add_weight(shape=(channels,), initializer="zeros", trainable=False, name="shift")

    def call(self, x: Any) -> Any:
        """Returns the scaled and shifted tensor."""
        return x * self.scale + self.shift


def inference_network(model: keras.Model) -> keras.Model:
    """Returns a copy of a network for inference alone, in float32 whatever the network's own precision.

    A BatchNormalization behind a convolution or a dense layer whose output goes nowhere else is folded into that
    layer: kernel * s and (bias - mean) * s + beta, with s = gamma / sqrt(variance + epsilon), computed in float64. One
    before an activation, as in a WideResNet, becomes one multiplication and addition. Layers that only act in training
    are left out.

    Args:
        model: functional or built Sequential, nested ones included; it is not changed.

    Returns:
        A functional model of the same input and output, whose weights are float32 copies.

    Raises:
        ValueError: if the network's layers cannot be reached or copied.
    """
    if not is_graph(model):
        advice = "Give its `student`" if isinstance(model, Distiller) else "Wrap it in a functional model"
        raise ValueError(
            f"An export needs a functional or built Sequential model. Received: {type(model).__name__} "
            f"'{model.name}'. {advice}."
        )
    folds = {id(source): normalization for source, normalization in sole_readers(model) if _fits(source, normalization)}
    gone = {id(normalization) for normalization in folds.values()}
    copies: dict[int, Any] = {}

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if id(layer) in gone or isinstance(layer, ONLY_IN_TRAINING):
            return first_argument(args, kwargs)
        if not isinstance(layer, layers.Layer):  # an operation of keras.ops, which has no weights
            return layer(*args, **kwargs)
        if isinstance(layer, layers.BatchNormalization):
            args, kwargs = (first_argument(args, kwargs),), {}  # without the mask, which images have not
        if id(layer) in copies:
            return copies[id(layer)](*args, **kwargs)
        copy, values = _copied(layer, folds.get(id(layer)))
        copy.name = _free_name(layer.name, [other.name for other in copies.values()])
        copies[id(layer)] = copy
        outputs = copy(*args, **kwargs)  # which builds it
        copy.set_weights(values)
        settle(copy)
        return outputs

    inputs = inputs_like(input_structure(model))
    return keras.Model(inputs, replay_laid_open(model, inputs, call), name=model.name)


def _free_name(name: str, taken: list[str]) -> str:
    """Layers of nested models come to stand beside each other, where names must differ."""
    candidates = (name if index == 1 else f"{name}_{index}" for index in itertools.count(1))
    return next(candidate for candidate in candidates if candidate not in taken)


def _copied(layer: Any, folded: Any) -> tuple[Any, list[np.ndarray]]:
    """Returns an unbuilt float32 copy of a layer and the weights for it.

    Args:
        layer: with weights in any precision.
        folded: the BatchNormalization that it takes in, or None.
    """
    if isinstance(layer, layers.BatchNormalization) and _is_last_axis(layer):
        scale, shift = _affine(layer)
        return ScaleAndShift(len(scale), dtype="float32"), [scale, shift]
    config = {**layer.get_config(), "dtype": "float32"}
    weights = [np.asarray(weight) for weight in layer.weights]
    if folded is not None:
        scale, shift = _affine(folded)
        kernel = weights[0].astype("float64")
        # The outputs of a depthwise kernel are its last two axes, of any other kernel the last.
        per_output = scale.reshape(kernel.shape[2:]) if isinstance(layer, layers.DepthwiseConv2D) else scale
        bias = weights[1].astype("float64") * scale if layer.use_bias else 0.0
        config["use_bias"], weights = True, [kernel * per_output, bias + shift]
    try:
        return in_policy(type(layer).from_config(config), "float32"), weights
    except (ValueError, NotImplementedError, TypeError) as error:
        raise ValueError(f"The layer '{layer.name}' cannot be copied for an export: {error}") from error


def _fits(source: Any, normalization: Any) -> bool:
    """Whether the source is linear up to its output, whose last axis is what is normalised."""
    return (
        type(source) in FOLDABLE
        and isinstance(normalization, layers.BatchNormalization)
        and source.activation is keras.activations.linear
        and getattr(source, "data_format", "channels_last") == "channels_last"
        and len(source.weights) == 1 + source.use_bias  # else LoRA's or a quantised kernel's are among them
        and _is_last_axis(normalization)
    )


def _is_last_axis(normalization: layers.BatchNormalization) -> bool:
    return normalization.axis in (-1, normalization.input_spec.ndim - 1)


def _affine(normalization: layers.BatchNormalization) -> tuple[np.ndarray, np.ndarray]:
    """Returns what a BatchNormalization multiplies by and adds in inference, in float64."""
    mean, variance = (np.asarray(v, "float64") for v in (normalization.moving_mean, normalization.moving_variance))
    scale = 1 / np.sqrt(variance + normalization.epsilon)
    if normalization.gamma is not None:
        scale = scale * np.asarray(normalization.gamma, "float64")
    shift = -mean * scale
    if normalization.beta is not None:
        shift = shift + np.asarray(normalization.beta, "float64")
    return scale, shift
