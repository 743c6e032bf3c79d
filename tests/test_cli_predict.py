"""`spkd predict` and `spkd evaluate`, for every format."""

import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest
from architectures import randomize
from fake_runs import digit_network, write_network_runs
from pictures import digit_pictures, encoded, gradient, photo_folder
from test_cli import call, words

from spkd_keras import data
from spkd_keras.cli import predictions
from spkd_keras.export import FORMATS, evaluation, export_student
from spkd_keras.export.serving import read_picture

FILES = {"saved_model": "saved_model", "litert": "student.tflite", "onnx": "student.onnx"}
NAMES = tuple("0123456789")
MODELS = (*FORMATS, "keras", "run")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same network in every format, as a `.keras` file and as a run, by what it is."""
    folder = tmp_path_factory.mktemp("models")
    network = digit_network()
    run = write_network_runs(folder, network)
    found = {kind: export_student(network, folder / file, kind, class_names=NAMES).path for kind, file in FILES.items()}
    return {**found, "keras": run / "student.keras", "run": run}


@pytest.fixture(scope="module")
def probabilities():
    """Of the network for the test digits, in float64."""
    logits = np.asarray(digit_network().predict_on_batch(data.digits()[1].pixels), "float64")
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@pytest.fixture
def digits(tmp_path):
    return digit_pictures(tmp_path / "digits")


# --- predict ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_the_top_classes_of_a_folder(places, digits, probabilities, kind):
    result = call("predict", places[kind], digits, "--top", "2", "--json")
    assert (result.exit_code, result.stderr.replace("Starting TensorFlow", "").strip()) == (0, "")
    answer = json.loads(result.stdout)
    assert answer["problems"] == []
    assert [Path(row["file"]).name for row in answer["predictions"]] == [f"{index}.png" for index in range(6)]
    for row, expected in zip(answer["predictions"], probabilities[:6], strict=True):
        best = np.argsort(expected)[::-1][:2]
        assert [found["class"] for found in row["top"]] == [str(index) for index in best]
        np.testing.assert_allclose([found["probability"] for found in row["top"]], expected[best], atol=1e-5)


def test_a_network_that_ends_in_a_softmax(digits, probabilities, tmp_path):
    network = digit_network()
    keras.Model(network.input, keras.layers.Softmax()(network.output)).save(tmp_path / "soft.keras")
    rows = json.loads(call("predict", tmp_path / "soft.keras", digits, "--json").stdout)["predictions"]
    found = [row["top"][0]["probability"] for row in rows]
    np.testing.assert_allclose(found, probabilities[:6].max(axis=1), atol=1e-5)


def test_no_picture_of_many_is_lost(places, digits, monkeypatch):
    monkeypatch.setattr(predictions, "AT_A_TIME", 4)
    (digits / "0.png").rename(digits / "0.PNG")
    rows = json.loads(call("predict", places["litert"], digits, "--json").stdout)["predictions"]
    assert [Path(row["file"]).name.lower() for row in rows] == [f"{index}.png" for index in range(6)]


def test_a_table_of_files_and_patterns(places, digits, probabilities):
    result = call("predict", places["onnx"], digits / "2.png", f"{digits}/[01].png", f"{digits}/**/5.png", "--top", 1)
    assert result.exit_code == 0
    said = "".join(result.stdout.split())
    for index in (2, 0, 1, 5):
        best = probabilities[index].argmax()
        assert f"{best}{100 * probabilities[index, best]:.1f}" in said
    assert "3.png" not in said


def test_what_cannot_be_taken_is_named_and_the_rest_is_done(places, digits):
    colour = np.repeat(data.digits()[1].pixels[0], 3, axis=-1)
    (digits / "text.jpg").write_text("no picture", encoding="utf-8")
    (digits / "empty.png").touch()
    (digits / "cut.png").write_bytes((digits / "0.png").read_bytes()[:60])
    (digits / "colour.png").write_bytes(encoded(colour, "PNG"))
    (digits / "large.png").write_bytes(encoded(gradient(20, 30)[..., 0], "PNG"))
    for kind in ("litert", "keras"):
        result = call("predict", places[kind], digits, "--json")
        assert result.exit_code == 1
        answer = json.loads(result.stdout)
        assert len(answer["predictions"]) == 6
        problems = {Path(problem["file"]).name: problem["problem"] for problem in answer["problems"]}
        assert problems == {
            "text.jpg": "is not a JPEG, PNG, GIF or BMP that can be read",
            "empty.png": "is not a JPEG, PNG, GIF or BMP that can be read",
            "cut.png": "is not a JPEG, PNG, GIF or BMP that can be read",
            "colour.png": "is colour, 3 channels; the network takes grey, 1 channel",
            "large.png": "has 20x30 pixels; the network takes 8x8: give --resize crop or stretch",
        }
        lines = [line for line in result.stderr.splitlines() if line.startswith("spkd: ")]
        assert lines == [f"spkd: {problem['file']} {problem['problem']}" for problem in answer["problems"]]


def test_a_folder_below_that_may_not_be_looked_into_is_named(places, digits, monkeypatch):
    scandir = os.scandir

    def refusing(path="."):
        if str(path) == str(digits / "more"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    result = call("predict", places["onnx"], digits, "--json")
    answer = json.loads(result.stdout)
    assert (result.exit_code, len(answer["predictions"])) == (1, 4)
    assert answer["problems"] == [{"file": f"{digits}/more", "problem": "cannot be read: Permission denied"}]


def test_where_probabilities_tie_the_logits_decide():
    best = predictions._top(np.array([1.0, 2.0]), np.array([0.5, 0.5]), None, 1)
    assert best == [{"class": "1", "probability": 0.5}]


def test_a_grey_bmp(places, digits):
    (digits / "grey.bmp").write_bytes(encoded(data.digits()[1].pixels[0, ..., 0], "BMP"))
    rows = [call("predict", places["litert"], digits / name, "--json") for name in ("grey.bmp", "0.png")]
    found = [json.loads(row.stdout)["predictions"][0]["top"] for row in rows]
    assert found[0] == found[1]


def test_a_large_picture_is_stretched_when_asked_for(places, digits):
    large = np.kron(data.digits()[1].pixels[0, ..., 0], np.ones((4, 4), np.uint8))
    (digits / "large.png").write_bytes(encoded(large, "PNG"))
    result = call("predict", places["litert"], digits / "large.png", "--resize", "stretch", "--json")
    assert result.exit_code == 0
    ((row),) = json.loads(result.stdout)["predictions"]
    import tensorflow as tf

    small = np.asarray(tf.image.resize(large[..., None], (8, 8), antialias=True)).round().astype("uint8")
    logits = digit_network().predict_on_batch(small[None])[0]
    assert row["top"][0]["class"] == str(logits.argmax())
    assert row["top"][0]["probability"] == pytest.approx(float(keras.ops.softmax(logits).numpy().max()), abs=1e-5)


def test_photos_are_cropped_as_they_were_evaluated(tmp_path):
    photo_folder(tmp_path / "photos", {"train": 2, "test": 3})
    layers = keras.layers
    network = randomize(
        keras.Sequential([keras.Input((16, 16, 3)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(2)])
    )
    splits = data.load("image_folder", path=str(tmp_path / "photos"), image_size=16, validation=0)
    ((pixels, _),) = data.evaluation_batches(splits.test, 6)
    names = splits.test.class_names
    path = export_student(network, tmp_path / "a.onnx", "onnx", class_names=names, resize="crop").path
    files = sorted((tmp_path / "photos" / "test").rglob("*.jpg"))
    grey = tmp_path / "grey.jpg"
    grey.write_bytes(encoded(gradient(40, 50)[..., 0]))  # as training takes it too
    result = call("predict", path, *files, grey, "--top", "2", "--json")
    assert result.exit_code == 0
    rows = json.loads(result.stdout)["predictions"]
    assert len(rows) == 7
    logits = network.predict_on_batch(np.asarray(pixels))
    for row, expected in zip(rows, np.asarray(keras.ops.softmax(logits)), strict=False):
        shares = {found["class"]: found["probability"] for found in row["top"]}
        np.testing.assert_allclose([shares[name] for name in names], expected, atol=1e-4)
    # Or stretched, where that is asked for.
    rows = json.loads(call("predict", path, files[0], "--resize", "stretch", "--top", 2, "--json").stdout)
    stretched = np.asarray(read_picture(files[0].read_bytes(), (16, 16, 3), "stretch"))
    expected = np.asarray(keras.ops.softmax(network.predict_on_batch(stretched[None])))[0]
    shares = {found["class"]: found["probability"] for found in rows["predictions"][0]["top"]}
    np.testing.assert_allclose([shares[name] for name in names], expected, atol=1e-4)


def test_what_is_missing_is_named_and_the_rest_is_done(places, digits):
    (digits / "empty").mkdir()
    pictures = sorted(digits.glob("*.png"))[:2]
    result = call("predict", places["onnx"], pictures[0], digits / "gone.png", digits / "empty", pictures[1], "--json")
    (digits / "empty").rmdir()
    answer = json.loads(result.stdout)
    assert result.exit_code == 1
    assert [row["file"] for row in answer["predictions"]] == [str(picture) for picture in pictures]
    assert [problem["file"] for problem in answer["problems"]] == [str(digits / "gone.png"), str(digits / "empty")]


def test_names_of_any_kind_lose_nothing_of_the_others(places, digits, monkeypatch):
    (digits / "folder.png").mkdir()
    undecodable = digits / os.fsdecode(b"\xff.png")
    undecodable.write_bytes((digits / "0.png").read_bytes())
    is_dir = Path.is_dir

    def refused(path):
        if path.name == "locked.png":
            raise PermissionError(13, "Permission denied")
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", refused)
    long = "x" * 300 + ".png"
    result = call("predict", places["onnx"], long, "locked.png", f"{digits}/mor*", digits, "--top", 1)
    assert result.exit_code == 1
    said = "".join(result.stdout.split())
    assert all(f"{index}.png" in said for index in range(6))
    assert "\\xff.png" in said
    assert [line for line in result.stderr.splitlines() if line.startswith("spkd: ")] == [
        f"spkd: {long} cannot be read: File name too long",
        "spkd: locked.png cannot be read: Permission denied",
        f"spkd: {digits}/mor* fits folders alone: give one of them, or a pattern for files",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.onnx", "digits"], "The model does not exist: nowhere.onnx."),
        (
            ["digits", "digits"],
            "A model is a .keras, .tflite, .onnx file, a SavedModel's folder or a run's folder. Rec",
        ),
        (["digits/0.png", "digits"], "A model is a .keras, .tflite, .onnx file"),
        (["damaged.onnx", "digits"], "damaged.onnx cannot be loaded: "),
        (["student.onnx", "nothing"], "nothing has no pictures (.jpg, "),
        (["student.onnx", "*.jpeg"], "*.jpeg does not exist."),
        (["student.onnx", "digits", "--resize", "fold"], "--resize takes crop or stretch. Received: fold."),
        (["student.onnx", "digits", "--resize", "crop"], "--resize crop is for square colour images. Received: a netw"),
    ],
)
def test_wrong_use_of_predict(places, digits, monkeypatch, arguments, said):
    folder = digits.parent
    monkeypatch.chdir(folder)
    (folder / "nothing").mkdir()
    (folder / "damaged.onnx").write_bytes(b"damaged")
    (folder / "student.onnx").write_bytes(places["onnx"].read_bytes())
    result = call("predict", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"spkd: {said}")


# --- evaluate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_an_evaluation_of_any_format(places, tmp_path, probabilities, kind):
    labels = data.digits()[1].labels
    result = call("evaluate", places[kind], "digits", "--out", tmp_path / "figures", "--json")
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    found = answer["model"]
    assert found["images"] == len(labels) == 899
    assert found["accuracy"] == pytest.approx(np.mean(probabilities.argmax(axis=1) == labels))
    expected = evaluation.expected_calibration_error(probabilities, labels)
    assert found["expected_calibration_error"] == pytest.approx(expected, abs=1e-3)
    np.testing.assert_array_equal(np.sum(found["confusion"], axis=1), np.bincount(labels))
    assert [row["class"] for row in found["per_class"]] == list(NAMES)
    assert [Path(file).suffix for file in found["figures"]] == [".png", ".svg"]
    assert all(Path(file).is_file() for file in found["figures"])
    # The exports of all runs have one name.
    where = "-".join(Path(places[kind]).resolve().parts[-3:])
    assert Path(found["figures"][0]).name == f"model-{where}-digits-test-confusion.png"


def test_a_student_against_its_teacher_on_the_data_of_its_run(places, tmp_path, probabilities):
    run = places["run"]
    splits = data.load("digits", validation=0.1)
    teacher = digit_network(0.5).predict_on_batch(splits.validation.pixels).argmax(axis=1)
    student = digit_network().predict_on_batch(splits.validation.pixels).argmax(axis=1)
    arguments = ["evaluate", places["litert"], run, "--teacher", run.with_name("teacher-seed0"), "--part", "validation"]
    result = call(*arguments, "--out", tmp_path, "--json")
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert (answer["data"], answer["part"], answer["model"]["images"]) == ("digits", "validation", 90)
    assert answer["against_teacher"] == evaluation.against(teacher, student, splits.validation.labels)
    assert answer["teacher"]["accuracy"] == pytest.approx(np.mean(teacher == splits.validation.labels))
    assert len({*answer["model"]["figures"], *answer["teacher"]["figures"]}) == 4
    said = words(call(*arguments, "--out", tmp_path).stdout)
    assert f"Student and teacher agree on {np.mean(teacher == student):.2%}." in said
    assert "expected calibration error" in said
    row = next(row for row in answer["model"]["per_class"] if row["precision"] not in (None, row["recall"]))
    assert f"{row['class']} {row['images']} {100 * row['recall']:.2f} {100 * row['precision']:.2f}" in said
    # On the test images the two are right alone on different numbers of them.
    of_test = [digit_network(width).predict_on_batch(splits.test.pixels).argmax(axis=1) for width in (0.5, 0.25)]
    found = evaluation.against(*of_test, splits.test.labels)
    assert found["only_teacher_right"] != found["only_student_right"]
    said = words(call(*arguments[:-2], "--out", tmp_path).stdout)
    alone = f"only the teacher {found['only_teacher_right']}, only the student {found['only_student_right']}, neither"
    assert alone in said
    assert "model model teacher teacher class images recall, % precision, % recall, % precision, %" in said


def test_the_data_of_an_experiments_file_with_a_change(places, tmp_path):
    file = tmp_path / "tried.yaml"
    file.write_text("data: {name: digits, validation: 0}\nstudent: {model: resnet}\nmethods: [student]\n")
    result = call("evaluate", places["onnx"], file, "--part", "validation", "--out", tmp_path)
    assert result.exit_code == 2
    assert "digits has no validation images: nothing is held out." in result.stderr
    changed = ["--set", "validation=0.2", "--part", "validation", "--out", tmp_path, "--json"]
    answer = json.loads(call("evaluate", places["onnx"], file, *changed).stdout)
    assert answer["model"]["images"] == 180  # a fifth of 898


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["digits", "--part", "training"], "--part takes test, validation, train. Received: training."),
        (["digits", "--set", "image_size=16"], "takes images of 8x8x1. Received: digits with images of 16x16x1."),
        (["digits", "--set", "size=16"], "data: unknown key `size`."),
        (["nowhere.yaml"], "The experiment file does not exist: nowhere.yaml."),
    ],
)
def test_wrong_use_of_evaluate(places, tmp_path, arguments, said):
    result = call("evaluate", places["onnx"], *arguments, "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert said in line


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ("0", "1", "2", "3", "4", "5", "6", "7", "9", "8"),
            "the same classes in another order: number 8 is 9 for",
        ),
        (("nought", *NAMES[1:]), "other classes: number 0 is nought for the network and 0 in the data. Give the data"),
    ],
)
def test_classes_that_are_not_those_of_the_data(places, tmp_path, names, said):
    path = export_student(digit_network(), tmp_path / "a.tflite", "litert", class_names=names).path
    arguments = [places["onnx"], "digits", "--teacher", path] if names[0] == "0" else [path, "digits"]
    result = call("evaluate", *arguments, "--out", tmp_path / "figures")
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"spkd: {path} and digits have {said}")
