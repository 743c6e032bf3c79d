"""`export_student`: what is in each file, that it is the student, and that a file is whole or not there."""

import hashlib
import json
import warnings

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from architectures import pixels, randomize
from keras import layers
from networks import images, small_network
from pictures import gradient

from spkd_keras import models
from spkd_keras.data.augmentation import central_crop
from spkd_keras.export import FORMATS, ExportMismatch, check, export_student, inference_network, load_runner, student
from spkd_keras.export.litert_format import interpreter, read_texts

NAMES = ("cat", "dog", "äpple", "4")
FILES = {"saved_model": "saved_model", "litert": "student.tflite", "onnx": "student.onnx"}
each_format = pytest.mark.parametrize("kind", FORMATS)


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    return randomize(small_network(8))


@pytest.fixture(scope="module")
def exports(network, tmp_path_factory):
    """The network in every format, compared on images with labels."""
    folder = tmp_path_factory.mktemp("exports")
    given, labels = images(40)
    return {
        name: export_student(network, folder / file, name, images=given, labels=labels, class_names=NAMES)
        for name, file in FILES.items()
    }


def logits_of(network, given):
    return np.asarray(network(given.astype("float32"), training=False))


# --- the same network ------------------------------------------------------------------------------------------------


@each_format
def test_an_export_gives_the_students_logits_for_batches_of_any_size(network, exports, kind):
    runner = load_runner(exports[kind].path)
    for count in (1, 7, 32, 33):
        given, _ = images(count, seed=count)
        outputs = runner.predict(given)
        expected = logits_of(network, given)
        assert outputs["logits"].dtype == np.float32
        np.testing.assert_allclose(outputs["logits"], expected, atol=1e-5)
        exponentials = np.exp(expected.astype("float64"))
        softmax = exponentials / exponentials.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(outputs["probabilities"], softmax, atol=1e-5)


@each_format
def test_what_the_comparison_reports(network, exports, kind):
    given, labels = images(40)
    found = exports[kind].check
    accuracy = np.mean(logits_of(network, given).argmax(axis=1) == labels)
    assert (found.images, found.agreement) == (40, 1.0)
    assert found.student_accuracy == found.export_accuracy == pytest.approx(accuracy)
    assert 0 <= found.largest_difference < 1e-5
    assert found.accuracy_drop == 0


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_a_student_in_less_precision_leaves_in_float32(tmp_path, policy):
    keras.config.set_dtype_policy(policy)
    mixed = randomize(small_network(8))
    keras.config.set_dtype_policy("float32")
    given, labels = images(40)
    in_float32 = models.in_precision(mixed, "float32")
    for name, file in FILES.items():
        export = export_student(mixed, tmp_path / file, name, images=given, labels=labels)
        outputs = load_runner(export.path).predict(given)["logits"]
        np.testing.assert_allclose(outputs, logits_of(in_float32, given), atol=1e-5)
        own = np.asarray(mixed(given, training=False), "float32")
        assert np.abs(outputs - own).max() > 1e-5, "the mixed student itself rounds"
        assert export.check.student_accuracy == pytest.approx(np.mean(own.argmax(axis=1) == labels))


