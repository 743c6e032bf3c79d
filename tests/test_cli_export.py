"""`spkd export`: from a run's folder to files and a model card."""

import json
import shutil
import types

import keras
import numpy as np
import pytest
import yaml
from fake_runs import digit_network, write_network_runs
from networks import small_network
from pictures import photo_folder
from test_cli import call, words

from spkd_keras import data, models, storage
from spkd_keras.export import card as cards
from spkd_keras.export import export_student, latency, load_runner, placing, student
from spkd_keras.export.folding import inference_network
from spkd_keras.export.litert_format import interpreter

ALL = "saved_model,litert,onnx"


@pytest.fixture(scope="module", autouse=True)
def _brief_measurements():
    """Latency is what it is after the fewest repetitions too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_network_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def card(run):
    """What `spkd export` of all formats answers; the files are under `<run>/export`."""
    result = call("export", run, "--format", ALL, "--check", "50", "--licence", "CC-BY-4.0", "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_every_format_is_written_and_compared_on_test_images(run, card):
    folder = run / "export"
    assert {file.name for file in folder.iterdir()} == {
        *("saved_model", "saved_model.json", "student.tflite", "student.tflite.json"),
        *("student.onnx", "student.onnx.json", "model_card.md", "model_card.json"),
    }
    test = data.digits()[1]
    network = keras.saving.load_model(run / "student.keras")
    chosen = np.round(np.linspace(0, len(test) - 1, 50)).astype(int)
    logits = network.predict_on_batch(test.pixels[chosen])
    accuracy = np.mean(logits.argmax(axis=1) == test.labels[chosen])
    for export in card["exports"]:
        runner = load_runner(folder / export["file"])
        np.testing.assert_allclose(runner.predict(test.pixels[chosen])["logits"], logits, atol=1e-5)
        found = export["check"]
        assert (found["images"], found["of"]) == (50, "test images of digits")
        assert found["student_accuracy"] == found["export_accuracy"] == pytest.approx(accuracy)
        assert runner.class_names == tuple("0123456789")


def test_the_card_tells_where_the_student_comes_from(run, card):
    network = digit_network()
    assert card == json.loads((run / "export" / "model_card.json").read_text(encoding="utf-8"))
    assert (card["experiment"], card["method"], card["seed"], card["licence"]) == ("tiny", "sp", 0, "CC-BY-4.0")
    assert card["teacher"] == {"model": "wide_resnet", "depth": 10, "width": 0.5}
    assert card["teacher_fingerprint"] == "f" * 32
    (term,) = card["terms"]
    assert (term["loss"], term["weight"]) == ("similarity_preserving", 100.0)
    assert term["teacher"] == term["student"] == ["stage3"]
    assert card["data"]["name"] == "digits"
    over = card["accuracy"]["over_seeds"]
    assert card["accuracy"]["this_run"] == 0.75
    assert over["sp"] == {"seeds": [0, 1], "median": 0.8125, "lowest": 0.75, "highest": 0.875}
    assert over["student alone"]["median"] == 0.5
    assert over["teacher"]["median"] == 0.9375
    assert card["parameters"] == network.count_params()
    assert card["float32_bytes"] == 4 * network.count_params()
    assert card["multiply_adds"] == models.multiply_adds(network)
    assert card["weights"] == models.fingerprint(network)
    for export in card["exports"]:
        measured = export["latency"]
        assert measured["threads"] >= 1
        assert measured["machine"]
        assert list(measured["batches"]) == ["1", "32"]
        for times in measured["batches"].values():
            assert 0 < times["median_ms"] <= times["p95_ms"]
            assert times["repetitions"] >= 20
        assert {"tensorflow", "keras", "onnx", "tf2onnx", "spkd_keras"} <= set(export["versions"])


def test_the_page_tells_the_same(run, card):
    page = (run / "export" / "model_card.md").read_text(encoding="utf-8")
    for said in (
        "# tiny: sp, seed 0",
        f"{card['parameters']:,} parameters ({card['float32_bytes']:,} bytes in float32)",
        "`similarity_preserving`, weight (gamma) 100, between `stage3` of the teacher and `stage3` of the student",
        "This student: 75.00%.",
        "| sp | 2 | 81.25 | 75.00 to 87.50 |",
        "Licence: CC-BY-4.0.",
        f"`{card['weights']}`",
        "Compared with the student in float32 on 50 images (test images of digits).",
    ):
        assert said in page
    for export in card["exports"]:
        assert f"| `{export['file']}` | {export['bytes']:,}" in page
    assert "None" not in page


def test_other_precisions_stand_beside_and_the_card_keeps_them(run, card, monkeypatch):
    own, calibrated_on = student.litert_bytes, []

    def convert(serving, calibration):
        calibrated_on.append(calibration)
        return own(serving, calibration)

    monkeypatch.setattr(student, "litert_bytes", convert)
    result = call(
        "export", run, "--format", "litert,saved_model", "--quantize", "int8", "--check", 60, "--max-drop", 20
    )
    assert result.exit_code == 0, result.stderr
    train = data.load("digits", validation=0.1).train.pixels
    (pixels,) = calibrated_on
    np.testing.assert_array_equal(pixels, train[np.round(np.linspace(0, len(train) - 1, 256)).astype(int)])
    assert "saved_model: float32, for there is no SavedModel in less precision" in words(result.stderr)
    assert "fully_quantize" not in result.stderr
    kept = json.loads((run / "export" / "model_card.json").read_text(encoding="utf-8"))
    files = [export["file"] for export in kept["exports"]]
    assert files == ["student.tflite", "student.onnx", "student-int8.tflite", "saved_model"]
    assert [export["quantize"] for export in kept["exports"]] == [None, None, "int8", None]
    for file in files:
        assert f"{file} " in words(result.stdout)
    # What was said of the earlier ones is still said of them.
    assert kept["exports"][:2] == [export for export in card["exports"] if export["file"] != "saved_model"]
    assert {export["licence"] for export in kept["exports"]} == {kept["licence"]} == {"CC-BY-4.0"}
    page = (run / "export" / "model_card.md").read_text(encoding="utf-8")
    assert (
        "on `student.tflite`, `student.onnx`: 50 images (test images of digits); `student-int8.tflite`, `saved_model`: "
        "60 images (test images of digits)." in page
    )
    assert load_runner(run / "export" / "student-int8.tflite").metadata.licence == "CC-BY-4.0"


def test_a_format_that_fails_loses_nothing_of_the_others(run, tmp_path, monkeypatch):
    exported = ["export", run, "--out", tmp_path, "--check", "20"]
    own = student.judge

    def judge(found, quantize, largest_drop, what):
        own(found._replace(largest_difference=float("nan") if what.endswith(".onnx") else 0.0), None, 0.02, what)

    with monkeypatch.context() as patch:
        patch.setattr(student, "judge", judge)
        result = call(*exported, "--format", "litert,onnx", "--licence", "MIT")
    assert (result.exit_code, result.stdout) == (1, "")
    left = ["model_card.json", "model_card.md", "student.tflite", "student.tflite.json"]
    assert sorted(file.name for file in tmp_path.iterdir()) == left
    (first,) = json.loads((tmp_path / "model_card.json").read_text(encoding="utf-8"))["exports"]
    assert first["file"] == "student.tflite"
    # What is there no more as it was compared is not told of either.
    (tmp_path / "student.tflite").write_bytes(b"another")
    answer = json.loads(call(*exported, "--format", "onnx", "--licence", "BSD-3-Clause", "--json").stdout)
    assert [(export["file"], export["licence"]) for export in answer["exports"]] == [("student.onnx", "BSD-3-Clause")]


def test_a_card_never_tells_of_another_file(run, card, tmp_path, monkeypatch):
    folder = tmp_path / "export"
    for name in ("student.tflite", "student.onnx", "model_card.json", "model_card.md"):
        folder.mkdir(exist_ok=True)
        shutil.copy(run / "export" / name, folder / name)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def killed(*_):
        raise KeyboardInterrupt

    exported = ["export", run, "--out", folder, "--format", "litert", "--check", "20", "--licence", "MIT"]
    for stopped in ("forget", "write_card"):
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
        with monkeypatch.context() as patch:
            patch.setattr(cards, stopped, killed)
            assert call(*exported).exit_code == 130
    assert (folder / "student.tflite").read_bytes() != before["student.tflite"]
    left = json.loads((folder / "model_card.json").read_text(encoding="utf-8"))
    assert "student.onnx" in [export["file"] for export in left["exports"]]
    assert "student.tflite" not in [export["file"] for export in left["exports"]]
    assert "student.tflite" not in (folder / "model_card.md").read_text(encoding="utf-8")


def test_a_card_of_another_student_begins_anew(run, card, tmp_path):
    other = tmp_path / "tiny" / run.name
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("export"))
    digit_network(seed=1).save(other / "student.keras")
    shutil.copytree(run / "export", tmp_path / "out")
    options = ["--out", tmp_path / "out", "--format", "litert", "--check", "20", "--json"]
    answer = json.loads(call("export", other, *options).stdout)
    assert ([export["file"] for export in answer["exports"]], answer["licence"]) == (["student.tflite"], "unspecified")


def test_a_card_of_an_earlier_version_is_in_no_export_s_way(run, card, tmp_path):
    """What it lacks of one export is not known of that one alone."""
    shutil.copytree(run / "export", tmp_path / "out")
    file = tmp_path / "out" / "model_card.json"
    earlier = json.loads(file.read_text(encoding="utf-8"))
    for export in earlier["exports"]:
        if export["file"] == "student.onnx":
            del export["check"]["probability_difference"]
    file.write_text(json.dumps(earlier), encoding="utf-8")
    result = call("export", run, "--format", "litert", "--check", "20", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    kept = json.loads(file.read_text(encoding="utf-8"))["exports"]
    others = [export for export in earlier["exports"] if export["file"] not in ("student.onnx", "student.tflite")]
    assert kept[:-1] == others
    assert (kept[-1]["file"], kept[-1]["check"]["images"]) == ("student.tflite", 20)
    assert f"Written to {tmp_path / 'out'}: student.tflite, model_card.md, .json" in words(result.stdout)


def test_a_student_leaves_with_the_classes_that_it_was_trained_on(run, tmp_path):
    copied = tmp_path / "tiny" / run.name
    shutil.copytree(run, copied, ignore=shutil.ignore_patterns("export"))
    (copied / "environment.json").write_text(json.dumps({"data_digest": "0" * 32}), encoding="utf-8")
    result = call("export", copied, "--format", "litert")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{copied} was trained on other images than the data have now (digest {'0' * 32})" in words(result.stderr)
    assert not list((copied / "export").iterdir())


def test_exports_take_turns_at_a_card(run, card, monkeypatch):
    monkeypatch.setattr(cards, "SECONDS", 0.1)
    folder = run / "export"
    with storage.alone(placing.lock_of(folder / cards.JSON), 0, "busy"):
        for write in (lambda: cards.forget(folder, "student.onnx"), lambda: cards.write_card(folder, {}, None, {}, 0)):
            with pytest.raises(ValueError, match=r"The model card in .* is being written by another process"):
                write()


def test_points_of_accuracy_are_hundredths(run, tmp_path, monkeypatch):
    allowed = []
    monkeypatch.setattr(student, "judge", lambda found, quantize, largest_drop, what: allowed.append(largest_drop))
    for more in ([], ["--max-drop", "0.5"]):
        options = ["--format", "litert", "--quantize", "float16", "--check", "20", "--out", tmp_path, *more]
        assert call("export", run, *options).exit_code == 0
    assert allowed == [0.02, 0.005]


def test_a_batch_is_timed_in_milliseconds_and_as_large_as_it_is_called(monkeypatch):
    now = [0.0]

    class Slow:
        """A millisecond an image."""

        threads, checked = 1, staticmethod(lambda batch: batch)

        def run(self, batch):
            now[0] += 0.001 * len(batch)

    monkeypatch.setattr(latency, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    found = latency.measure(Slow(), np.zeros((3, 8, 8, 1), "uint8"))["batches"]
    assert [found[size]["median_ms"] for size in ("1", "32")] == [1.0, 32.0]

    class Slower(Slow):
        """Each call takes a millisecond more than the one before: 5 warm up, 20 are timed."""

        calls = 0

        def run(self, batch):
            self.calls += 1
            now[0] += 0.001 * self.calls

    monkeypatch.setattr(latency, "MOST", 20)
    one = latency.measure(Slower(), np.zeros((1, 8, 8, 1), "uint8"))["batches"]["1"]
    assert (one["median_ms"], one["p95_ms"]) == (15.5, 24.05)  # of 6, 7, ..., 25


def test_a_student_without_teacher_has_a_card_too(run, tmp_path):
    result = call("export", run.with_name("student-seed0"), "--format", "litert", "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert (answer["teacher"], answer["terms"]) == (None, [])
    cards.forget(tmp_path / "out", "student.onnx")  # of which it says nothing
    assert answer == json.loads((tmp_path / "out" / "model_card.json").read_text(encoding="utf-8"))
    cards.forget(tmp_path / "out", "student.tflite")
    assert "## Exports\n\nNone" in (tmp_path / "out" / "model_card.md").read_text(encoding="utf-8")
    assert "Licence: unspecified." in (tmp_path / "out" / "model_card.md").read_text(encoding="utf-8")
    assert "trained on the labels alone" in (tmp_path / "out" / "model_card.md").read_text(encoding="utf-8")
    assert not (run.with_name("student-seed0") / "export").exists()


def test_a_mismatch_fails_the_command_and_leaves_no_file(run, tmp_path, monkeypatch):
    wrong = digit_network(seed=1)
    monkeypatch.setattr(student, "inference_network", lambda _: inference_network(wrong))
    result = call("export", run, "--format", "onnx", "--out", tmp_path)
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("spkd:")]
    assert line.startswith(f"spkd: {tmp_path / 'student.onnx'} is not the student: its logits differ by up to")
    assert "traceback" not in line
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_teacher_does_not_keep_its_student_from_leaving_for_float32_pixels_in_float16(run, tmp_path):
    copied = tmp_path / "tiny" / run.name
    shutil.copytree(run, copied, ignore=shutil.ignore_patterns("export"))
    teacher = copied.with_name("teacher-seed0") / "student.keras"
    teacher.parent.mkdir()
    teacher.write_bytes(run.with_name("teacher-seed0").joinpath("student.keras").read_bytes()[:2000])
    options = ["--format", "litert", "--input", "float32", "--quantize", "float16", "--check", "20", "--json"]
    result = call("export", copied, *options, "--max-drop", 10)
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    (term,), (export,) = answer["terms"], answer["exports"]
    assert (term["teacher"], term["student"]) == (["stage3"], ["stage3"])
    assert (export["file"], export["quantize"], export["input_dtype"]) == (
        *("student-float16.tflite", "float16", "float32"),
    )
    runner = load_runner(copied / "export" / export["file"])
    halves = data.digits()[1].pixels[:8].astype("float32") + np.float32(0.5)
    logits = keras.saving.load_model(copied / "student.keras").predict_on_batch(halves)
    np.testing.assert_allclose(runner.predict(halves)["logits"], logits, atol=0.05)
    tensors = interpreter(runner.path.read_bytes(), 1).get_tensor_details()
    assert {tensor["dtype"] for tensor in tensors if tensor["name"] == "image"} == {np.float32}
    assert np.float16 in {tensor["dtype"] for tensor in tensors}


def test_a_student_of_photos_is_exported_to_crop_them(run, tmp_path):
    photo_folder(tmp_path / "photos", {"train": 3, "test": 2})
    copied = tmp_path / "tiny" / "student-seed0"
    shutil.copytree(run.with_name("student-seed0"), copied)
    text = (copied / "experiment.yaml").read_text(encoding="utf-8")
    plain = yaml.safe_load(text)
    plain["data"] = {
        **{"name": "image_folder", "path": str(tmp_path / "photos"), "image_size": 16},
        **{"batch_size": 2, "validation": 0},
    }
    (copied / "experiment.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")
    layers = keras.layers
    network = keras.Sequential([keras.Input((16, 16, 3)), layers.GlobalAveragePooling2D(), layers.Dense(2)])
    network.save(copied / "student.keras")
    result = call("export", copied, "--format", "onnx", "--json")
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert (answer["resize"], answer["exports"][0]["check"]["images"]) == ("crop", 4)
    metadata = load_runner(copied / "export" / "student.onnx").metadata
    assert (metadata.resize, metadata.class_names) == ("crop", ("cat", "dog"))


def test_a_network_that_a_format_cannot_hold_is_told_in_one_line(run, tmp_path, monkeypatch):
    def convert(*_):
        raise RuntimeError("no kernel\n  for Fold")

    monkeypatch.setattr(student, "litert_bytes", convert)
    result = call("export", run, "--format", "litert", "--out", tmp_path, "--check", "20")
    assert (result.exit_code, result.stdout) == (1, "")
    said = "spkd: litert cannot hold this network: no kernel for Fold. Use another format, or other layers."
    assert [line for line in result.stderr.splitlines() if line.startswith("spkd:")] == [said]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "tflite"], "--format: unknown format `tflite`. Did you mean `litert`?"),
        (["--format", ","], "--format takes one or more of saved_model, litert, onnx. Received: nothing."),
        (["--format", "onnx", "--quantize", "int4"], "--quantize: unknown precision `int4`. Did you mean `int8`?"),
        (["--format", "saved_model", "--quantize", "int8"], "--quantize is for litert and onnx."),
        (["--format", "onnx", "--input", "float16"], "--input: unknown pixels `float16`. Did you mean `float32`?"),
    ],
)
def test_wrong_use(run, tmp_path, arguments, said):
    result = call("export", run, "--out", tmp_path / "out", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"spkd: {said}")


def test_a_folder_that_is_no_finished_run(run, tmp_path):
    (tmp_path / "sp-seed0").mkdir()
    result = call("export", tmp_path / "sp-seed0", "--format", "onnx")
    assert result.exit_code == 2
    assert "is not a run's folder (it has no experiment.yaml)" in result.stderr
    text = (run / "experiment.yaml").read_text(encoding="utf-8")
    (tmp_path / "sp-seed0" / "experiment.yaml").write_text(text, encoding="utf-8")
    result = call("export", tmp_path / "sp-seed0", "--format", "onnx")
    assert result.exit_code == 2
    assert "is not finished. `spkd run` continues it." in result.stderr


def test_packages_that_are_missing_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tf2onnx", None)
    with pytest.raises(ValueError, match=r"tf2onnx is not installed.*pip install '.\[export\]'"):
        export_student(small_network(4), tmp_path / "a.onnx", "onnx")
    assert list(tmp_path.iterdir()) == []
