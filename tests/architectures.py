"""One small network of each family, and random weights that let no layer go unnoticed."""

import functools
from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import layers

from spkd_keras import models

# The smallest images that each family takes but for the ResNets, which would be left with 2x2.
SMALL: dict[str, Callable[..., keras.Model]] = {
    "wide_resnet": functools.partial(models.wide_resnet, 10, 0.25, image_shape=(8, 8, 3)),
    "mobilenet": functools.partial(models.mobilenet, 0.25, num_classes=10, image_shape=(32, 32, 3)),
    "mobilenet_v2": functools.partial(models.mobilenet_v2, 0.35, num_classes=10, image_shape=(32, 32, 3)),
    "shufflenet_v2": functools.partial(models.shufflenet_v2, 0.25, image_shape=(8, 8, 3)),
    "resnet": functools.partial(models.resnet, 8, (4, 4, 8, 12), image_shape=(8, 8, 3)),
}
each_family = pytest.mark.parametrize("family", SMALL)


def pixels(count: int, model: keras.Model, seed: int = 0) -> np.ndarray:
    """Random images of the size that the network takes."""
    return np.random.default_rng(seed).integers(0, 256, (count, *model.input_shape[1:]), dtype="uint8")


def taps(model: keras.Model, *names: str) -> keras.Model:
    return keras.Model(model.input, {name: model.get_layer(name).output for name in names})


def randomize(model: keras.Model, seed: int = 0) -> keras.Model:
    """Gives a network random weights, moving averages too, under which its signal neither dies out nor explodes."""
    random = np.random.default_rng(seed)
    for layer in model.layers:
        values = []
        for weight in layer.weights:
            if weight.name in ("gamma", "moving_variance"):
                values.append(random.uniform(0.5, 1.5, weight.shape))
            elif len(weight.shape) == 1:
                values.append(random.normal(0, 0.1, weight.shape))
            else:
                inputs = weight.shape[:2] if isinstance(layer, layers.DepthwiseConv2D) else weight.shape[:-1]
                values.append(random.normal(0, (2 / np.prod(inputs)) ** 0.5, weight.shape))
        layer.set_weights(values)
    return model
