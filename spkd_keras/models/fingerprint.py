"""Telling networks apart."""

import hashlib
import json
from collections.abc import Iterator

import keras
import numpy as np

IGNORED = ("name", "trainable", "dtype")


def fingerprint(model: keras.Model) -> str:
    """Digest of what a network computes: its weights, and the settings of the layers that have none.

    Names, dtype policies and `trainable` flags do not count, so that a network keeps its fingerprint when it is frozen,
    saved and loaded.

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
        if not layer.weights:
            config = {key: value for key, value in layer.get_config().items() if key not in IGNORED}
            settings = json.dumps(
                [type(layer).__name__, config], sort_keys=True, default=lambda value: str(type(value))
            )
            digest.update(settings.encode())
    return digest.hexdigest()[:32]


def _inner_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _inner_layers(layer)
        elif not isinstance(layer, keras.layers.InputLayer):
            yield layer
