"""Exports that are not the student, wrong use, and files that are damaged."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from architectures import randomize
from exported import FILES, each_format, exported, exported_network, logits_of
from keras import layers
from networks import images, small_network

from spkd_keras.export import ExportMismatch, check, export_student, inference_network, load_runner, student
from spkd_keras.export.serving import Serving


@pytest.fixture(scope="module")
def network():
    return exported_network()


@pytest.fixture(scope="module")
def exports(network, tmp_path_factory):
    return exported(network, tmp_path_factory.mktemp("exports"))


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


def compared(**changed):
    """A comparison of an export that is the very student."""
    same = {"largest_difference": 0.0, "largest_logit": 1.0, "probability_difference": 0.0, "softmax_error": 0.0}
    rest = {"agreement": 1.0, "student_accuracy": 1.0, "export_accuracy": 1.0}
    return check.Check(3, "noise", **{**same, **rest, **changed})


def test_without_labels_agreement_counts_and_float32_has_an_accuracy_too():
    unlabelled = {"student_accuracy": None, "export_accuracy": None}
    check.judge(compared(agreement=0.99, **unlabelled), "int8", 0.02, "x.onnx")
    # 1 - 0.98 and 0.9 - 0.88 are a little more than 0.02 in binary.
    check.judge(compared(agreement=0.98, **unlabelled), "int8", 0.02, "x.onnx")
    for quantize in ("int8", None):
        check.judge(compared(student_accuracy=0.9, export_accuracy=0.88), quantize, 0.02, "x.onnx")
    with pytest.raises(ExportMismatch, match=r"loses 3\.00 points of agreement on 3 images"):
        check.judge(compared(agreement=0.97, **unlabelled), "int8", 0.02, "x.onnx")
    with pytest.raises(ExportMismatch, match=r"the student in float32 is not the student"):
        check.judge(compared(export_accuracy=0.9), None, 0.02, "x.onnx")


def test_the_first_image_is_compared_alone_too(network):
    given, _ = images(4)
    reference = check.Reference(network, given, None, "noise")

    class WrongAlone:
        """An export that is another one where its batch is one image."""

        def predict(self, pixels, batch=None):
            logits = logits_of(network, pixels) + (len(pixels) == 1)
            return {"logits": logits, "probabilities": keras.ops.softmax(logits).numpy()}

        def other_ways(self, pixels):
            return []

    assert reference.compare(WrongAlone()).largest_difference == pytest.approx(1.0, rel=1e-4)


def test_another_programs_model_is_told(tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path / "theirs"))
    with pytest.raises(ValueError, match=r"theirs cannot be loaded: it has no metadata of an export by `spkd export`"):
        load_runner(tmp_path / "theirs")


@pytest.mark.parametrize("figure", ["largest_difference", "probability_difference", "softmax_error"])
def test_not_a_number_is_a_mismatch(figure):
    for quantize in (None, "int8") if figure == "largest_difference" else (None,) if "prob" in figure else ("int8",):
        check.judge(compared(), quantize, 0.02, "x.onnx")
        with pytest.raises(ExportMismatch):
            check.judge(compared(**{figure: float("nan")}), quantize, 0.02, "x.onnx")


class Sigmoid(Serving):
    """Gives the right logits, and sigmoids for probabilities."""

    def __init__(self, network, metadata):
        super().__init__(network, metadata)
        right = self.classify

        def classify(image):
            logits = right(image)["logits"]
            return {"logits": logits, "probabilities": tf.sigmoid(logits)}

        self.module.__call__ = self.classify = tf.function(classify)


@pytest.mark.parametrize(
    ("kind", "quantize", "said"),
    [
        ("saved_model", None, r"its probabilities differ by up to 0?\S+ from the softmax of the student's logits"),
        ("litert", "int8", r"probabilities that differ by up to \S+ from the softmax of its own logits"),
    ],
)
def test_probabilities_that_are_no_softmax_are_a_mismatch(network, tmp_path, monkeypatch, kind, quantize, said):
    monkeypatch.setattr(student, "Serving", Sigmoid)
    given, _ = images(20)
    with pytest.raises(ExportMismatch, match=said):
        export_student(network, tmp_path / FILES[kind], kind, images=given, quantize=quantize, calibration=given)
    assert list(tmp_path.iterdir()) == []


class OneWrong(Serving):
    """Has one signature that is a hundredth off."""

    wrong = ""

    def signatures(self):
        found = super().signatures()
        right = found[self.wrong]
        (spec,) = tf.nest.flatten(right.structured_input_signature)

        def off(**given):
            return {name: value + 0.01 for name, value in right(*given.values()).items()}

        found[self.wrong] = tf.function(off).get_concrete_function(**{spec.name: spec})
        return found


@pytest.mark.parametrize(
    ("wrong", "resize"),
    [
        *(("serving_default", "stretch"), ("serving_uint8", "stretch"), ("serving_float32", "stretch")),
        *(("serving_bytes", "stretch"), ("serving_bytes", "crop")),
    ],
)
def test_each_signature_of_a_saved_model_is_compared(tmp_path, monkeypatch, wrong, resize):
    small = keras.initializers.RandomNormal(stddev=0.001)
    dense = layers.Dense(2, kernel_initializer=small)
    network = keras.Sequential([keras.Input((4, 4, 3)), layers.Flatten(), dense])
    monkeypatch.setattr(OneWrong, "wrong", wrong)
    monkeypatch.setattr(student, "Serving", OneWrong)
    with pytest.raises(ExportMismatch, match=r"is not the student: its logits differ by up to 1\.00e-02"):
        export_student(network, tmp_path / "saved", "saved_model", resize=resize)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("difference", "logit", "passes"),
    [(1e-4, 25.0, True), (1.01e-4, 25.0, False), (1.01e-4, 30.0, True), (1e-3, 249.0, False), (1e-3, 251.0, True)],
)
def test_what_is_allowed_grows_with_large_logits_as_their_rounding_does(difference, logit, passes):
    for figure in ("largest_difference", "probability_difference"):
        found = compared(**{figure: difference, "largest_logit": logit})
        if passes:
            check.judge(found, None, 0.02, "x.onnx")
        else:
            with pytest.raises(ExportMismatch):
                check.judge(found, None, 0.02, "x.onnx")


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
        (
            network,
            "a.tflite",
            "litert",
            {"quantize": "int8", "calibration": given},
            "`images` must be real test images for int8: noise does not show what it loses. Received: None",
        ),
        (network, ".partial-a.onnx", "onnx", {}, "`path` has a name that is kept for what is not whole"),
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


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ModuleNotFoundError("No module named 'onnx'", name="onnx"),
            "onnx is not installed. For exports: pip install",
        ),
        (ImportError("libonnx.so: cannot open", name="onnx"), r"onnx is installed and cannot be imported \(libonnx.so"),
        (
            ModuleNotFoundError("No module named 'onnx.mapping'", name="onnx.mapping"),
            r"onnx is installed and cannot be imported \(No module named 'onnx.mapping'\).* --force-reinstall",
        ),
    ],
)
def test_a_package_that_is_broken_is_not_called_missing(network, tmp_path, monkeypatch, error, said):
    def convert(*_):
        raise error

    monkeypatch.setattr(student, "onnx_bytes", convert)
    with pytest.raises(ValueError, match=said):
        export_student(network, tmp_path / "a.onnx", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_old_interpreter_still_warns():
    """When it does not, or is gone, `_without_deprecation` in litert_format.py can go."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match=r".*"):
            tf.lite.Interpreter(model_content=b"no model")
    assert any("tf.lite.Interpreter is deprecated" in str(warning.message) for warning in told)