def test_both_dtypes_of_pixels_are_taken(network, exports, tmp_path):
    given, _ = images(7)
    expected = logits_of(network, given)
    halves = given.astype("float32") + np.float32(0.25) * (given < 255)
    for name, file in FILES.items():
        takes_uint8 = load_runner(exports[name].path)
        np.testing.assert_allclose(takes_uint8.predict(given.astype("float32"))["logits"], expected, atol=1e-5)
        if name == "saved_model":  # which has a signature for each
            np.testing.assert_allclose(takes_uint8.predict(halves)["logits"], logits_of(network, halves), atol=1e-5)
        else:
            with pytest.raises(ValueError, match=r"takes uint8 pixels, whole numbers .* float32 pixels instead"):
                takes_uint8.predict(halves)
        other = export_student(network, tmp_path / file, name, input_dtype="float32", images=given)
        takes_float32 = load_runner(other.path)
        assert takes_float32.input_dtype == "float32"
        np.testing.assert_allclose(takes_float32.predict(given)["logits"], expected, atol=1e-5)
        np.testing.assert_allclose(takes_float32.predict(halves)["logits"], logits_of(network, halves), atol=1e-5)


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["litert", "onnx"])
@pytest.mark.parametrize("quantize", ["float16", "int8"])
def test_less_precision_is_smaller_and_nearly_the_student(tmp_path, kind, quantize):
    wide = randomize(small_network(64))
    given, labels = images(200)
    path = tmp_path / FILES[kind]
    whole = export_student(wide, path, kind, images=given, labels=labels)
    less = export_student(
        wide, path, kind, images=given, labels=labels, quantize=quantize, calibration=given, largest_drop=0.2
    )
    assert less.sizes["bytes"] < (0.6 if quantize == "float16" else 0.4) * whole.sizes["bytes"]
    assert 1e-5 < less.check.largest_difference < (0.01 if quantize == "float16" else 0.5)
    assert less.check.agreement > 0.9
    assert load_runner(path).metadata.quantize == quantize


def test_int8_has_a_scale_for_each_channel_in_litert(network, tmp_path):
    given, _ = images(40)
    export_student(network, tmp_path / "a.tflite", "litert", images=given, quantize="int8", calibration=given)
    tensors = interpreter((tmp_path / "a.tflite").read_bytes(), 1).get_tensor_details()
    kernels = [t for t in tensors if t["dtype"] == np.int8 and list(t["shape"][1:3]) == [3, 3] and t["shape"][0] == 8]
    assert len(kernels) == 2
    for kernel in kernels:
        scales = kernel["quantization_parameters"]["scales"]
        assert len(set(scales.tolist())) == 8
        assert kernel["quantization_parameters"]["quantized_dimension"] == 0


def test_int8_has_a_scale_for_each_channel_in_onnx(network, tmp_path):
    given, _ = images(40)
    exported = {"images": given, "quantize": "int8", "calibration": given, "largest_drop": 0.1}
    export_student(network, tmp_path / "a.onnx", "onnx", **exported)
    model = onnx.load(tmp_path / "a.onnx")
    constants = {constant.name: onnx.numpy_helper.to_array(constant) for constant in model.graph.initializer}
    kernels = [name for name, value in constants.items() if value.dtype == np.int8 and value.ndim == 4]
    assert len(kernels) == 2
    scales = [node.input[1] for node in model.graph.node if node.input and node.input[0] in kernels]
    assert [constants[name].shape for name in scales] == [(8,), (8,)]


def test_integer_kernels_do_not_overflow(network, tmp_path):
    """Where the processor has VNNI this passes with weights of 8 bits too, and `reduce_range` is for others."""
    given, _ = images(40)
    exported = {"images": given, "quantize": "int8", "calibration": given, "largest_drop": 0.1}
    path = export_student(network, tmp_path / "a.onnx", "onnx", **exported).path
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # float32 kernels
    in_float32 = onnxruntime.InferenceSession(path, plain).run(["logits"], {"image": given})[0]
    np.testing.assert_allclose(load_runner(path).predict(given)["logits"], in_float32, atol=0.05)


# --- what is inside --------------------------------------------------------------------------------------------------


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
    given = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    as_png = [tf.io.encode_png(image).numpy() for image in given]
    as_jpeg = [tf.io.encode_jpeg(image).numpy() for image in given]
    # TensorFlow's default for JPEG is a fast transform, which is not what the student saw.
    decoded = np.stack([tf.io.decode_jpeg(image, channels, dct_method="INTEGER_ACCURATE") for image in as_jpeg])
    for encoded, expected in ((as_png, given), (as_jpeg, decoded)):
        for count in (1, 3):
            outputs = classify(image_bytes=tf.constant(encoded[:count]))
            np.testing.assert_allclose(outputs["logits"], logits_of(wide, expected[:count]), atol=1e-4)
    large = np.repeat(np.repeat(given, 2, axis=1), 2, axis=2)
    halved = np.asarray(tf.image.resize(large, shape[:2], antialias=True)).round().clip(0, 255).astype("uint8")
    outputs = classify(image_bytes=tf.constant([tf.io.encode_png(image).numpy() for image in large]))
    np.testing.assert_allclose(outputs["logits"], logits_of(wide, halved), atol=1e-4)
    with pytest.raises(tf.errors.InvalidArgumentError):
        classify(image_bytes=tf.constant([b"no picture"]))


