"""Networks that `spkd predict` and `spkd evaluate` cannot use, or not for these pictures."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from fake_runs import digit_network
from pictures import digit_pictures, encoded
from test_cli import call

from spkd_keras import data, models


@pytest.fixture
def digits(tmp_path):
    return digit_pictures(tmp_path / "digits")


def test_a_damaged_summary_is_named(tmp_path, digits):
    network = tmp_path / "student.keras"
    digit_network().save(network)
    summary = tmp_path / "summary.json"
    summary.write_text("{damaged", encoding="utf-8")
    result = call("predict", network, digits)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"spkd: {summary}, which has the class names of student.keras, cannot be read (Expecting")
    summary.write_text("[1, 2]", encoding="utf-8")  # another program's
    assert json.loads(call("predict", network, digits, "--json").stdout)["problems"] == []


def test_a_network_that_is_no_classifier_of_single_images(tmp_path, digits):
    layers = keras.layers
    image, other, vector = keras.Input((8, 8, 1)), keras.Input((8, 8, 1)), keras.Input((64,))
    logits = layers.Dense(10)(layers.Flatten()(image))
    maps = layers.Conv2D(2, 3)(image)
    both = layers.Dense(10)(layers.Flatten()(layers.Add()([image, other])))
    for name, network, shapes in (
        ("vector", keras.Model(vector, layers.Dense(10)(vector)), "(64,) to (10,)"),
        ("outputs", keras.Model(image, [logits, maps]), "(8, 8, 1) to (10,) and (6, 6, 2)"),
        ("inputs", keras.Model([image, other], both), "(8, 8, 1) and (8, 8, 1) to (10,)"),
        ("maps", keras.Model(image, maps), "(8, 8, 1) to (6, 6, 2)"),
    ):
        path = tmp_path / f"{name}.keras"
        network.save(path)
        for arguments in (["predict", path, digits], ["evaluate", path, "digits", "--out", tmp_path / "out"]):
            result = call(*arguments)
            assert (result.exit_code, result.stdout) == (2, "")
            assert result.stderr == (
                f"spkd: {path}: a classifier of images takes one image, (height, width, channels), to one vector of "
                f"logits. Received: '{network.name}' from {shapes}.\n"
            )


def test_a_network_that_gives_no_numbers(tmp_path):
    """The square root of a negative number, for dark pictures alone."""
    layers = keras.layers
    image = keras.Input((8, 8, 1))
    bright = layers.GlobalAveragePooling2D()(image)
    path = tmp_path / "dark.keras"
    keras.Model(image, layers.Dense(10)(keras.ops.sqrt(layers.Rescaling(1.0, -80.0)(bright)))).save(path)
    for value, name in ((10, "dark.png"), (200, "bright.png")):
        (tmp_path / name).write_bytes(encoded(np.full((8, 8), value, np.uint8), "PNG"))
    result = call("predict", path, tmp_path / "*.png", "--json")
    assert result.exit_code == 1
    answer = json.loads(result.stdout, parse_constant=pytest.fail)
    assert [Path(row["file"]).name for row in answer["predictions"]] == ["bright.png"]
    (problem,) = answer["problems"]
    assert (Path(problem["file"]).name, problem["problem"]) == (
        "dark.png",
        "can be read, but the network gives no numbers (NaN or infinite) for it",
    )
    dark = int(np.sum(data.digits()[1].pixels.mean(axis=(1, 2, 3)) < 80))
    assert 0 < dark < 899
    for arguments in ([], ["--json"]):
        result = call("evaluate", path, "digits", "--out", tmp_path / "out", *arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert [line for line in result.stderr.splitlines() if line.startswith("spkd:")] == [
            f"spkd: {path} gives no numbers (NaN or infinite) for {dark} of 899 images, so there is nothing to "
            "evaluate. Its training diverged, or its file is of too little precision."
        ]


def test_another_number_of_classes(tmp_path):
    network = models.wide_resnet(10, 0.25, image_shape=(8, 8, 1), num_classes=3)
    network.save(tmp_path / "three.keras")
    result = call("evaluate", tmp_path / "three.keras", "digits", "--out", tmp_path)
    assert result.exit_code == 2
    assert "three.keras has 3 classes. Received: digits with 10 classes." in result.stderr


def test_data_that_a_search_or_a_folder_has(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models.wide_resnet(10, 0.25, image_shape=(8, 8, 1), num_classes=3).save("three.keras")
    Path("search.yaml").write_text("data: {name: digits}\nmethods: {sp: {weight: {float: [1, 10]}}}", encoding="utf-8")
    Path("bare.yaml").write_text("student: {model: resnet}", encoding="utf-8")
    Path("photos").mkdir()
    for given, said in (
        ("search.yaml", "three.keras has 3 classes. Received: digits with 10 classes."),  # its data were read
        ("bare.yaml", "bare.yaml: `data` must be a mapping (key: value). Received: None."),
        ("photos", "data: TFDS has no data set 'photos'. The photos of a folder are image_folder with "),
    ):
        result = call("evaluate", "three.keras", given)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith(f"spkd: {said}")
        assert len(result.stderr.splitlines()) == 1
    assert "--set path=photos --set image_size=224" in result.stderr
