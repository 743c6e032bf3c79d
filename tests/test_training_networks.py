"""Networks of Keras, of a user's file and with weights from a file, in whole experiments."""

import hashlib
import json

import keras
import numpy as np
import pytest
from tiny_experiment import summary_of

from spkd_keras import data, models
from spkd_keras.experiment import ExperimentError
from spkd_keras.training import run_experiment

CLASSES = ("a", "b", "c")
PHOTOS = """
data: {name: photos, batch_size: 8, validation: 0}
teacher: {model: mobilenet, width: 0.25}
student: {model: mobilenet, width: 0.25}
schedule: {epochs: 1, learning_rate: 0.01}
methods: {sp: [{loss: similarity_preserving, weight: 10.0}]}
"""


@pytest.fixture(autouse=True)
def photos(monkeypatch):
    """A data set of 24 + 12 colour images, as small as the networks for 224 take them."""
    random = np.random.default_rng(0)

    def load():
        return [
            data.Images(random.integers(0, 256, (count, 32, 32, 3), "uint8"), np.arange(count) % 3, CLASSES)
            for count in (24, 12)
        ]

    monkeypatch.setitem(data.DATASETS, "photos", load)


def run(experiment, folder):
    root = run_experiment(experiment, folder / "runs")
    return root, summary_of(root / "sp-seed0")


@pytest.mark.slow
def test_a_network_of_keras_applications_as_teacher(load, tmp_path):
    experiment = load(PHOTOS, "teacher={model: keras_applications.MobileNetV2, alpha: 0.35}")
    root, summary = run(experiment, tmp_path)
    teacher = keras.saving.load_model(root / "teacher-seed0" / "student.keras")
    assert teacher.get_layer("backbone").count_params() == 410_208  # Keras' MobileNetV2 at 0.35 without its top
    assert summary["teacher_fingerprint"] == models.fingerprint(teacher)
    with np.load(root / "sp-seed0" / "similarity.npz") as matrices:
        assert matrices["teacher"].shape == matrices["student"].shape


@pytest.mark.slow
def test_a_network_that_turns_the_channels_round_as_student(load, tmp_path):
    root, _ = run(load(PHOTOS, "student={model: keras_applications.VGG16}", "methods={sp: sp}"), tmp_path)
    student = keras.saving.load_model(root / "sp-seed0" / "student.keras")
    assert student.output_shape == (None, 3)


@pytest.mark.slow
def test_a_network_of_a_file_as_teacher(load, tmp_path):
    teacher = models.keras_application("MobileNet", num_classes=3, image_shape=(32, 32, 3), alpha=0.25)
    teacher.save(tmp_path / "my.keras")
    root, summary = run(load(PHOTOS, f"teacher={{path: '{tmp_path / 'my.keras'}'}}"), tmp_path)
    assert not (root / "teacher-seed0").exists()
    assert summary["teacher_fingerprint"] == models.fingerprint(teacher)


@pytest.mark.slow
def test_a_student_starts_from_the_weights_of_a_file(load, tmp_path):
    start = models.mobilenet(0.25, num_classes=5, image_shape=(64, 64, 3))
    start.save_weights(tmp_path / "start.weights.h5")
    student = f"student={{model: mobilenet, width: 0.25, weights: '{tmp_path / 'start.weights.h5'}', skip_head: true}}"
    rate = "schedule={epochs: 1, learning_rate: 1.0e-30, weight_decay: 0.0}"  # so that it stays where it starts
    root, _ = run(load(PHOTOS, student, rate), tmp_path)
    trained = keras.saving.load_model(root / "sp-seed0" / "student.keras")
    np.testing.assert_array_equal(
        trained.get_layer("stage5_block1_conv").kernel, start.get_layer("stage5_block1_conv").kernel
    )
    recorded = json.loads((root / "sp-seed0" / "environment.json").read_text())["start_digest"]
    assert hashlib.sha256((tmp_path / "start.weights.h5").read_bytes()).hexdigest().startswith(recorded)
    refused = load(PHOTOS, student.replace(", skip_head: true", ""), "name=other")
    with pytest.raises(ExperimentError, match=r"student: `weights`: .* is for 5 classes\..*skip_head=True"):
        run_experiment(refused, tmp_path / "runs")


def test_what_is_refused_names_its_place(load, tmp_path):
    for teacher, message in [
        ("{model: keras_applications.MobileNt}", r"teacher: .*no network 'MobileNt'\. Did you mean 'MobileNet'\?"),
        ("{model: keras_applications.MobileNet, width: 1}", "teacher: keras.applications.MobileNet takes no 'width'"),
        ("{model: keras_applications.Xception}", "teacher: keras.applications.Xception refuses .*at least 71x71"),
        ("{model: mobilenet, weights: imagenet, width: 0.4}", "teacher: The ImageNet weights exist at width 0.25"),
        ("{model: mobilenet_v2, weights: imagenet, width: 0.5}", 'teacher: .*give head="fixed"'),
    ]:
        with pytest.raises(ExperimentError, match=message):
            run_experiment(load(PHOTOS, f"teacher={teacher}"), tmp_path / "runs")
