"""Telling networks apart."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

# Settings that decide what the usual layers compute, beside their weights. Names, dtype policies, `trainable` flags and
# what only matters in training are not among them, nor is what another version of Keras may add.
SETTINGS = (
    "activation",
    "axis",
    "data_format",
    "dilation_rate",
    "dims",
    "epsilon",
    "groups",
    "interpolation",
    "keepdims",
    "mean",
    "indices_or_sections",
    "negative_slope",
    "max_value",
    "offset",
    "padding",
    "pool_size",
    "scale",
    "size",
    "strides",
    "target_shape",
    "cropping",
    "height",
    "threshold",
    "variance",
    "width",
)
SWITCHES = ("crop_to_aspect_ratio", "invert", "pad_to_aspect_ratio")  # others, where they are on


def fingerprint(model: keras.Model) -> str:
    """Digest of a network: its weights, the kind and the `SETTINGS` of its layers, and the constants in between.

    A network keeps its fingerprint when it is frozen, renamed, saved and loaded.

    Args:
        model: a built model.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for weight in model.weights:
        digest.update(f"{tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(np.ascontiguousarray(weight).tobytes())
    for operation in _inner_operations(model):
        try:
            config = operation.get_config()
        except NotImplementedError:  # a layer of the user's own that is never saved
            config = {}
        names = SETTINGS if isinstance(operation, keras.layers.Layer) else set(config) - {"name", "dtype"}
        chosen = {name: config[name] for name in names if name in config}
        chosen |= {name: config[name] for name in SWITCHES if config.get(name)}
        settings = json.dumps(
            [type(operation).__name__, chosen], sort_keys=True, default=lambda value: str(type(value))
        )
        digest.update(settings.encode())
        for constant in _constants(operation):
            digest.update(f"{constant.shape} {constant.tolist()}".encode())
    return digest.hexdigest()[:32]


def _constants(operation: Any) -> list[np.ndarray]:
    """Returns the numbers that an operation of `keras.ops` is called with, such as the 127.5 of `x / 127.5`."""
    if isinstance(operation, keras.layers.Layer):
        return []
    # Its own call: each copy of the graph that shares its layers adds one.
    given = keras.tree.flatten([node.arguments.args for node in operation._inbound_nodes[:1]])
    return [np.asarray(value) for value in given if not isinstance(value, keras.KerasTensor)]


def _inner_operations(model: keras.Model) -> Iterator[Any]:
    """Yields layers, and operations of `keras.ops` such as a split, going into nested models."""
    for operation in getattr(model, "operations", model.layers):
        if isinstance(operation, keras.Model):
            yield from _inner_operations(operation)
        elif not isinstance(operation, keras.layers.InputLayer):
            yield operation
