"""Networks with the fused BatchNormalization: their files, and copies with it or without it."""

import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from architectures import SMALL, pixels, randomize
from keras import layers
from networks import CLASSES, IMAGE_SHAPE, assert_same_weights, cross_entropy, images, small_network

from spkd_keras import Distiller, Term, losses, models
from spkd_keras.export.folding import inference_network
from spkd_keras.models import BatchNormalization


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
    plain = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    assert models.fused(plain) is plain  # there is nothing to fuse


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


def test_synchronized_copies():
    model = small_network()
    copy = models.synchronized(model)
    found = [layer.synchronized for layer in copy.layers if isinstance(layer, layers.BatchNormalization)]
    assert found == [True, True]
    assert_same_weights(copy, model)
    assert models.synchronized(copy) is copy


def mean_of_outputs(y, y_pred):
    """A loss that no file knows."""
    return keras.ops.mean(y_pred, -1)


def test_a_compiled_network_is_copied_whatever_its_loss():
    model = small_network()
    model.compile("adam", mean_of_outputs)
    for copy in (models.fused(model), models.synchronized(model), models.in_precision(model, "bfloat16")):
        assert_same_weights(copy, model)
        assert not copy.compiled
    assert model.compiled
