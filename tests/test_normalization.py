"""The fused BatchNormalization against Keras' own, and what files say of it."""

import inspect
import json
import subprocess
import sys
import types
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from architectures import SMALL, pixels, randomize
from keras import layers
from networks import CLASSES, IMAGE_SHAPE, assert_same_weights, cross_entropy, images, small_network

from spkd_keras import Distiller, Term, losses, models
from spkd_keras.export.folding import inference_network
from spkd_keras.models import BatchNormalization

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


def test_synchronized_copies():
    model = small_network()
    copy = models.synchronized(model)
    found = [layer.synchronized for layer in copy.layers if isinstance(layer, layers.BatchNormalization)]
    assert found == [True, True]
    assert_same_weights(copy, model)
    assert models.synchronized(copy) is copy


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


# --- in networks ---------------------------------------------------------------------------------------------------


def written_classes(path):
    """Module, class and registered name of every layer in a file."""
    with zipfile.ZipFile(path) as archive:
        text = archive.read("config.json").decode()
    found = set()
    json.loads(text, object_hook=lambda item: found.add((item.get("module"), item.get("class_name"))) or item)
    return found, text


@pytest.mark.parametrize("family", SMALL)
def test_files_hold_standard_layers_and_the_networks_keep_their_fingerprint(family, tmp_path):
    model = randomize(SMALL[family]())
    normalisations = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    assert {type(layer) for layer in normalisations} == {BatchNormalization}
    assert models.fused_layers(model) == sorted(layer.name for layer in normalisations)
    model.save(tmp_path / "model.keras")
    classes, text = written_classes(tmp_path / "model.keras")
    assert ("keras.layers", "BatchNormalization") in classes
    assert "spkd" not in text
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert models.fused_layers(loaded) == []
    again = models.fused(loaded)
    assert models.fused_layers(again) == models.fused_layers(model)
    assert models.fused(again) is again
    assert models.fingerprint(model) == models.fingerprint(loaded) == models.fingerprint(again)
    assert models.multiply_adds(model) == models.multiply_adds(loaded)
    x = pixels(3, model)
    np.testing.assert_allclose(model(x), loaded(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(model(x), again(x))


def test_weight_files_go_both_ways(tmp_path):
    ours = randomize(SMALL["resnet"]())
    ours.save(tmp_path / "ours.keras")
    ours.save_weights(tmp_path / "ours.weights.h5")
    keras_own = keras.saving.load_model(tmp_path / "ours.keras")
    keras_own.set_weights([0 * value for value in ours.get_weights()])
    keras_own.load_weights(tmp_path / "ours.weights.h5")
    assert_same_weights(ours, keras_own)
    keras_own.save_weights(tmp_path / "keras.weights.h5")
    ours.set_weights([0 * value for value in ours.get_weights()])
    ours.load_weights(tmp_path / "keras.weights.h5")
    assert_same_weights(ours, keras_own)


@pytest.mark.slow
def test_a_student_loads_where_this_package_is_not(tmp_path):
    """Saved by the user, by the copy that is made of it, and from within a Distiller."""
    student = SMALL["wide_resnet"]()
    distiller = Distiller(None, student)
    distiller.student.save(tmp_path / "student.keras")
    keras.models.clone_model(student).save(tmp_path / "clone.keras")
    np.save(tmp_path / "x.npy", pixels(2, student))
    np.save(tmp_path / "y.npy", student(pixels(2, student)))
    code = """
import sys, builtins
sys.modules["spkd_keras"] = None  # importing it fails
import keras, numpy as np
for name in ("student", "clone"):
    model = keras.saving.load_model(name + ".keras")
    assert {type(layer).__module__.split(".")[0] for layer in model.layers} == {"keras"}
    if name == "student":
        np.testing.assert_allclose(model(np.load("x.npy")), np.load("y.npy"), rtol=1e-4, atol=1e-5)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_fused_takes_what_a_user_brings():
    """Nested, Sequential, frozen and shared layers; the given model is left as it was."""
    inner = small_network(name="inner")
    inner.get_layer("bn1").trainable = False
    model = keras.Sequential([keras.Input(IMAGE_SHAPE), inner])
    x, y = images(12)
    expected = model(x).numpy()
    copy = models.fused(model)
    assert (models.fused_layers(copy), models.fused_layers(model)) == (["bn1", "bn2"], [])
    np.testing.assert_allclose(copy(x), expected, rtol=1e-4, atol=1e-5)
    assert not copy.get_layer("inner").get_layer("bn1").trainable
    assert models.fused_layers(models.fused(model, names=["bn2"])) == ["bn2"]
    for each in (model, copy):
        each.compile(keras.optimizers.SGD(0.1), cross_entropy())
    model_before = model.get_weights()
    copy.fit(x, y, verbose=0, shuffle=False)
    for one, other in zip(model_before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    model.fit(x, y, verbose=0, shuffle=False)
    assert_same_weights(model, copy, tolerance=1e-5)


def test_fused_refuses_what_cannot_be_copied():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.normalise = layers.BatchNormalization()

        def call(self, x):
            return self.normalise(x)

    model = Own()
    model(np.zeros((1, 2, 2, 3), "float32"))
    with pytest.raises(ValueError, match="cannot be copied to the fused BatchNormalization layer by layer"):
        models.fused(model)
    assert models.fused(keras.Sequential([keras.Input((3,)), layers.Dense(2)])) is not None


def test_the_copy_in_another_precision_stays_fused():
    copy = models.in_precision(SMALL["wide_resnet"](), "bfloat16")
    assert len(models.fused_layers(copy)) == len(models.fused_layers(SMALL["wide_resnet"]()))


@pytest.mark.parametrize("is_fused", [True, False])
def test_a_loaded_distiller_computes_as_before(is_fused, tmp_path):
    """Its file has Keras' layers, and it goes on with the kernels that it had, so that the steps are the same."""
    x, y = images(16)
    teacher = small_network(8)
    student = models.fused(small_network()) if is_fused else small_network()
    distiller = Distiller(teacher, student, [Term(losses.SimilarityPreserving(), 10.0)])
    distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9), cross_entropy())
    distiller.fit(x, y, batch_size=8, verbose=0, shuffle=False)
    distiller.save(tmp_path / "distiller.keras")
    assert ("spkd_keras.models.normalization", "BatchNormalization") not in written_classes(
        tmp_path / "distiller.keras"
    )[0]
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert models.fused_layers(loaded.student) == (["bn1", "bn2"] if is_fused else [])
    loaded.teacher = teacher
    for each in (distiller, loaded):
        each.fit(x, y, batch_size=8, verbose=0, shuffle=False)
    assert_same_weights(distiller, loaded)


def test_networks_of_keras_applications_are_fused():
    network = models.keras_application("MobileNetV2", num_classes=CLASSES, image_shape=(32, 32, 3), alpha=0.35)
    assert len(models.fused_layers(network)) == 52


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_copies_of_an_adapted_normalization_compute_with_its_statistics(dtype):
    image = keras.Input((4, 4, 3))
    adapted = keras.layers.Normalization(dtype="float32")
    adapted.adapt(np.random.default_rng(0).normal(50.0, 7.0, (20, 4, 4, 3)))
    network = keras.Model(image, keras.layers.GlobalAveragePooling2D(dtype="float32")(adapted(image)))
    x = np.random.default_rng(1).normal(50.0, 7.0, (2, 4, 4, 3)).astype("float32")
    copies = [models.in_precision(network, dtype), models.fused(network), inference_network(network)]
    for copy in copies:
        outputs = copy(x)
        np.testing.assert_allclose(outputs, network(x), rtol=1e-4, atol=1e-4)
