"""Running an experiment: what is in the run folders, what is done again and what is not."""

import json
import shutil
import subprocess
import sys
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_experiment import (
    METHODS,
    RUNS,
    TRAIN_IMAGES,
    Listener,
    assert_same_run,
    content,
    history_of,
    summary_of,
    tiny,
    weights_of,
)

from spkd_keras import data, models
from spkd_keras.distiller import Distiller
from spkd_keras.experiment import load_experiment
from spkd_keras.models.normalization import BatchNormalization
from spkd_keras.training import results, run_experiment
from spkd_keras.training.callbacks import Recorder
from spkd_keras.training.folder import RunFolder

pytestmark = pytest.mark.slow  # all stand on one whole experiment

FILES = {
    "experiment.yaml",
    "environment.json",
    "history.csv",
    "similarity.npz",
    "student.keras",
    "best.keras",
    "summary.json",
}
SUMMARY_KEYS = [
    "experiment",
    "method",
    "seed",
    "test_error",
    "test_error_best",
    "validation_error",
    "epochs",
    "images",
    "wall_seconds",
    "images_per_second",
    "peak_memory_bytes",
    "parameters",
    "multiply_adds",
    "teacher_fingerprint",
    "data_digest",
    "start_digest",
    "compared_layers",
    "versions",
    "devices",
    "processor",
    "threads",
    "strategy",
    "replicas",
    "workers",
    "gathered_bytes_a_step",
    "earlier_conditions",
    "data",
    "class_names",
    "test_error_by_class",
]


