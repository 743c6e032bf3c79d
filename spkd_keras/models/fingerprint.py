"""Telling networks apart."""

import hashlib
import json
from collections.abc import Iterator

import keras
import numpy as np

# Settings that decide what the usual layers compute, beside their weights. Names, dtype policies, `trainable` flags and
# what only matters in training are not among them, nor is what another version of Keras may add.
SETTINGS = (
    *("activation", "axis", "data_format", "dilation_rate", "epsilon", "groups", "interpolation", "keepdims", "mean"),
    *("negative_slope", "max_value", "offset", "padding", "pool_size", "scale", "size", "strides", "target_shape"),
    *("threshold", "variance"),
)


def fingerprint(model: keras.Model) -> str:
    """Digest of a network: its weights, and the kind and the `SETTINGS` of its layers.

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
    for layer in _inner_layers(model):
        config = layer.get_config()
        chosen = {name: config[name] for name in SETTINGS if name in config}
        settings = json.dumps([type(layer).__name__, chosen], sort_keys=True, default=lambda value: str(type(value)))
        digest.update(settings.encode())
    return digest.hexdigest()[:32]


def _inner_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _inner_layers(layer)
        elif not isinstance(layer, keras.layers.InputLayer):
            yield layer
