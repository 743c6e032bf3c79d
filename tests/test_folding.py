"""Batch normalisation as part of the convolution before it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from architectures import SMALL, pixels, randomize
from keras import layers
from networks import IMAGE_SHAPE, images, small_network
from test_distiller import KD, SP, distiller

from spkd_keras import Term, models
from spkd_keras.distiller import taps

# Convolutions whose output goes to a batch normalisation alone. In a WideResNet those are the first of each of three
# blocks (the second ends in a sum), and the stem where, as at this width, it is not also the first block's shortcut.
FOLDED = {"wide_resnet": 4, "mobilenet": 27, "mobilenet_v2": 52, "shufflenet_v2": 56, "resnet": 9}


def normalisations(model):
    """How many batch normalisations and folded convolutions are called."""
    kinds = [type(layer).__name__ for layer in model._flatten_layers()]
    called = [type(layer).__name__ for layer in model.layers]
    assert kinds.count("FoldedConvolution") == called.count("FoldedConvolution")
    return called.count("BatchNormalization"), called.count("FoldedConvolution")


@pytest.mark.parametrize("family", SMALL)
def test_folded_networks_compute_the_same(family):
    model = randomize(SMALL[family]())
    before, _ = normalisations(model)
    folded = models.folded(model)
    left, count = normalisations(folded)
    assert (count, left) == (FOLDED[family], before - FOLDED[family])
    x = pixels(4, model)
    expected = model(x, training=False).numpy()
    np.testing.assert_allclose(folded(x, training=False), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert {id(weight) for weight in folded.weights} == {id(weight) for weight in model.weights}


def chain(convolution, normalization=None, after=()):
    image = keras.Input((6, 6, 4))
    x = convolution(image)
    x = (normalization or layers.BatchNormalization(epsilon=0.1, name="bn"))(x)
    for layer in after:
        x = layer(x)
    model = keras.Model(image, x)
    random = np.random.default_rng(0)
    model.set_weights([random.uniform(0.5, 1.5, weight.shape) for weight in model.weights])
    return model


@pytest.mark.parametrize(
    "convolution",
    [
        lambda: layers.Conv2D(5, 3, 2, padding="same", use_bias=False),
        lambda: layers.Conv2D(6, 3, dilation_rate=2, groups=2),
        lambda: layers.DepthwiseConv2D(3, 2, padding="same", depth_multiplier=2),
        lambda: layers.DepthwiseConv2D(2, use_bias=False),
    ],
)
@pytest.mark.parametrize("arguments", [{}, {"scale": False}, {"center": False}])
def test_every_kind_of_convolution(convolution, arguments):
    model = chain(convolution(), layers.BatchNormalization(epsilon=0.1, **arguments))
    folded = models.folded(model)
    assert normalisations(folded) == (0, 1)
    x = np.random.default_rng(1).normal(size=(3, 6, 6, 4)).astype("float32")
    np.testing.assert_allclose(folded(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "model",
    [
        lambda: chain(layers.Conv2D(4, 3, activation="relu")),
        lambda: chain(layers.Conv2D(4, 3), layers.BatchNormalization(axis=1)),
        lambda: chain(layers.SeparableConv2D(4, 3)),
        lambda: chain(layers.Conv2D(4, 3), after=[layers.Conv2D(2, 1)]),
    ],
    ids=["activation", "axis", "separable", "the other order"],
)
def test_what_cannot_be_folded_is_left(model):
    model = model()
    folded = models.folded(model)
    x = np.random.default_rng(1).normal(size=(3, 6, 6, 4)).astype("float32")
    np.testing.assert_allclose(folded(x), model(x), rtol=1e-5, atol=1e-4)
    if not isinstance(model.layers[-1], layers.Conv2D):
        assert folded is model


def test_an_output_that_is_used_elsewhere_is_left():
    """As a second output, which a tap is, or in another layer."""
    model = chain(layers.Conv2D(4, 3, name="conv"))
    tapped = keras.Model(model.input, [model.output, model.get_layer("conv").output])
    assert models.folded(tapped) is tapped
    image = keras.Input((6, 6, 4))
    x = layers.Conv2D(4, 3)(image)
    assert models.folded(branched := keras.Model(image, layers.BatchNormalization()(x) + x)) is branched


def test_a_layer_that_is_called_twice_is_left():
    image, convolution, normalization = keras.Input((6, 6, 4)), layers.Conv2D(4, 1), layers.BatchNormalization()
    model = keras.Model(image, normalization(convolution(normalization(convolution(image)))))
    assert models.folded(model) is model


def test_weights_that_change_are_read():
    model = chain(layers.Conv2D(4, 3))
    folded, x = models.folded(model), np.ones((1, 6, 6, 4), "float32")
    before = folded(x).numpy()
    model.set_weights([2 * value for value in model.get_weights()])
    assert not np.allclose(folded(x), before)
    np.testing.assert_allclose(folded(x), model(x), rtol=1e-5)


def test_the_teacher_of_a_distiller_is_folded_and_its_taps_are_the_same():
    """Nested too. The caller's teacher, its fingerprint and what it computes are as before."""
    teacher = keras.Sequential([keras.Input(IMAGE_SHAPE), small_network(8, name="inner")])
    fingerprint = models.fingerprint(teacher)
    x, y = images(8)
    expected = teacher(x).numpy()
    model = distiller(teacher, small_network(), [Term(SP(), teacher="inner/conv2", student="conv2"), Term(KD())])
    assert normalisations(model._wiring._tapped_teacher) == (1, 1)  # conv2 is a tap
    tap, logits = model._wiring.run_teacher(x)
    (reference,) = taps.tapped(teacher, [taps.Tap("inner/conv2")])(x, training=False)["taps"]
    np.testing.assert_allclose(tap, reference, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    model.fit(x, y, batch_size=4, verbose=0)
    assert models.fingerprint(teacher) == model.teacher_fingerprint == fingerprint
    np.testing.assert_array_equal(teacher(x), expected)


def test_in_bfloat16_the_kernel_is_scaled_before_it_is_rounded():
    model = models.in_precision(chain(layers.Conv2D(8, 3), after=[layers.ReLU()]), "bfloat16")
    folded, x = models.folded(model), np.random.default_rng(1).normal(size=(3, 6, 6, 4)).astype("float32")
    assert normalisations(folded) == (0, 1)
    kind = next(layer for layer in folded.layers if type(layer).__name__ == "FoldedConvolution")
    assert kind(tf.cast(x, "bfloat16")).dtype == "bfloat16"
    exact = models.in_precision(model, "float32")(x).numpy()
    for each in (folded, model):
        error = np.abs(np.float32(each(x)) - exact).max() / np.abs(exact).max()
        assert error < 0.02
    # By hand; rounded before it is scaled, the kernel is another one.
    bn = kind.normalization
    scale = bn.gamma * tf.math.rsqrt(tf.cast(bn.moving_variance, "float32") + bn.epsilon)
    shift = tf.cast(-bn.moving_mean * scale + kind.convolution.bias * scale + bn.beta, "bfloat16")
    kernel, rounded = kind.convolution.kernel.value, tf.cast(kind.convolution.kernel, "bfloat16")
    right, wrong = tf.cast(kernel * scale, "bfloat16"), rounded * tf.cast(scale, "bfloat16")
    assert np.any(right.numpy() != wrong.numpy())
    expected = tf.nn.bias_add(keras.ops.conv(tf.cast(x, "bfloat16"), right), shift)
    np.testing.assert_array_equal(np.float32(kind(tf.cast(x, "bfloat16"))), np.float32(expected))
