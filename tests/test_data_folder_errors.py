"""What is wrong with a folder of photos is said in one line that names the files."""

import errno
import functools
import os
import shutil

import numpy as np
import pytest
from pictures import blue_of, encoded, gradient, noise, photo_folder, plain
from PIL import Image
from test_data_errors import loaded, of, refusal

from spkd_keras.data import Augmentation, EpochClock, evaluation_batches, training_batches
from spkd_keras.experiment import ExperimentError


@pytest.fixture
def folder(tmp_path):
    """Photos of two classes, five of each to train on and three to test."""
    photo_folder(tmp_path / "photos", {"train": 5, "test": 3})
    return tmp_path / "photos"


# --- photos that cannot be read --------------------------------------------------------------------------------------


SPOILED = {
    "a header that was overwritten": lambda content: content[:100] + bytes(200) + content[300:],
    "half a file": lambda content: content[: len(content) // 2],
    "all but its last bytes": lambda content: content[:-20],
    "an empty file": lambda content: b"",
    "a text": lambda content: b"no photo",
    "a page": lambda content: b"<!DOCTYPE html><title>404</title>",
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_photo_that_cannot_be_read_is_named(folder, part, spoil):
    loaded(**of(folder))
    file = folder / part / "cat" / "001.jpg"
    file.write_bytes(spoil(encoded(noise(1, 90).pixels[0])))
    count = {"train": 10, "test": 6}[part]
    assert refusal(**of(folder)) == f"1 of {count} photos cannot be read: {file}. Remove or replace them."


def test_of_many_photos_that_cannot_be_read_ten_are_named(folder):
    for number in range(12):
        (folder / "train" / "dog" / f"x{number:02}.png").write_bytes(b"no photo")
    said = refusal(**of(folder))
    assert said.startswith("12 of 22 photos cannot be read: ")
    assert [f"x{number:02}.png" in said for number in range(12)] == [True] * 10 + [False] * 2
    assert said.endswith(" and 2 more. Remove or replace them.")


def test_what_is_taken_for_readable_can_be_trained_on(folder):
    # JPEG has no checksum: of many photos that are damaged inside something can be decoded.
    random = np.random.default_rng(0)
    content = encoded(noise(1, 90).pixels[0])
    for number in range(20):
        start, damage = random.integers(1000, len(content) - 100), random.integers(0, 255, 30, dtype=np.uint8)
        spoiled = content[:start] + damage.tobytes() + content[start + 30 :]
        (folder / "train" / "dog" / f"x{number:02}.jpg").write_bytes(spoiled)
    while True:
        try:
            parts = loaded(**of(folder))
            break
        except ExperimentError as error:
            for file in (folder / "train" / "dog").glob("x*.jpg"):
                if str(file) in str(error):
                    file.unlink()
    assert len(parts.train) > 10, "some are taken"
    clock = EpochClock()
    for epoch in range(3):
        clock.on_epoch_begin(epoch)
        batches = training_batches(parts.train, 4, 0, clock, Augmentation("imagenet"))
        assert sum(len(pixels) for pixels, _ in batches) == len(parts.train)


# --- folders of photos -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: (root / "train" / "emu").mkdir(), "train/emu must have photos (.jpg, .jpeg, .png, .gif, .bmp). "),
        (lambda root: (root / "test" / "emu").mkdir(), "test has classes that train has not: emu."),
        (lambda root: shutil.copytree(root / "test" / "cat", root / "test" / "emu"), "train has not: emu."),
        (lambda root: shutil.copytree(root / "test" / "cat", root / "train" / "emu"), "test/emu must have photos"),
        (
            lambda root: (root / "test" / "cat" / "a.WebP").touch(),
            "1 photos in formats that are not read, as a.WebP. ",
        ),
        (lambda root: shutil.rmtree(root / "test" / "cat"), "test/cat must have photos (.jpg, "),
        (lambda root: shutil.rmtree(root / "train" / "cat"), "train must have a folder for each of at least two clas"),
        (lambda root: shutil.rmtree(root / "train"), "must have the folders train/<class>/ and test/<class>/ with ph"),
        (lambda root: shutil.rmtree(root), "photos. A path is relative to where spkd runs."),
        (lambda root: shutil.rmtree(root / "test"), "`test`: image_folder has no split 'test'. It has train."),
    ],
)
def test_a_folder_that_is_not_as_it_must_be(folder, change, said):
    change(folder)
    assert said in refusal(**of(folder))


