"""The fused BatchNormalization against Keras' own."""

import inspect
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from networks import assert_same_weights

from spkd_keras.models import BatchNormalization, renew_statistics

SHAPE = (6, 5, 3, 4)
ULP = {"float32": 1e-5, "bfloat16": 2**-7, "float16": 2**-10}  # one unit in the last place of a number near 1, or 1e-5


def pair(policy="float32", shape=SHAPE, **arguments):
    """Our layer and Keras', with the same random weights."""
    ours = BatchNormalization(momentum=0.8, epsilon=1e-5, dtype=policy, name="bn", **arguments)
    keras_own = layers.BatchNormalization(momentum=0.8, epsilon=1e-5, dtype=policy, name="bn", **arguments)
    random = np.random.default_rng(1)
    for layer in (ours, keras_own):
        layer.build(shape)
    values = [random.uniform(0.5, 1.5, weight.shape) for weight in ours.weights]
    ours.set_weights(values)
    keras_own.set_weights(values)
    return ours, keras_own


def values(shape=SHAPE, dtype="float32", seed=0):
    return tf.cast(tf.constant(np.random.default_rng(seed).normal(1.0, 2.0, shape)), dtype)


def step(layer, x, training, jit=False):
    """Outputs, and the gradients of a sum that weighs every output differently."""
    weights = values(x.shape, "float32", seed=7)

    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = layer(x, training=training)
            total = tf.reduce_sum(tf.cast(outputs, "float32") * weights)
        variables = [weight.value for weight in layer.trainable_weights]
        return outputs, tape.gradient(total, [x, *variables])

    return tf.function(run, jit_compile=jit)(x)


def operations(layer, training, shape=SHAPE, dtype="float32"):
    """The kinds of operations that a layer is made of."""
    function = tf.function(lambda x: layer(x, training=training)).get_concrete_function(tf.TensorSpec(shape, dtype))
    return {operation.type for operation in function.graph.get_operations()}


