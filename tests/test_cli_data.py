"""`spkd data`: what there is to say of a data set, its picture, and preparing it from an archive."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from pictures import DTD_ARCHIVE, archive, cinic10, dtd_members, photo_folder
from PIL import Image
from test_cli import call, words

from spkd_keras.data import digits
from spkd_keras.data.builders import Cinic10
from spkd_keras.training import build


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder to work in, with nothing prepared."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "prepared"))
    monkeypatch.setattr(Cinic10, "IMAGES_IN_SPLIT", 20)
    (tmp_path / "manual").mkdir()
    return tmp_path


def complaint(result, code):
    """The one line that `spkd` says of what is wrong."""
    assert (result.exit_code, result.stdout) == (code, "")
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("spkd: "))
    assert result.stderr.endswith(f"{line}\n")
    assert "Traceback" not in result.stderr
    return line


# --- show ------------------------------------------------------------------------------------------------------------


def test_show_digits(here):
    result = call("data", "show", "digits")
    assert (result.exit_code, result.stderr) == (0, "")
    said = words(result.stdout)
    # 1,797 digits in halves, a tenth of the first held out; classes have 174 to 183 images.
    assert "train 808 78 to 82 train without validation" in said
    assert "validation 90 9 0.1 of train, stratified, seed 0" in said
    assert "test 899 87 to 92 test" in said
    assert "Images 8x8x1. 10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in said
    assert said.endswith("Drawn: digits.png")
    assert max(map(len, result.stdout.splitlines())) <= 80
    with Image.open(here / "digits.png") as file:
        picture = np.asarray(file.convert("L"))
    assert min(picture.shape) > 100
    assert picture.std() > 10, "something is drawn"


def test_show_what_is_tested_with_where_it_is_a_part_of_train():
    result = call("data", "show", "digits", "--set", "test=0.2")
    said = words(result.stdout)
    # Of the 898 digits to train on.
    assert "train without test and validation" in said
    assert "0.1 of train without test, stratified, seed 0" in said
    assert "test 180 18 0.2 of train, stratified, seed 0" in said


def test_show_digits_as_json(here):
    result = call("data", "show", "digits", "--json", "--out", "drawn.png")
    assert (result.exit_code, result.stderr) == (0, "")
    answer = json.loads(result.stdout)
    assert (answer["name"], answer["image_shape"], answer["drawn"]) == ("digits", [8, 8, 1], "drawn.png")
    assert answer["class_names"] == list("0123456789")
    assert {part: values["images"] for part, values in answer["parts"].items()} == (
        {"train": 808, "validation": 90, "test": 899}
    )
    assert list(answer["parts"]["test"]["of_class"].values()) == np.bincount(digits()[1].labels).tolist()
    assert answer["parts"]["validation"]["from"] == "0.1 of train, stratified, seed 0"
    assert (here / "drawn.png").is_file()
    assert not (here / "digits.png").exists()


def test_show_what_an_experiment_would_train_on(here):
    fields = ["augmentation=cifar", "mixup=0.4", "validation=0", "train_fraction=0.5", "image_size=16"]
    result = call("data", "show", "digits", "--json", *(word for field in fields for word in ("--set", field)))
    answer = json.loads(result.stdout)
    assert answer["image_shape"] == [16, 16, 1]
    assert answer["parts"]["train"]["images"] == 449
    assert answer["parts"]["train"]["from"] == "0.5 of train"
    assert "validation" not in answer["parts"]
    call("data", "show", "digits", "--out", "plain.png", "--set", "image_size=16")
    assert (here / "plain.png").read_bytes() != (here / "digits.png").read_bytes()
    assert call("data", "show", "digits", "--out", "again.png", "--set", "image_size=16").exit_code == 0
    assert (here / "plain.png").read_bytes() == (here / "again.png").read_bytes()


def test_show_a_folder_of_photos(here):
    photo_folder(here / "photos", {"train": 5, "test": 2}, classes=("[red]ant", "bee"))
    fields = ["path=photos", "image_size=32", "batch_size=8", "validation=0", "augmentation=imagenet"]
    result = call("data", "show", "image_folder", *(word for field in fields for word in ("--set", field)))
    assert result.exit_code == 0
    assert "train 10 5 train test 4 2 test" in words(result.stdout)
    assert "Images 32x32x3. 2 classes: [red]ant, bee" in result.stdout
    with Image.open(here / "image_folder.png") as picture:
        assert min(picture.size) > 100


def test_show_a_set_of_few_photos(here):
    photo_folder(here / "photos", {"train": 5, "test": 2})
    fields = ["path=photos", "image_size=32", "validation=0"]
    assert call("data", "show", "image_folder", *(w for field in fields for w in ("--set", field))).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cifar_10"], "data: TFDS has no data set 'cifar_10'. Did you mean cifar10"),
        (["cinic10"], "data: cinic10/1.0.0 is not prepared in "),
        (["digits", "--set", "batchsize=3"], "data: unknown key `batchsize`. Did you mean `batch_size`?"),
        (["digits", "--set", "batch_size=many"], "data: `batch_size`: "),
        (["digits", "--set", "augmentation"], "--set takes KEY=VALUE, "),
        (["digits", "--set", "augmentation=imagenet"], "data: `augmentation` must be none or cifar for images of one"),
        (["digits", "--set", "augmentation=flip"], "data: `augmentation`: "),
        (["digits", "--set", "batch_size=1000"], "data: `batch_size` must be at most 808, the number of training"),
        (["image_folder"], "data: image_folder needs `path`, the folder, and `image_size`, for example 224."),
    ],
)
def test_what_cannot_be_shown(here, arguments, said):
    assert complaint(call("data", "show", *arguments), 2).startswith(f"spkd: {said}")
    assert not list(here.glob("*.png"))


def test_where_no_picture_can_be_drawn_nothing_is_loaded(here, monkeypatch):
    monkeypatch.setattr(build, "load_data", lambda _: pytest.fail("data were loaded"))
    said = complaint(call("data", "show", "digits", "--out", "."), 2)
    assert said == "spkd: --out takes the PNG file to draw. Received: the folder .. Give NAME.png."
    (here / "file").write_text("in the way")
    said = complaint(call("data", "show", "digits", "--out", "file/digits.png"), 2)
    assert said.startswith("spkd: The output folder cannot be written to: file (")
    assert said.endswith("Choose another with --out.")


@pytest.mark.parametrize("arguments", [["show"], ["prepare"], ["list"], ["show", "digits", "cifar10"], []])
def test_wrong_commands(arguments):
    result = call("data", *arguments)
    assert result.exit_code == 2
    assert "Usage" in result.output


def test_help():
    for command, options in (("show", ["--set", "--out", "--json"]), ("prepare", ["--manual-dir", "--data-dir"])):
        result = call("data", command, "--help")
        assert result.exit_code == 0
        assert all(option in result.stdout for option in options)


# --- prepare ---------------------------------------------------------------------------------------------------------


def test_prepare_and_show(here):
    cinic10(here / "manual", 2)
    result = call("data", "prepare", "cinic10", "--manual-dir", "manual")
    assert result.exit_code == 0
    assert result.stdout == (
        f"cinic10 is in {here / 'prepared' / 'cinic10' / '1.0.0'}: train 20, validation 20, test 20 images\n"
    )
    again = call("data", "prepare", "cinic10")
    assert (again.exit_code, again.stdout, again.stderr) == (0, result.stdout, "")
    answer = json.loads(call("data", "show", "cinic10", "--set", "batch_size=8", "--json").stdout)
    assert {part: values["images"] for part, values in answer["parts"].items()} == (
        {"train": 20, "validation": 20, "test": 20}
    )
    assert set(answer["parts"]["train"]["of_class"].values()) == {2}
    assert (here / "cinic10.png").is_file()


def test_prepare_elsewhere(here):
    archive(here / "manual" / DTD_ARCHIVE, dtd_members())
    result = call("data", "prepare", "dtd/fold3", "--manual-dir", "manual", "--data-dir", "elsewhere")
    assert result.exit_code == 0
    assert result.stdout == ("dtd/fold3 is in elsewhere/dtd_folds/fold3/1.0.0: train 9, validation 9, test 9 images\n")
    assert (here / "elsewhere" / "dtd_folds" / "fold3").is_dir()
    assert not (here / "prepared").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["cifar_10"], 2, "data: TFDS has no data set 'cifar_10'. Did you mean cifar10"),
        (["dtd/fold11"], 2, "data: The data set 'dtd' has no config 'fold11'. Did you mean fold1"),
        (["cinic10", "--manual-dir", "nowhere"], 2, "data: --manual-dir must be a folder. Received: nowhere."),
        (["cinic10", "--manual-dir", "manual/text"], 2, "data: --manual-dir must be a folder. Received: manual/text."),
        (["cinic10", "--manual-dir", "empty"], 1, "FileNotFoundError: empty must have the file CINIC-10.tar.gz, which"),
        (["cinic10", "--manual-dir", "manual"], 2, "data: cinic10/1.0.0 could not be prepared from manual; nothing "),
        (["cinic10"], 1, "ConnectionError: datashare.ed.ac.uk cannot be reached. Get https://datashare.ed.ac.uk/"),
    ],
)
def test_what_cannot_be_prepared(here, monkeypatch, arguments, code, said):
    def unreachable(*_):
        raise OSError("Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    cinic10(here / "manual", 1)
    (here / "manual" / "text").write_text("no folder")
    (here / "empty").mkdir()
    assert complaint(call("data", "prepare", *arguments), code).startswith(f"spkd: {said}")
    assert not list(here.rglob("dataset_info.json"))
    cinic10(here / "manual", 2)
    assert call("data", "prepare", "cinic10", "--manual-dir", "manual").exit_code == 0


@pytest.mark.parametrize("name", ["digits", "image_folder"])
def test_what_need_not_be_prepared(name):
    result = call("data", "prepare", name)
    assert result.exit_code == 2
    assert "needs no preparation" in result.stderr
    assert f"Did you mean {name}" not in result.stderr


@pytest.mark.slow
def test_the_environment_names_the_folder_of_prepared_data(here):
    cinic10(here / "manual", 2)
    code = "from spkd_keras.data.builders import Cinic10; Cinic10.IMAGES_IN_SPLIT = 20; from spkd_keras import cli; "
    for arguments in (["prepare", "cinic10", "--manual-dir", "manual"], ["show", "cinic10", "--set", "batch_size=4"]):
        done = subprocess.run(
            [sys.executable, "-c", f"{code} cli.main()", "data", *arguments],
            env={**os.environ, "TFDS_DATA_DIR": "relative/folder"},
            cwd=here,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr.count("spkd: ")) == (0, 0)
    assert (here / "relative" / "folder" / "cinic10" / "1.0.0").is_dir()
    assert "train 20 2 train" in words(done.stdout)
