"""Every family of networks: a training step in each precision, gradients, and files."""

import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from architectures import SMALL, each_family, pixels, randomize
from networks import cross_entropy

from spkd_keras.models import fused, in_precision

QUICK = {
    "mixed_float16": ("wide_resnet", "resnet"),
    "mixed_bfloat16": ("wide_resnet", "mobilenet", "resnet"),
    "jit": ("wide_resnet", "resnet"),
}


@pytest.mark.parametrize(
    ("mode", "family"),
    [
        pytest.param(mode, family, marks=() if family in quick else pytest.mark.slow)
        for mode, quick in QUICK.items()
        for family in SMALL
    ],
)
def test_a_training_step(mode, family):
    if mode != "jit":
        keras.config.set_dtype_policy(mode)
    model = SMALL[family](num_classes=3)
    assert model.compute_dtype == {"jit": "float32"}.get(mode, mode.removeprefix("mixed_"))
    images, labels = pixels(6, model), np.arange(6) % 3
    before = [weight.numpy() for weight in model.trainable_weights]
    model.compile("sgd", cross_entropy(), jit_compile=mode == "jit")
    # Keras starts with a loss scale of 32768 and skips the steps until it is low enough.
    history = model.fit(images, labels, epochs=12 if mode == "mixed_float16" else 1, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    for weight, then in zip(model.trainable_weights, before, strict=True):
        assert weight.dtype == "float32"
        assert np.isfinite(weight).all()
        assert not np.array_equal(weight, then), weight.path
    logits = model(images)
    assert logits.dtype == "float32"
    assert np.isfinite(logits).all()


@each_family
def test_the_gradient_reaches_every_trainable_weight(family):
    model = SMALL[family]()
    images, labels = pixels(8, model), np.arange(8)
    with tf.GradientTape() as tape:
        loss = cross_entropy()(labels, model(images, training=True))
    values = [weight.value for weight in model.trainable_weights]
    for weight, gradient in zip(model.trainable_weights, tape.gradient(loss, values), strict=True):
        assert gradient is not None, weight.path
        assert np.isfinite(gradient).all(), weight.path
        assert np.any(gradient), weight.path


@each_family
def test_saved_files_hold_standard_layers_only(family, tmp_path):
    model = randomize(SMALL[family]())
    images = pixels(4, model)
    model.save(tmp_path / "network.keras")
    with zipfile.ZipFile(tmp_path / "network.keras") as archive:
        assert "spkd_keras" not in archive.read("config.json").decode()
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    # Keras' own kernels and ours differ in their last bits; ours put back do not.
    np.testing.assert_allclose(loaded(images), model(images), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(fused(loaded)(images), model(images))
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
    for saved, weight in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(saved.numpy(), weight.numpy(), err_msg=saved.path)


@each_family
def test_a_copy_layer_by_layer_computes_the_same(family):
    """As for `teacher_dtype`: also where the graph has operations that are no layers."""
    model = randomize(SMALL[family]())
    images = pixels(4, model)
    np.testing.assert_array_equal(in_precision(model, "float32")(images), model(images))
    assert in_precision(model, "bfloat16").get_layer("logits").dtype_policy.name == "float32"


def test_networks_of_one_precision_have_the_weights_of_another(tmp_path):
    """What was trained in mixed_bfloat16 is loaded into float32."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = randomize(SMALL["resnet"]())
    model.save(tmp_path / "network.keras")
    keras.config.set_dtype_policy("float32")
    loaded = SMALL["resnet"](weights=tmp_path / "network.keras")
    assert loaded.compute_dtype == "float32"
    for saved, weight in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(saved.numpy(), weight.numpy(), err_msg=saved.path)