def test_a_folder_of_the_home_and_one_that_does_not_exist(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(loaded(**of("~/photos")).train) == 10
    assert refusal(**of("~/photo")) == (
        f"`path`: the folder does not exist: {folder.parent}/photo. A path is relative to where spkd runs."
    )


@pytest.mark.parametrize("place", ["train", "train/cat", "train/cat/deeper"])
def test_a_folder_that_may_not_be_looked_into(folder, monkeypatch, place):
    closed = folder / place
    closed.mkdir(exist_ok=True)

    def refusing(of_the_system, path):
        if os.fspath(path) == str(closed):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return of_the_system(path)

    for name in ("listdir", "scandir"):  # permissions do not bind a test that root runs
        monkeypatch.setattr(os, name, functools.partial(refusing, getattr(os, name)))
    assert refusal(**of(folder)) == f"The folder {closed} cannot be read: Permission denied. Make it readable."


def test_a_photo_whose_name_is_not_utf_8(folder):
    file = os.fsencode(folder / "train" / "cat") + b"/gr\xfcn.jpg"
    with open(file, "wb") as out:
        out.write(encoded(plain((1, 2, 3), 20, 20)))
    train = loaded(**of(folder)).train
    pixels = np.concatenate([batch for batch, _ in evaluation_batches(train, 4).as_numpy_iterator()])
    assert len(pixels) == 11
    assert np.abs(pixels[5].astype(int) - (1, 2, 3)).max() <= 3  # after the five cats that were there
    with open(file, "wb") as out:
        out.write(b"no photo")
    assert f"1 of 11 photos cannot be read: {folder}/train/cat/gr\\xfcn.jpg." in refusal(**of(folder))


def test_grey_and_transparent_photos_have_three_channels(folder):
    picture = gradient(40, 50)
    grey, transparent = Image.fromarray(picture).convert("L"), Image.fromarray(picture).convert("RGBA")
    transparent.putalpha(77)
    (folder / "train" / "cat" / "y1.png").write_bytes(encoded(np.asarray(grey), "PNG"))
    (folder / "train" / "cat" / "y2.JPG").write_bytes(encoded(np.asarray(grey)))
    (folder / "train" / "cat" / "y3.png").write_bytes(encoded(np.asarray(transparent), "PNG"))
    train = loaded(**of(folder)).train
    assert len(train) == 13
    pixels = np.concatenate([batch for batch, _ in evaluation_batches(train, 4).as_numpy_iterator()])
    assert pixels.shape == (13, 16, 16, 3)
    for index in (5, 6):  # after the five cats that were there
        assert (np.ptp(pixels[index], axis=-1) == 0).all()
        assert np.ptp(pixels[index]) > 10
    assert blue_of(pixels[7:8]) == [125], "the colour under the transparency, 128, to the next 10"


def test_names_of_any_language(folder):
    file = folder / "train" / "cat" / "Katze auf größtem Dach 猫.jpg"
    file.write_bytes(encoded(plain((1, 2, 3), 20, 20)))
    assert len(loaded(**of(folder)).train) == 11
    file.write_bytes(b"no photo")
    assert f"1 of 11 photos cannot be read: {file}." in refusal(**of(folder))


def test_linked_folders_count_and_hidden_ones_do_not(folder):
    shutil.copytree(folder / "test" / "cat", folder.parent / "more")
    (folder / "train" / "cat" / "linked").symlink_to(folder.parent / "more")
    (folder.parent / "more" / "round").symlink_to(folder.parent / "more")
    for place in ("train", "train/cat"):
        shutil.copytree(folder / "test" / "dog", folder / place / ".ipynb_checkpoints")
    (folder / "train" / "cat" / "._001.jpg").write_bytes(b"of another system")
    train = loaded(**of(folder)).train
    assert (len(train), train.class_names) == (13, ("cat", "dog"))