class Finished(NamedTuple):
    """A whole experiment, run once for the tests that only read it or copy it."""

    root: object
    experiment: object
    told: list
    initial: dict
    """The student's weights at the start of each run."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    experiment, listener, initial = tiny(folder), Listener(), {}
    fit = Distiller.fit

    def recording_fit(self, *args, **kwargs):
        initial[listener.of("started")[-1]] = self.student.get_weights()
        return fit(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Distiller, "fit", recording_fit)
        root = run_experiment(experiment, folder / "runs", listener)
    return Finished(root, experiment, listener.told, initial)


@pytest.fixture(scope="module")
def parts():
    """The images as the experiment splits them."""
    splits = data.load("digits", validation=0.1, train_fraction=0.1)
    assert len(splits.train) == TRAIN_IMAGES
    return splits


def error_by_hand(network, images):
    """Plain NumPy on what the network gives for all images at once."""
    logits = np.asarray(network(images.pixels, training=False))
    return np.count_nonzero(logits.argmax(axis=1) != images.labels) / len(images)


# --- what a run leaves -----------------------------------------------------------------------------------------------


def test_run_folders(finished):
    assert finished.root.name == "tiny"
    assert {path.name for path in finished.root.iterdir()} == set(RUNS)
    for name in RUNS:
        assert {path.name for path in (finished.root / name).iterdir()} == FILES, name


@pytest.mark.parametrize("method", ["teacher", *METHODS])
def test_summary(finished, parts, method):
    folder = finished.root / f"{method}-seed0"
    summary = summary_of(folder)
    student = keras.saving.load_model(folder / "student.keras")
    best = keras.saving.load_model(folder / "best.keras")
    epochs = 1 if method == "teacher" else 2
    assert list(summary) == SUMMARY_KEYS
    assert [summary[key] for key in ("experiment", "method", "seed", "epochs")] == ["tiny", method, 0, epochs]
    assert summary["images"] == epochs * TRAIN_IMAGES
    assert summary["test_error"] == error_by_hand(student, parts.test)
    assert summary["validation_error"] == error_by_hand(student, parts.validation)
    assert summary["test_error_best"] == error_by_hand(best, parts.test)
    own = [error_by_hand(student, parts.test.take(np.flatnonzero(parts.test.labels == label))) for label in range(10)]
    np.testing.assert_allclose(summary["test_error_by_class"], own, rtol=1e-12)
    assert summary["parameters"] == student.count_params()
    assert summary["multiply_adds"] == models.multiply_adds(student)
    teacher = keras.saving.load_model(finished.root / "teacher-seed0" / "student.keras")
    assert summary["teacher_fingerprint"] == (None if method == "teacher" else models.fingerprint(teacher))
    versions = summary["versions"]
    assert (versions["tensorflow"], versions["keras"]) == (tf.__version__, keras.__version__)
    assert summary["wall_seconds"] > 0
    assert summary["images_per_second"] > 0


def test_history(finished, parts):
    for method in METHODS:
        folder = finished.root / f"{method}-seed0"
        rows = history_of(folder)
        assert [row["epoch"] for row in rows] == [1, 2]
        # 0.05, and a fifth of it from epoch 1 on, counted from 0.
        assert [row["learning_rate"] for row in rows] == pytest.approx([0.05, 0.01])
        best = keras.saving.load_model(folder / "best.keras")
        assert 1 - max(row["val_accuracy"] for row in rows) == pytest.approx(error_by_hand(best, parts.validation))
        assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert len(history_of(finished.root / "teacher-seed0")) == 1
    kd, sp = (history_of(finished.root / f"{method}-seed0")[-1] for method in ("kd", "sp"))
    # Digits have no regularisers: the loss is what the method says.
    assert kd["loss"] == pytest.approx(0.1 * kd["student_loss"] + 0.9 * kd["soft_targets"], rel=1e-4)
    assert sp["loss"] == pytest.approx(sp["student_loss"] + 100 * sp["similarity_preserving"], rel=1e-4)


def test_experiment_and_environment(finished, parts):
    for method in METHODS:
        folder = finished.root / f"{method}-seed0"
        assert load_experiment(folder / "experiment.yaml") == finished.experiment.single(method, 0)
        environment = json.loads((folder / "environment.json").read_text())
        assert environment["versions"] == summary_of(folder)["versions"]
        assert any("CPU" in device for device in environment["devices"])
        assert environment["intra_op_threads"] >= 1
        assert environment["inter_op_threads"] >= 1
        assert environment["class_names"] == summary_of(folder)["class_names"] == list("0123456789")
        assert environment["data"]["validation"] == "0.1 of train, stratified, seed 0"
        assert environment["commit"] is None or len(environment["commit"]) == 40
        assert environment["data_digest"] == parts.digest()
    assert (
        load_experiment(finished.root / "teacher-seed0" / "experiment.yaml") == finished.experiment.teacher_training()
    )


def test_similarities_are_of_the_images_of_their_labels(finished, parts):
    chosen = np.concatenate([np.flatnonzero(parts.test.labels == label)[:12] for label in range(10)])
    student = keras.saving.load_model(finished.root / "sp-seed0" / "student.keras")
    stage = keras.Model(student.input, student.get_layer("stage3").output)
    flat = np.float64(stage(parts.test.pixels[chosen], training=False)).reshape(120, -1)
    gram = flat @ flat.T
    with np.load(finished.root / "sp-seed0" / "similarity.npz") as arrays:
        np.testing.assert_allclose(arrays["student"], gram / np.linalg.norm(gram, axis=1, keepdims=True), atol=1e-4)


def test_similarities(finished, parts):
    for name in RUNS:
        with np.load(finished.root / name / "similarity.npz") as arrays:
            assert set(arrays) == (
                {"labels", "student"} if name.startswith("teacher") else {"labels", "student", "teacher"}
            )
            labels = arrays["labels"]
            # 128 images over 10 classes.
            np.testing.assert_array_equal(labels, np.repeat(np.arange(10), 12))
            for key in set(arrays) - {"labels"}:
                np.testing.assert_allclose(np.linalg.norm(arrays[key], axis=1), 1.0, rtol=1e-5)
                assert arrays[key].shape == (120, 120)
    own, seen = (np.load(finished.root / name / "similarity.npz") for name in ("teacher-seed0", "sp-seed0"))
    with own, seen:
        np.testing.assert_allclose(seen["teacher"], own["student"], atol=1e-6)


def test_observer_is_told_everything_in_its_order(finished):
    expected = [("planned", RUNS, [])]
    for name in RUNS:
        epochs = 1 if name == "teacher-seed0" else 2
        expected.append(("started", name, epochs))
        expected.extend(("progressed", name, done) for done in range(epochs + 1))
        expected.append(("completed", name, name.removesuffix("-seed0")))
    assert finished.told == expected


def test_students_of_all_methods_start_equal_and_end_different(finished):
    students = [finished.initial[f"{method}-seed0"] for method in METHODS]
    for weights in zip(*students, strict=True):
        np.testing.assert_array_equal(weights[0], weights[1])
        np.testing.assert_array_equal(weights[0], weights[2])
    ends = [np.concatenate([w.ravel() for w in weights_of(finished.root / f"{method}-seed0")]) for method in METHODS]
    assert not np.array_equal(ends[0], ends[1])
    assert not np.array_equal(ends[0], ends[2])


def test_student_loads_where_the_package_is_not_installed(finished, parts, tmp_path):
    code = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "spkd_keras":
            raise ImportError(name)
sys.meta_path.insert(0, Blocker())
import keras, numpy as np
pixels = np.load(sys.argv[1])
for file in sys.argv[2:]:
    network = keras.saving.load_model(file)
    assert {type(layer).__module__.split(".")[0] for layer in network.layers} == {"keras"}
    np.save(file + ".npy", network.predict(pixels, verbose=0))
"""
    np.save(tmp_path / "pixels.npy", parts.test.pixels[:32])
    files = [str(shutil.copy(finished.root / "sp-seed0" / name, tmp_path)) for name in ("student.keras", "best.keras")]
    done = subprocess.run(
        [sys.executable, "-c", code, "pixels.npy", *files], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for file in files:
        here = np.asarray(keras.saving.load_model(file)(parts.test.pixels[:32], training=False))
        np.testing.assert_allclose(np.load(f"{file}.npy"), here, rtol=1e-4, atol=1e-5)


def test_without_teacher_and_without_validation(tmp_path):
    experiment = tiny(tmp_path, "teacher=", "methods={student: []}", "data.validation=0", "schedule.epochs=1")
    root = run_experiment(experiment, tmp_path / "runs")
    assert {path.name for path in root.iterdir()} == {"student-seed0"}
    folder = root / "student-seed0"
    assert {path.name for path in folder.iterdir()} == FILES - {"best.keras"}
    summary = summary_of(folder)
    assert list(summary) == SUMMARY_KEYS
    assert [summary[key] for key in ("test_error_best", "validation_error", "teacher_fingerprint")] == [None] * 3
    assert not [key for key in history_of(folder)[0] if key.startswith("val_")]
    with np.load(folder / "similarity.npz") as arrays:
        assert set(arrays) == {"labels", "student"}


def test_a_teacher_from_a_file(finished, tmp_path):
    path = finished.root / "teacher-seed0" / "student.keras"
    before = path.read_bytes()
    experiment = tiny(tmp_path, f"teacher={{path: '{path}'}}", "schedule.epochs=1").select(["sp"])
    root = run_experiment(experiment, tmp_path / "runs")
    assert {folder.name for folder in root.iterdir()} == {"sp-seed0"}
    fingerprint = summary_of(finished.root / "sp-seed0")["teacher_fingerprint"]
    assert summary_of(root / "sp-seed0")["teacher_fingerprint"] == fingerprint
    assert path.read_bytes() == before


# --- what is done again ----------------------------------------------------------------------------------------------


class Redone(NamedTuple):
    """The same experiment run again, with one run removed and the summary of another."""

    root: object
    before: dict
    listener: Listener


@pytest.fixture(scope="module")
def redone(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("redone")
    root = shutil.copytree(finished.root, folder / "tiny")
    shutil.rmtree(root / "kd-seed0")
    (root / "sp-seed0" / "summary.json").unlink()
    before, listener = content(root), Listener()
    assert run_experiment(finished.experiment, folder, listener) == root
    return Redone(root, before, listener)


def test_finished_runs_are_left_alone(redone):
    after = content(redone.root)
    for name in ("teacher-seed0", "student-seed0"):
        kept = {path: file for path, file in after.items() if path.parent.name == name}
        assert kept == {path: file for path, file in redone.before.items() if path.parent.name == name}
    assert redone.listener.told[0] == ("planned", RUNS, ["teacher-seed0", "student-seed0"])
    assert redone.listener.of("started") == ["kd-seed0", "sp-seed0"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["kd", "sp"])
def test_what_is_done_again_is_the_same(finished, redone, method):
    assert_same_run(finished.root / f"{method}-seed0", redone.root / f"{method}-seed0")
    assert {path.name for path in (redone.root / f"{method}-seed0").iterdir()} == FILES


def test_a_training_that_goes_on_counts_its_earlier_seconds(tmp_path):
    recorder = Recorder(RunFolder(tmp_path, tiny(tmp_path).single("sp", 0)))
    recorder.resume({"training_seconds": 1e6, "rows": [], "peak_memory_bytes": 1 << 50})
    progress = recorder.progress()
    assert 1e6 < progress["training_seconds"] < 1e6 + 60
    assert progress["peak_memory_bytes"] == 1 << 50
    recorder.resume({})  # anew
    assert recorder.progress()["training_seconds"] < 60


def test_nothing_to_do(finished):
    before, listener = content(finished.root), Listener()
    assert run_experiment(finished.experiment, finished.root.parent, listener) == finished.root
    assert content(finished.root) == before
    assert listener.told == [("planned", RUNS, RUNS)]


def test_one_method_alone_is_the_same_as_among_all(finished, tmp_path):
    root = run_experiment(tiny(tmp_path).select(["sp"]), tmp_path / "runs")
    assert {path.name for path in root.iterdir()} == {"teacher-seed0", "sp-seed0"}
    assert_same_run(finished.root / "teacher-seed0", root / "teacher-seed0")
    assert_same_run(finished.root / "sp-seed0", root / "sp-seed0")


def test_the_best_epoch_is_computed_as_the_last_is(tmp_path, monkeypatch):
    """Two forms of one network differ in their last bits, and so may their errors."""
    networks = []
    errors = results._errors
    monkeypatch.setattr(results, "_errors", lambda network, images: networks.append(network) or errors(network, images))
    run_experiment(tiny(tmp_path, "teacher=", "methods={student: []}", "schedule.epochs=1"), tmp_path / "runs")
    kinds = [[type(layer) for layer in network.layers] for network in networks]
    assert len(kinds) == 3, "the last epoch on the test and the held-out images, and the best on the test images"
    assert kinds[0] == kinds[1] == kinds[2]
    assert BatchNormalization in kinds[0]


def test_averaged_weights_have_statistics_of_their_own(parts, tmp_path):
    """Those that were kept in training are of the weights before they were averaged."""
    experiment = tiny(tmp_path, "teacher=", "methods={student: []}", "schedule.ema=0.97")
    folder = run_experiment(experiment, tmp_path / "runs") / "student-seed0"
    student = keras.saving.load_model(folder / "student.keras")
    norm = next(layer for layer in student.layers if isinstance(layer, keras.layers.BatchNormalization))
    maps = np.asarray(keras.Model(student.input, norm.input)(parts.train.pixels, training=False), "float64")
    np.testing.assert_allclose(norm.moving_mean, maps.mean((0, 1, 2)), rtol=1e-3, atol=1e-6)
    assert summary_of(folder)["test_error"] == pytest.approx(error_by_hand(student, parts.test), abs=1e-9)