def test_bytes_of_photos_are_cropped_as_they_are_evaluated(tmp_path):
    network = randomize(models.wide_resnet(10, 0.25, image_shape=(8, 8, 3)))
    path = export_student(network, tmp_path / "saved", "saved_model", resize="crop").path
    photos = [tf.io.encode_jpeg(gradient(60 + size, 90 - size)).numpy() for size in range(0, 40, 10)]
    expected = np.stack([central_crop(photo, 8) for photo in photos])
    classify = tf.saved_model.load(str(path)).signatures["serving_bytes"]
    np.testing.assert_allclose(
        classify(image_bytes=tf.constant(photos))["logits"], logits_of(network, expected), atol=1e-4
    )


# --- folding ---------------------------------------------------------------------------------------------------------


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


# --- a mismatch, a kill, wrong use -----------------------------------------------------------------------------------


@each_format
def test_a_mismatch_leaves_no_file(network, tmp_path, monkeypatch, kind):
    wrong = randomize(small_network(8), seed=1)
    monkeypatch.setattr(student, "inference_network", lambda _: inference_network(wrong))
    path = tmp_path / FILES[kind]
    with pytest.raises(ExportMismatch, match=r"is not the student: its logits differ by up to .* where 0.0001 is"):
        export_student(network, path, kind)
    assert list(tmp_path.iterdir()) == []