def assert_close(ours, keras_own, tolerance):
    for one, other in zip(tf.nest.flatten(ours), tf.nest.flatten(keras_own), strict=True):
        assert one.dtype == other.dtype
        other = tf.cast(other, "float32").numpy()
        scale = max(1.0, np.abs(other).max())
        np.testing.assert_allclose(tf.cast(one, "float32").numpy(), other, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("count", [1, 6], ids=["partial", "full"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize(
    ("policy", "dtype"),
    [("float32", "float32"), ("mixed_bfloat16", "bfloat16"), ("mixed_float16", "float16"), ("float16", "float16")],
)
def test_outputs_gradients_and_statistics_are_those_of_keras(policy, dtype, training, count):
    ours, keras_own = pair(policy)
    x = values((count, *SHAPE[1:]), dtype)
    assert "FusedBatchNormV3" in operations(ours, training, x.shape, dtype)
    assert_close(step(ours, x, training), step(keras_own, x, training), ULP[dtype])
    assert_same_weights(ours, keras_own, tolerance=1e-5 if policy != "float16" else ULP["float16"])


def test_outputs_in_half_precision_are_rounded_once():
    """The statistics and the map are computed in float32 from the rounded input."""
    ours, _ = pair("mixed_float16")
    x = values(dtype="float16")
    exact = np.float64(x)
    mean, variance = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    gamma, beta = (np.float64(weight) for weight in ours.weights[:2])
    expected = (exact - mean) / np.sqrt(variance + 1e-5) * gamma + beta
    np.testing.assert_allclose(ours(x, training=True), expected, rtol=6e-4, atol=1e-4)


@pytest.mark.parametrize("arguments", [{"scale": False}, {"center": False}, {"scale": False, "center": False}])
def test_without_scale_or_center(arguments):
    ours, keras_own = pair(**arguments)
    for training in (True, False):
        assert_close(step(ours, values(), training), step(keras_own, values(), training), 1e-5)
    assert_same_weights(ours, keras_own, tolerance=1e-5)


def test_one_value_of_a_channel_has_no_variance():
    ours, keras_own = pair()
    x = values((1, 1, 1, 4))
    assert_close(step(ours, x, training=True), step(keras_own, x, training=True), 1e-5)
    assert_same_weights(ours, keras_own, tolerance=1e-5)
    assert np.isfinite(np.concatenate(ours.get_weights())).all()


def test_the_moving_variance_is_the_biased_one():
    """By hand: of 0 and 2 the mean is 1 and the variance 1, not the 2 that dividing by one less gives."""
    layer = BatchNormalization(momentum=0.5)
    layer(np.array([0.0, 2.0], "float32").reshape(2, 1, 1, 1), training=True)
    assert [float(weight[0]) for weight in layer.non_trainable_weights] == [0.5, 1.0]


def test_an_epsilon_below_the_wrappers_least_is_kept():
    """`tf.nn`'s wrapper would compute with 1.001e-5."""
    layer = BatchNormalization(epsilon=1e-7, center=False, scale=False)
    layer.build((None, 1, 1, 1))
    layer.set_weights([np.zeros(1), np.zeros(1)])
    x = np.full((1, 1, 1, 1), 1e-4, "float32")
    assert float(layer(x)[0, 0, 0, 0]) == pytest.approx(1e-4 / np.sqrt(1e-7), rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_under_jit(training):
    ours, keras_own = pair()
    assert_close(step(ours, values(), training, jit=True), step(keras_own, values(), training), 2e-5)
    assert_same_weights(ours, keras_own, tolerance=1e-5)


def test_a_frozen_layer_normalises_by_its_moving_averages_and_keeps_them():
    ours, keras_own = pair()
    ours.trainable = keras_own.trainable = False
    before = ours.get_weights()
    outputs, (gradient, *_) = step(ours, values(), training=True)
    np.testing.assert_allclose(outputs, ours(values(), training=False), rtol=1e-5, atol=1e-5)
    assert_close([outputs, gradient], step(keras_own, values(), training=True)[:2], 1e-5)
    for one, other in zip(before, ours.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("arguments", "shape", "policy"),
    [
        ({}, (6, 4), "float32"),
        ({}, (6, 3, 4), "float32"),
        ({}, (6, 2, 3, 3, 4), "float32"),
        ({"axis": 1}, SHAPE, "float32"),
        ({"renorm": True, "renorm_clipping": {"rmax": 2.0, "rmin": 0.5, "dmax": 1.0}}, SHAPE, "float32"),
        ({}, SHAPE, "float64"),
    ],
    ids=["rank 2", "rank 3", "rank 5", "axis 1", "renorm", "float64"],
)
def test_everything_else_goes_keras_way_bit_for_bit(arguments, shape, policy):
    if not set(arguments) <= set(inspect.signature(layers.BatchNormalization).parameters):
        pytest.skip("this version of Keras has no such argument")
    ours, keras_own = pair(policy, shape, **arguments)
    x = values(shape, policy)
    assert "FusedBatchNormV3" not in operations(ours, True, shape, policy)
    for one, other in zip(step(ours, x, True)[1], step(keras_own, x, True)[1], strict=True):
        np.testing.assert_array_equal(one, other)
    assert_same_weights(ours, keras_own)


def test_statistics_are_shared_where_there_is_who_to_share_them_with(monkeypatch):
    ours, _ = pair(synchronized=True)
    assert "FusedBatchNormV3" in operations(ours, True)
    with monkeypatch.context() as patch:
        patch.setattr(tf.distribute, "get_strategy", lambda: types.SimpleNamespace(num_replicas_in_sync=2))
        assert "FusedBatchNormV3" in operations(ours, False)
        assert "FusedBatchNormV3" not in operations(ours, True)


def test_a_mask_goes_keras_way():
    ours, keras_own = pair()
    mask = np.random.default_rng(0).integers(0, 2, SHAPE[:-1]).astype(bool)
    np.testing.assert_array_equal(
        ours(values(), training=True, mask=mask), keras_own(values(), training=True, mask=mask)
    )
    assert_same_weights(ours, keras_own)


def test_keras_own_layer_is_still_unfused():
    """When this fails, Keras fuses it itself, and the subclass and `models.fused` can go."""
    _, keras_own = pair()
    for training in (True, False):
        assert not {name for name in operations(keras_own, training) if "FusedBatchNorm" in name}


@pytest.mark.parametrize("kind", [BatchNormalization, layers.BatchNormalization])
def test_renewed_statistics_are_the_means_over_batches_by_their_sizes(kind):
    inner = keras.Sequential([keras.Input((4, 4, 2)), kind(name="inner"), layers.Dropout(0.5)])
    frozen = kind(trainable=False, name="frozen")
    model = keras.Sequential([keras.Input((4, 4, 2)), inner, frozen])
    batches = [values((count, 4, 4, 2), seed=count) for count in (6, 6, 1)]
    inner.layers[0].moving_mean.assign([7.0, 8.0])
    inner.layers[0].gamma.assign([2.0, 3.0])
    renew_statistics(model, batches)
    images = [batch.numpy().astype("float64") for batch in batches]
    means = sum(len(batch) * batch.mean((0, 1, 2)) for batch in images) / 13
    variances = sum(len(batch) * batch.var((0, 1, 2)) for batch in images) / 13
    np.testing.assert_allclose(inner.layers[0].moving_mean, means, rtol=1e-5)
    np.testing.assert_allclose(inner.layers[0].moving_variance, variances, rtol=1e-5)
    assert inner.layers[0].momentum == 0.99
    assert inner.layers[0].gamma.numpy().tolist() == [2.0, 3.0]
    assert frozen.moving_variance.numpy().tolist() == [1.0, 1.0]


def test_without_batches_or_layers_no_statistics_are_renewed():
    model = keras.Sequential([keras.Input((4, 4, 2)), BatchNormalization()])
    renew_statistics(model, [])
    assert model.layers[0].moving_variance.numpy().tolist() == [1.0, 1.0]
    renew_statistics(keras.Sequential([keras.Input((4,)), layers.Dense(2)]), iter([tf.ones((2, 4))]))
