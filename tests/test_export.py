"""`export_student`: what is written is the student, in float32 and in less precision."""

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from architectures import randomize
from exported import FILES, each_format, exported, exported_network, logits_of
from networks import images, small_network

from spkd_keras import models
from spkd_keras.export import FORMATS, export_student, load_runner
from spkd_keras.export.litert_format import interpreter


@pytest.fixture(scope="module")
def network():
    return exported_network()


@pytest.fixture(scope="module")
def exports(network, tmp_path_factory):
    return exported(network, tmp_path_factory.mktemp("exports"))


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


@pytest.mark.parametrize(
    ("policy", "kinds"), [("mixed_float16", FORMATS), ("bfloat16", FORMATS), ("mixed_bfloat16", ["onnx"])]
)
def test_a_student_in_less_precision_leaves_in_float32(tmp_path, policy, kinds):
    keras.config.set_dtype_policy(policy)
    mixed = randomize(small_network(8))
    keras.config.set_dtype_policy("float32")
    given, labels = images(40)
    in_float32 = models.in_precision(mixed, "float32")
    for name in kinds:
        export = export_student(mixed, tmp_path / FILES[name], name, images=given, labels=labels)
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


@pytest.mark.parametrize("quantize", [None, "float16", "int8"])
def test_tensors_of_litert_have_the_names_of_the_signature(network, tmp_path, quantize):
    given, _ = images(40)
    path, options = tmp_path / "a.tflite", {"images": given, "quantize": quantize, "calibration": given}
    found = interpreter(export_student(network, path, "litert", **options).path.read_bytes(), 1)
    assert [tensor["name"] for tensor in found.get_input_details()] == ["image"]
    outputs = {tensor["name"]: tensor["index"] for tensor in found.get_output_details()}
    assert sorted(outputs) == ["logits", "probabilities"]
    found.allocate_tensors()
    found.set_tensor(found.get_input_details()[0]["index"], given[:1])
    found.invoke()
    expected = load_runner(path).predict(given[:1])
    for name, index in outputs.items():
        np.testing.assert_allclose(found.get_tensor(index), expected[name], atol=1e-6)


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
    """Sums overflow on processors without VNNI alone; weights of 7 bits are seen in the file on every one."""
    given, _ = images(40)
    exported = {"images": given, "quantize": "int8", "calibration": given, "largest_drop": 0.1}
    path = export_student(network, tmp_path / "a.onnx", "onnx", **exported).path
    constants = [onnx.numpy_helper.to_array(constant) for constant in onnx.load(path).graph.initializer]
    largest = [np.abs(value.astype(int)).max() for value in constants if value.dtype == np.int8 and value.ndim > 1]
    assert len(largest) == 3
    assert max(largest) == 64
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # float32 kernels
    in_float32 = onnxruntime.InferenceSession(path, plain).run(["logits"], {"image": given})[0]
    np.testing.assert_allclose(load_runner(path).predict(given)["logits"], in_float32, atol=0.05)


@pytest.mark.parametrize("kind", ["litert", "onnx"])
def test_int8_takes_float32_pixels(network, tmp_path, kind):
    given, _ = images(40)
    options = {"quantize": "int8", "calibration": given, "input_dtype": "float32", "largest_drop": 0.1}
    path = export_student(network, tmp_path / FILES[kind], kind, images=given, **options).path
    halves = given / np.float32(2)
    np.testing.assert_allclose(load_runner(path).predict(halves)["logits"], logits_of(network, halves), atol=0.5)


def test_whole_numbers_that_are_no_bytes_are_refused(exports):
    runner, pixels = load_runner(exports["onnx"].path), np.zeros((1, *images(1)[0].shape[1:]), "float32")
    pixels[0, 0, 0], pixels[0, 0, 1] = -1, 300
    with pytest.raises(ValueError, match="from -1 to 300"):
        runner.predict(pixels)
