"""Small networks and images that the tests train within a second."""

from typing import Any

import keras
import numpy as np
from keras import layers

from spkd_keras import losses

IMAGE_SHAPE = (8, 8, 1)
CLASSES = 4


def small_network(
    channels: int = 4,
    *,
    classes: int = CLASSES,
    dropout: float = 0.0,
    regularizer: Any = None,
    before: Any = (),
    name: str | None = None,
) -> keras.Model:
    """Two convolutions with BatchNormalization; taps `stage1` (8x8) and `stage2` (4x4), float32 logits."""
    image = keras.Input(IMAGE_SHAPE, name="image")
    x = layers.Rescaling(1 / 127.5, -1.0, dtype="float32", name="preprocessing")(image)
    for layer in before:
        x = layer(x)
    for stage in (1, 2):
        x = layers.Conv2D(channels, 3, stage, padding="same", kernel_regularizer=regularizer, name=f"conv{stage}")(x)
        x = layers.BatchNormalization(name=f"bn{stage}")(x)
        x = layers.ReLU(name=f"stage{stage}")(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    x = layers.GlobalAveragePooling2D(name="pooling")(x)
    return keras.Model(image, layers.Dense(classes, dtype="float32", name="logits")(x), name=name)


def images(count: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random pixels and labels."""
    random = np.random.default_rng(seed)
    return (
        random.integers(0, 256, (count, *IMAGE_SHAPE)).astype("uint8"),
        random.integers(0, CLASSES, count),
    )


@keras.saving.register_keras_serializable("spkd_keras_tests")
class Counter(layers.Layer):
    """Passes its input on and counts the forward passes, in the graph too."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.passes = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False, autocast=False)

    def call(self, x: Any) -> Any:
        self.passes.assign(self.passes + 1)
        return x


@keras.saving.register_keras_serializable("spkd_keras_tests")
class NeedsAdapter(losses.DistillationLoss):
    """Mean squared difference of the activations, which needs as many channels in both."""

    default_tap = "last_stage"

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=(1, 2, 3))

    def default_adapter(self, teacher_shape: Any, student_shape: Any) -> keras.layers.Layer | None:
        return keras.layers.Conv2D(teacher_shape[-1], 1, name="adapter")


def cross_entropy() -> keras.losses.Loss:
    """The loss on the labels."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def weights(model: keras.Model) -> list[np.ndarray]:
    """Copies of all weights."""
    return [weight.numpy() for weight in model.weights]


def assert_same_weights(one: keras.Model, other: keras.Model, tolerance: float = 0.0) -> None:
    """Asserts that two models have the same weights, bit for bit unless there is a tolerance."""
    for first, second in zip(one.weights, other.weights, strict=True):
        np.testing.assert_allclose(first.numpy(), second.numpy(), rtol=tolerance, atol=tolerance, err_msg=first.path)
