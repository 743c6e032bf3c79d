"""What is wrong with the data is said in one line, before any training."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from pictures import CINIC10_ARCHIVE, DTD_ARCHIVE, archive, cinic10, dtd_members, numbered, photo_folder

from spkd_keras.data import DATASETS, Augmentation, Images, load, prepared
from spkd_keras.data.builders import Cinic10
from spkd_keras.data.prepare import find_builder, prepare
from spkd_keras.data.prepared import _keys
from spkd_keras.experiment import Data, ExperimentError, validated
from spkd_keras.training.build import augmentation, load_data


def loaded(**fields):
    return load_data(validated(Data, {"batch_size": 2, **fields}, "tried.yaml"))


def refusal(**fields):
    """What an experiment with this data is told."""
    with pytest.raises(ExperimentError) as caught:
        loaded(**fields)
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith("data: ")
    return said.removeprefix("data: ")


@pytest.fixture
def folder(tmp_path):
    """Photos of two classes, five of each to train on and three to test."""
    photo_folder(tmp_path / "photos", {"train": 5, "test": 3})
    return tmp_path / "photos"


def of(folder, **fields):
    return {"name": "image_folder", "path": str(folder), "image_size": 16, "validation": 0, **fields}


@pytest.fixture
def nothing_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "prepared"))


# --- experiments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"validation": "dev"}, "`validation`: image_folder has no split 'dev'. It has test, train."),
        ({"test": "tset"}, "`test`: image_folder has no split 'tset'. It has test, train."),
        ({"validation": "test"}, "`validation` and `test` must be other splits than train and each other. "),
        ({"validation": "train"}, "`validation` and `test` must be other splits than train and each other. "),
        ({"test": "train"}, "`validation` and `test` must be other splits than train and each other. "),
        ({"batch_size": 11}, "`batch_size` must be at most 10, the number of training images. Received: 11."),
        ({"validation": 0.2, "batch_size": 9}, "`batch_size` must be at most 8, the number of training images. "),
        ({"validation": 0.1}, "`validation` must leave an image of each of the 2 classes on both sides of the split "),
        ({"image_size": None}, "image_folder needs `path`, the folder, and `image_size`, for example 224."),
        ({"path": None}, "image_folder needs `path`, the folder, and `image_size`, for example 224."),
        ({"augmentation": "cifar"}, "`augmentation` must be none or cifar for images of one size, none or imagenet "),
        ({"mixup": 0.2, "cutmix": 1.0}, "Give either `mixup` or `cutmix`, not both."),
    ],
)
def test_an_experiment_that_does_not_fit_its_photos(folder, fields, said):
    assert refusal(**of(folder, **fields)).startswith(said)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"augmentation": "imagenet"}, "`augmentation` must be none or cifar for images of one size, none or imagenet"),
        ({"path": "photos"}, "`path` is for image_folder. Received: name='digits', path='photos'."),
        ({"randaugment": 0.5}, "`randaugment` needs 3 channels. Received: images of shape (8, 8, 1)."),
        ({"image_size": 4, "augmentation": "cifar"}, "`augmentation` cifar needs sides of at least 5. Received: (4, 4"),
        ({"validation": "validation"}, "`validation`: digits has no split 'validation'. It has train, test."),
        ({"train_fraction": 0.1, "batch_size": 82}, "`batch_size` must be at most 81, the number of training images. "),
    ],
)
def test_an_experiment_that_does_not_fit_the_digits(fields, said):
    assert refusal(name="digits", **fields).startswith(said)


def test_two_equal_splits_are_both_named(folder):
    assert "train" in refusal(**of(folder, validation="train")).partition("Received: ")[2]


@pytest.mark.parametrize(
    ("labels", "part", "said"),
    [
        (np.arange(20) % 4, "train", "The train part of wrong must have labels from 0 to 1, one for each of its 2 cla"),
        (np.arange(20) % 2 - 1, "train", "labels from 0 to 1, one for each of its 2 classes. Received: labels from -1"),
        # Sets of competitions, ImageNet among them, give the images of their test but not its labels.
        (np.full(20, -1), "test", "The test part of wrong must have labels from 0 to 1, one for each of its 2 classes"),
        (np.full(20, 0.0), "test", "The test part of wrong must have integer labels. Received: float64."),
        (np.zeros(0, int), "test", "The test part of wrong has no images."),
    ],
)
def test_labels_that_no_class_has(monkeypatch, labels, part, said):
    wrong = Images(numbered(len(labels)).pixels, labels, ("0", "1"))
    parts = (wrong, numbered(20)) if part == "train" else (numbered(20), wrong)
    monkeypatch.setitem(DATASETS, "wrong", lambda: parts)
    assert said in refusal(name="wrong")


@pytest.mark.parametrize("fractions", [{"validation": -0.1}, {"train_fraction": 1.5}])
def test_fractions_out_of_range(fractions):
    with pytest.raises(ValueError, match="Received: "):
        load("digits", **fractions)


# --- sets of TFDS ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_prepared")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cifar_10", "TFDS has no data set 'cifar_10'. Did you mean cifar10 or"),
        ("cinic", "TFDS has no data set 'cinic'. Did you mean cinic10"),
        ("digit", "TFDS has no data set 'digit'. Did you mean digits or"),
        ("image-folder", "TFDS has no data set 'image-folder'. Did you mean image_folder"),
        ("zzzz/x", "TFDS has no data set 'zzzz'."),
        ("dtd/fold11", "The data set 'dtd' has no config 'fold11'. Did you mean fold1 or fold10"),
        ("cifar10/plain", "The data set 'cifar10' has no config 'plain'."),
    ],
)
def test_a_set_that_there_is_not(name, said):
    assert refusal(name=name).startswith(said)


@pytest.mark.usefixtures("nothing_prepared")
@pytest.mark.parametrize(("name", "nearest"), [("dtd:1.0.0", "dtd"), ("CIFAR10", "cifar10")])
def test_the_nearest_names_are_useful(name, nearest):
    said = refusal(name=name)
    assert said.partition("Did you mean ")[2].rstrip("?").split(" or ").count(nearest) == 1


@pytest.mark.usefixtures("nothing_prepared")
@pytest.mark.parametrize(
    ("name", "command", "address"),
    [
        ("cinic10", "cinic10", "https://datashare.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz"),
        ("dtd/fold3", "dtd/fold3", "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz"),
        ("dtd", "dtd/fold1", "dtd-r1.0.1.tar.gz"),
        ("cifar10", "cifar10", "cifar-10-binary.tar.gz"),
    ],
)
def test_a_set_that_is_not_prepared(name, command, address):
    said = refusal(name=name, image_size=32)
    assert " is not prepared in " in said
    assert f"Run `spkd data prepare {command}`; without a network get " in said
    assert address in said
    assert said.endswith(" elsewhere and add `--manual-dir FOLDER`, the folder that it is in.")


@pytest.fixture
def textures(tmp_path, nothing_prepared):
    """A small DTD, prepared."""
    archive(tmp_path / DTD_ARCHIVE, dtd_members())
    prepare("dtd/fold1", manual_dir=tmp_path)
    return tmp_path / "prepared"


@pytest.mark.usefixtures("textures")
def test_photos_of_tfds_need_a_size_and_their_own_augmentation():
    assert refusal(name="dtd").startswith("The photos of dtd differ in size or are too many for the memory: give `imag")
    assert "Received: cifar." in refusal(name="dtd", image_size=32, augmentation="cifar")
    assert loaded(name="dtd/fold1", image_size=32, augmentation="imagenet").train.image_shape == (32, 32, 3)


def half(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("damage", [half, lambda file: file.unlink(), lambda file: file.write_bytes(b"no records")])
@pytest.mark.parametrize("name", ["cinic10", "dtd/fold1"])
def test_a_prepared_set_that_is_damaged_says_so(textures, tmp_path, monkeypatch, name, damage):
    monkeypatch.setattr(Cinic10, "IMAGES_IN_SPLIT", 10)
    (tmp_path / "manual").mkdir()
    cinic10(tmp_path / "manual", 1)
    assert (tmp_path / "manual" / CINIC10_ARCHIVE).is_file()
    prepare("cinic10", manual_dir=tmp_path / "manual")
    (file,) = (file for file in textures.rglob("*-train.*record*") if name.split("/")[0] in file.name)
    damage(file)
    said = refusal(name=name, image_size=32)
    assert str(file.parent) in said, "which set to prepare anew"


@pytest.mark.parametrize(
    ("side", "said"),
    [(None, "Unknown image file format."), (16, "shape: [16,16,3] list shape: [32,32,3]")],
)
@pytest.mark.usefixtures("nothing_prepared")
def test_a_prepared_image_that_is_none_or_of_another_size_says_so(tmp_path, monkeypatch, side, said):
    monkeypatch.setattr(Cinic10, "IMAGES_IN_SPLIT", 10)
    cinic10(tmp_path, 1)
    prepare("cinic10", manual_dir=tmp_path)
    content = b"no image" if side is None else tf.io.encode_png(np.zeros((side, side, 3), np.uint8)).numpy()
    monkeypatch.setattr(prepared, "_batches", lambda *_: iter([([content], np.zeros(1, np.int64))]))
    refused = refusal(name="cinic10", image_size=32)
    assert said in refused.partition("again: ")[2]
    assert "File" not in refused


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 9 GiB"),
        PermissionError(13, "Permission denied"),
        ImportError("No module named 'array_record'"),
        tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"),
        tf.errors.PermissionDeniedError(None, None, "a.tfrecord; Permission denied"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.usefixtures("nothing_prepared")
def test_what_is_no_damage_is_not_answered_with_removing_the_set(tmp_path, monkeypatch, error):
    def unreadable(*_):
        raise error

    monkeypatch.setattr(Cinic10, "IMAGES_IN_SPLIT", 10)
    monkeypatch.setattr(prepared, "_in_memory", unreadable)
    cinic10(tmp_path, 1)
    prepare("cinic10", manual_dir=tmp_path)
    with pytest.raises(type(error)) as caught:
        load("cinic10", image_size=32)
    assert caught.value is error


def test_each_augmentation_is_the_one_that_is_asked_for():
    spec = Data(name="digits", augmentation="cifar", mixup=0.1, randaugment=0.3)
    assert augmentation(spec) == Augmentation("cifar", mixup=0.1, randaugment=0.3)
    assert augmentation(Data(name="digits", cutmix=0.2)) == Augmentation(cutmix=0.2)


@pytest.mark.usefixtures("nothing_prepared")
def test_of_several_labels_the_one_that_is_meant_is_taken():
    builder = find_builder("cifar100")
    assert {"label", "coarse_label"} <= set(builder.info.features)
    assert _keys(builder) == ("image", "label")
    info = SimpleNamespace(features=builder.info.features, supervised_keys=None, full_name="two")
    with pytest.raises(ValueError, match=r"two must have one image and one label\. Received: "):
        _keys(SimpleNamespace(info=info))
