"""The network for inference: what is folded, and what stays."""

import keras
import numpy as np
from architectures import pixels, randomize
from keras import layers

from spkd_keras import models
from spkd_keras.export import inference_network


def layers_of(model, kind):
    return [layer.name for layer in model.layers if isinstance(layer, kind)]


def test_normalisation_behind_a_layer_is_folded_exactly():
    given = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, use_bias=True)(given)
    x = layers.BatchNormalization()(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False, padding="same")(x)
    x = layers.BatchNormalization(scale=False)(x)
    x = layers.Conv2D(6, 1, groups=2, use_bias=False)(layers.ReLU()(x))
    x = layers.BatchNormalization(center=False)(x)
    x = layers.Dense(5)(layers.Flatten()(x))
    model = randomize(keras.Model(given, layers.Dense(2)(layers.BatchNormalization()(x))))
    folded = inference_network(model)
    assert not layers_of(folded, layers.BatchNormalization)
    assert all("scale_and_shift" not in layer.name for layer in folded.layers)
    assert len(folded.layers) == len(model.layers) - 4
    batch = np.random.default_rng(0).normal(size=(5, 6, 6, 3)).astype("float32")
    np.testing.assert_allclose(folded(batch), model(batch, training=False), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_folded_is_one_multiplication_and_addition():
    given = keras.Input((6, 6, 3))
    shared = layers.Conv2D(3, 1)
    x = layers.BatchNormalization(name="first")(given)
    twice = layers.BatchNormalization(name="of_a_shared_layer")(shared(shared(x)))
    branch = layers.Conv2D(3, 1)(twice)
    x = layers.Add()([layers.BatchNormalization(name="of_a_branch")(branch), branch])
    x = layers.BatchNormalization(name="after_relu")(layers.Conv2D(3, 1, activation="relu")(x))
    x = layers.BatchNormalization(axis=1, name="over_rows")(x)
    x = layers.Dropout(0.5)(x)
    model = randomize(keras.Model(given, layers.Dense(2)(layers.Flatten()(x))))
    inference = inference_network(model)
    kinds = {layer.name: type(layer).__name__ for layer in inference.layers}
    affine = [name for name, kind in kinds.items() if kind == "ScaleAndShift"]
    assert affine == ["first", "of_a_shared_layer", "of_a_branch", "after_relu"]
    assert layers_of(inference, layers.BatchNormalization) == ["over_rows"]
    assert not layers_of(inference, layers.Dropout)
    batch = np.random.default_rng(0).normal(size=(5, 6, 6, 3)).astype("float32")
    np.testing.assert_allclose(inference(batch), model(batch, training=False), rtol=1e-4, atol=1e-5)


def test_nested_networks_are_folded_too_and_stay_as_they_are():
    model = models.keras_application("MobileNetV2", num_classes=3, image_shape=(32, 32, 3), alpha=0.35)
    randomize(model.get_layer("backbone"))
    before = models.fingerprint(model)
    folded = inference_network(model)
    assert models.fingerprint(model) == before
    assert not layers_of(folded, layers.BatchNormalization)
    given = pixels(4, model).astype("float32")
    np.testing.assert_allclose(folded(given), model(given, training=False), rtol=1e-3, atol=1e-3)