def test_a_difference_of_a_thousandth_is_a_mismatch_and_the_file_before_stays(network, exports, tmp_path, monkeypatch):
    path = tmp_path / "student.onnx"
    path.write_bytes(exports["onnx"].path.read_bytes())
    nearly = randomize(small_network(8))
    nearly.get_layer("logits").bias.assign_add([1e-3, 0, 0, 0])
    monkeypatch.setattr(student, "inference_network", lambda _: inference_network(nearly))
    with pytest.raises(ExportMismatch, match=r"differ by up to 1\.00e-03"):
        export_student(network, path, "onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["student.onnx"]
    assert path.read_bytes() == exports["onnx"].path.read_bytes()


def test_int8_that_loses_too_much_is_a_mismatch(network, tmp_path):
    given, _ = images(200)
    labels = logits_of(network, given).argmax(axis=1)
    black = np.zeros_like(given[:4])  # ranges of no use
    path = tmp_path / "student.tflite"
    with pytest.raises(ExportMismatch, match=r"loses [\d.]+ points of accuracy on 200 images, where 2 are allowed"):
        export_student(network, path, "litert", images=given, labels=labels, quantize="int8", calibration=black)
    assert list(tmp_path.iterdir()) == []


def test_not_a_number_is_a_mismatch():
    found = check.Check(3, "noise", float("nan"), 1.0, 1.0, 1.0, 1.0)
    for quantize in (None, "int8"):
        with pytest.raises(ExportMismatch):
            check.judge(found, quantize, 0.02, "x.onnx")


@pytest.mark.parametrize(
    ("difference", "logit", "passes"),
    [(1e-4, 25.0, True), (1.01e-4, 25.0, False), (1.01e-4, 30.0, True), (1e-3, 249.0, False), (1e-3, 251.0, True)],
)
def test_what_is_allowed_grows_with_large_logits_as_their_rounding_does(difference, logit, passes):
    found = check.Check(3, "noise", difference, logit, 1.0, None, None)
    if passes:
        check.judge(found, None, 0.02, "x.onnx")
    else:
        with pytest.raises(ExportMismatch):
            check.judge(found, None, 0.02, "x.onnx")


def test_an_export_replaces_the_one_before(network, tmp_path):
    other = randomize(small_network(8), seed=1)
    given, _ = images(3)
    for name, file in FILES.items():
        path = tmp_path / file
        for model in (network, other):
            export_student(model, path, name)
        np.testing.assert_allclose(load_runner(path).predict(given)["logits"], logits_of(other, given), atol=1e-5)
    expected = {name for file in FILES.values() for name in (file, f"{file}.json")}
    assert {file.name for file in tmp_path.iterdir()} == expected


def test_arguments_are_checked(network, tmp_path):
    given, labels = images(4)
    softmax = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(3, activation="softmax")])
    any_size = keras.Sequential([keras.Input((None, None, 1)), layers.GlobalAveragePooling2D(), layers.Dense(3)])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").touch()
    for model, path, kind, options, said in (
        (network, "a.onnx", "openvino", {}, "`format` must be one of saved_model, litert, onnx. Received: 'openvino'"),
        (network, "a.onnx", "litert", {}, r"`path` of litert must end in .tflite. Received: .*a.onnx"),
        (network, "a.tflite", "litert", {"quantize": "int4"}, "`quantize` must be one of float16, int8"),
        (network, "a.tflite", "litert", {"quantize": "int8"}, "`calibration` must be some real training images"),
        (network, "a", "saved_model", {"quantize": "int8"}, "`quantize` is for litert and onnx. Received: format='sav"),
        (network, "a.onnx", "onnx", {"input_dtype": "int8"}, "`input_dtype` must be one of uint8, float32"),
        (network, "a.onnx", "onnx", {"class_names": ["a"]}, "`class_names` must have 4 names.* Received: 1"),
        (
            network,
            "a.onnx",
            "onnx",
            {"images": given[..., 0]},
            r"`images` must be uint8 images of shape \(n, 8, 8, 1\)",
        ),
        (network, "a.onnx", "onnx", {"images": given[:0]}, "`images` must be uint8 images .* at least one"),
        (network, "a.onnx", "onnx", {"images": given, "labels": labels[1:]}, r"`labels` must have the shape \(4,\)"),
        (network, "a.onnx", "onnx", {"resize": "crop"}, "`resize` crop is for square colour images"),
        (network, "folder", "saved_model", {}, "`path` exists and is no saved_model that could be replaced"),
        (softmax, "a.onnx", "onnx", {}, "ends in a softmax or sigmoid. Leave it out"),
        (any_size, "a.onnx", "onnx", {}, r"one fixed size.* Received: .*\(None, None, 1\)"),
    ):
        with pytest.raises(ValueError, match=said):
            export_student(model, tmp_path / path, kind, **options)
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_what_a_runner_refuses(exports):
    given, _ = images(2)
    for export in exports.values():
        runner = load_runner(export.path)
        for wrong, said in (
            (given[:0], "needs at least one image. Received: an empty batch"),
            (given[:, :4], r"takes images of 8x8x1, .* Received: an array of shape \(2, 4, 8, 1\)"),
            (np.repeat(given, 3, axis=-1), r"Received: an array of shape \(2, 8, 8, 3\)"),
            (given[0], r"Received: an array of shape \(8, 8, 1\)"),
            (given.astype("int64"), "takes uint8 or float32 pixels from 0 to 255. Received: int64"),
        ):
            with pytest.raises(ValueError, match=said):
                runner.predict(wrong)


@pytest.mark.parametrize("file", ["student.tflite", "student.onnx", "student.keras", "saved_model/saved_model.pb"])
def test_a_damaged_file_is_told(tmp_path, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"damaged" * 100)
    path = tmp_path / "saved_model" if file.startswith("saved_model") else tmp_path / file
    with pytest.raises(ValueError, match=r"cannot be loaded|is not a .keras file"):
        load_runner(path)


def test_the_old_interpreter_still_warns():
    """When it does not, or is gone, `_without_deprecation` in litert_format.py can go."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match=r".*"):
            tf.lite.Interpreter(model_content=b"no model")
    assert any("tf.lite.Interpreter is deprecated" in str(warning.message) for warning in told)
