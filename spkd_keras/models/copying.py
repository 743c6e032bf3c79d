"""Copying a network with some of its layers exchanged."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras import layers

from spkd_keras.models.graph import inputs_like, is_graph


def copied(model: keras.Model, copy_layer: Callable[[layers.Layer], layers.Layer], purpose: str) -> keras.Model:
    """Returns a copy of a network, with copies of its weights.

    Args:
        model: functional or Sequential, nested ones included.
        copy_layer: gives the copy of a layer, which has the same weights in the same order.
        purpose: of the copy, for the message.

    Raises:
        ValueError: if the model cannot be copied layer by layer.
    """

    def copy(layer: Any) -> Any:
        # An operation of keras.ops has no weights and no configuration to change.
        return copy_layer(layer) if isinstance(layer, layers.Layer) else layer

    plain = isinstance(model, keras.Sequential) or not is_graph(model)
    inputs = None if plain else inputs_like(model.input)  # optional where they are
    try:
        with _uncompiled(model):
            copy_of_model = keras.models.clone_model(model, inputs, clone_function=copy, recursive=True)
    except (ValueError, NotImplementedError, TypeError) as error:
        raise ValueError(
            f"'{model.name}' cannot be copied to {purpose} layer by layer; build it so instead. {error}"
        ) from error
    copy_of_model.set_weights(model.get_weights())
    for layer in copy_of_model._flatten_layers():
        settle(layer)
    return copy_of_model


@contextmanager
def _uncompiled(model: keras.Model) -> Iterator[None]:
    """Keeps Keras (3.15) from compiling a copy as the model is: its file may not be able to tell the loss."""
    compiled = [each for each in model._flatten_layers() if getattr(each, "compiled", False)]
    for each in compiled:
        each.compiled = False
    try:
        yield
    finally:
        for each in compiled:
            each.compiled = True


def in_policy(layer: layers.Layer, policy: str) -> layers.Layer:
    """Lets the layers in a layer compute in its dtype policy, whatever they were made with.

    Those that normalise pixels stay in float32, and those whose weights are there already in another dtype stay as they
    are.
    """
    for inner in layer._flatten_layers(include_self=False):
        own = "float32" if isinstance(inner, layers.Rescaling | layers.Normalization) else policy
        if not inner.weights or inner.variable_dtype == keras.dtype_policies.get(own).variable_dtype:
            inner.dtype_policy = own
    return layer


def settle(layer: Any) -> None:
    """Lets a `Normalization` compute with the weights it was given: Keras (3.12 to 3.15) keeps constants of them."""
    if isinstance(layer, layers.Normalization) and layer.built:
        layer.finalize_state()
