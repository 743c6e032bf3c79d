"""What is inside an export, and what a SavedModel's signatures take."""

import hashlib
import json

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from architectures import randomize
from exported import NAMES, exported, exported_network, logits_of
from keras import layers
from networks import images
from pictures import gradient

from spkd_keras import models
from spkd_keras.data.augmentation import central_crop
from spkd_keras.export import export_student, load_runner
from spkd_keras.export.litert_format import read_texts


@pytest.fixture(scope="module")
def network():
    return exported_network()


@pytest.fixture(scope="module")
def exports(network, tmp_path_factory):
    return exported(network, tmp_path_factory.mktemp("exports"))


def test_metadata_are_inside_and_beside(network, exports):
    expected = {
        **{"image_shape": [8, 8, 1], "class_names": list(NAMES), "input_dtype": "uint8", "resize": "stretch"},
        **{"quantize": None, "weights": models.fingerprint(network), "name": network.name, "licence": "unspecified"},
        **{"input": "image", "outputs": ["logits", "probabilities"]},
    }
    saved = json.loads((exports["saved_model"].path / "assets.extra" / "metadata.json").read_text(encoding="utf-8"))
    in_litert = read_texts(exports["litert"].path.read_bytes())
    in_onnx = {entry.key: entry.value for entry in onnx.load(exports["onnx"].path).metadata_props}
    assert saved == expected
    for texts in (in_litert, in_onnx):
        assert {key: json.loads(texts[key]) for key in expected} == expected
    for export in exports.values():
        beside = json.loads(export.path.with_name(export.path.name + ".json").read_text(encoding="utf-8"))
        assert {key: beside[key] for key in expected} == expected
        assert beside["check"]["largest_difference"] == export.check.largest_difference
        assert beside["bytes"] == export.sizes["bytes"]
        assert beside == {**expected, **export.as_dict()}
        assert export.as_dict()["input_dtype"] == "uint8"
        runner = load_runner(export.path)
        assert (runner.class_names, runner.image_shape, runner.input_dtype) == (NAMES, (8, 8, 1), "uint8")
    assert exports["onnx"].sha256 == hashlib.sha256(exports["onnx"].path.read_bytes()).hexdigest()


def test_a_saved_model_has_each_variable_once_and_no_normalisation(exports):
    names = dict(tf.train.list_variables(str(exports["saved_model"].path / "variables" / "variables")))
    shapes = sorted(tuple(shape) for name, shape in names.items() if "OBJECT_GRAPH" not in name)
    assert shapes == sorted([(3, 3, 1, 8), (8,), (3, 3, 8, 8), (8,), (8, 4), (4,)])
    assert not any("bn" in name for name in names)


def test_signatures_of_a_saved_model(network, exports):
    loaded = tf.saved_model.load(str(exports["saved_model"].path))
    assert sorted(loaded.signatures) == ["serving_bytes", "serving_default", "serving_float32", "serving_uint8"]
    given, _ = images(7)
    expected = logits_of(network, given)
    for name, pixels_given in (
        ("serving_default", given),
        ("serving_uint8", given),
        ("serving_float32", given.astype("float32")),
    ):
        outputs = loaded.signatures[name](image=tf.constant(pixels_given))
        assert sorted(outputs) == ["logits", "probabilities"]
        np.testing.assert_allclose(outputs["logits"], expected, atol=1e-5)
    for pixels_given in (given, given.astype("float32")):
        np.testing.assert_allclose(loaded(tf.constant(pixels_given))["logits"], expected, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_bytes_of_pictures(tmp_path, channels):
    shape = (12, 9, channels)
    wide = randomize(
        keras.Sequential([keras.Input(shape), layers.Conv2D(4, 3), layers.GlobalAveragePooling2D(), layers.Dense(3)])
    )
    path = export_student(wide, tmp_path / "saved", "saved_model").path
    classify = tf.saved_model.load(str(path)).signatures["serving_bytes"]
    given = np.random.default_rng(0).integers(0, 256, (32, *shape), dtype=np.uint8)
    as_png = [tf.io.encode_png(image).numpy() for image in given]
    as_jpeg = [tf.io.encode_jpeg(image).numpy() for image in given]
    # TensorFlow's default for JPEG is a fast transform, which is not what the student saw.
    decoded = np.stack([tf.io.decode_jpeg(image, channels, dct_method="INTEGER_ACCURATE") for image in as_jpeg])
    for encoded, expected in ((as_png, given), (as_jpeg, decoded)):
        for count in (1, 7, 32):
            outputs = classify(image_bytes=tf.constant(encoded[:count]))
            np.testing.assert_allclose(outputs["logits"], logits_of(wide, expected[:count]), atol=1e-4)
    large = np.repeat(np.repeat(given, 2, axis=1), 2, axis=2)
    halved = np.asarray(tf.image.resize(large, shape[:2], antialias=True)).round().clip(0, 255).astype("uint8")
    outputs = classify(image_bytes=tf.constant([tf.io.encode_png(image).numpy() for image in large]))
    np.testing.assert_allclose(outputs["logits"], logits_of(wide, halved), atol=1e-4)
    with pytest.raises(tf.errors.InvalidArgumentError):
        classify(image_bytes=tf.constant([b"no picture"]))


def test_bytes_of_photos_are_cropped_as_they_are_evaluated(tmp_path):
    network = randomize(
        keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(3)])
    )
    path = export_student(network, tmp_path / "saved", "saved_model", resize="crop").path
    photos = [tf.io.encode_jpeg(gradient(60 + size, 90 - size)).numpy() for size in range(0, 40, 10)]
    expected = np.stack([central_crop(photo, 8) for photo in photos])
    classify = tf.saved_model.load(str(path)).signatures["serving_bytes"]
    np.testing.assert_allclose(
        classify(image_bytes=tf.constant(photos))["logits"], logits_of(network, expected), atol=1e-4
    )
