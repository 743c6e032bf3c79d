"""Preparing from archives: what is whole is read as it was written, and what is not leaves nothing behind."""

import io
import re
import shutil
import socket
import tarfile

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from pictures import CINIC10_ARCHIVE, DTD_ARCHIVE, DTD_CLASSES, archive, cinic10, dtd_members, photo_folder
from typer.testing import CliRunner

from spkd_keras.cli import app
from spkd_keras.data import Images, Photos, load, prepared
from spkd_keras.data import prepare as prepare_module
from spkd_keras.data.builders import Cinic10
from spkd_keras.data.prepare import check_prepared, find_builder, prepare

OF_CLASS = 2  # images in each of the ten classes of each part
LABELS = tfds.features.ClassLabel(names=["one", "other"])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with an empty `manual`, beside the `data` that TFDS looks into."""
    monkeypatch.setattr(Cinic10, "IMAGES_IN_SPLIT", 10 * OF_CLASS)
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "manual").mkdir()
    return tmp_path


def sizes(builder):
    return {split: info.num_examples for split, info in builder.info.splits.items()}


def refusal(kind, name, manual_dir):
    """What is said of an archive that cannot be prepared; makes sure that nothing looks prepared."""
    with pytest.raises(kind) as caught:
        prepare(name, manual_dir=manual_dir, notice=str)
    with pytest.raises(ValueError, match="is not prepared in"):
        check_prepared(find_builder(name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- CINIC-10 --------------------------------------------------------------------------------------------------------


def test_cinic10_is_read_as_it_was_written(here):
    written = cinic10(here / "manual", OF_CLASS)
    builder = prepare("cinic10", manual_dir=here / "manual")
    assert sizes(builder) == {"train": 20, "validation": 20, "test": 20}
    parts = load("cinic10")
    assert parts.origin == {"train": "train", "validation": "validation", "test": "test"}
    for split in ("train", "validation", "test"):
        part = getattr(parts, split)
        assert " ".join(part.class_names) == "airplane automobile bird cat deer dog frog horse ship truck"
        expected = {(pixels.tobytes(), label) for (where, label, _), pixels in written.items() if where == split}
        assert {(pixels.tobytes(), int(label)) for pixels, label in zip(part.pixels, part.labels, strict=True)} == (
            expected
        )
        assert len(part) == len(expected) == 20


def cut(fraction):
    def spoil(folder):
        file = folder / CINIC10_ARCHIVE
        file.write_bytes(file.read_bytes()[: int(fraction * file.stat().st_size)])

    return spoil


BROKEN = r"^cinic10/1.0.0 could not be prepared from .*manual; nothing was kept: "


@pytest.mark.parametrize(
    ("spoil", "kind", "said"),
    [
        *((cut(fraction), ValueError, BROKEN) for fraction in (0, 0.0001, 0.1, 1 / 3, 2 / 3, 0.9, 0.999)),
        (lambda folder: cinic10(folder, OF_CLASS - 1), ValueError, f"{BROKEN}.*20 images in train. Received: 10"),
        (lambda folder: cinic10(folder, OF_CLASS + 1), ValueError, f"{BROKEN}.*20 images in train. Received: 30"),
        (
            lambda folder: cinic10(folder, OF_CLASS, **{"test/ship/one-more.png": b""}),
            ValueError,
            f"{BROKEN}.*20 images in test. Received: 21",
        ),
        (
            lambda folder: (folder / CINIC10_ARCHIVE).unlink(),
            FileNotFoundError,
            "^.*manual must have the file CINIC-10.tar.gz, which is at https://datashare.ed.ac.uk/.*/CINIC-10.tar.gz.$",
        ),
        (shutil.rmtree, ValueError, "^--manual-dir must be a folder. Received: .*manual.$"),
    ],
)
def test_what_is_not_whole_is_refused_and_can_be_tried_again(here, spoil, kind, said):
    cinic10(here / "manual", OF_CLASS)
    spoil(here / "manual")
    assert re.search(said, refusal(kind, "cinic10", here / "manual"))
    assert not [path for path in (here / "data").rglob("*") if "record" in path.name or "incomplete" in path.name]
    (here / "manual").mkdir(exist_ok=True)
    cinic10(here / "manual", OF_CLASS)
    assert sizes(prepare("cinic10", manual_dir=here / "manual"))["train"] == 20


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (lambda content: content[:-4], "Compressed file ended before"),
        (lambda content: content[:-8] + bytes(8), "CRC check failed"),
    ],
    ids=["cut", "wrong"],
)
def test_the_checksum_of_the_archive_itself_is_checked(here, part, said):
    # The last eight bytes of a gzip file are the checksum and the length of its content (RFC 1952, 2.3.1).
    cinic10(here / "manual", OF_CLASS)
    file = here / "manual" / CINIC10_ARCHIVE
    file.write_bytes(part(file.read_bytes()))
    refused = refusal(ValueError, "cinic10", here / "manual")
    assert re.search(f"{BROKEN}CINIC-10.tar.gz is not whole: {said}", refused)


def test_without_a_network(here, monkeypatch):
    def unreachable(*_):
        raise OSError("Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    said = refusal(ConnectionError, "cinic10", None)
    assert said == (
        "datashare.ed.ac.uk cannot be reached. Get https://datashare.ed.ac.uk/bitstream/handle/10283/3192/"
        "CINIC-10.tar.gz elsewhere and run `spkd data prepare cinic10 --manual-dir FOLDER`, with the folder that it is "
        "in."
    )
    assert "`spkd data prepare dtd/fold2 --manual-dir FOLDER`" in refusal(OSError, "dtd/fold2", None)
    cinic10(here / "manual", OF_CLASS)
    prepare("cinic10", manual_dir=here / "manual")  # needs none


def test_one_archive_of_another_name_is_taken(here):
    cinic10(here / "manual", OF_CLASS)
    (here / "manual" / CINIC10_ARCHIVE).rename(here / "manual" / "mine.tar.gz")
    archive(here / "manual" / "other.tar.gz", {"readme": b""})
    refusal(FileNotFoundError, "cinic10", here / "manual")
    (here / "manual" / "other.tar.gz").unlink()
    assert sizes(prepare("cinic10", manual_dir=here / "manual"))["train"] == 20


def test_no_archive_is_taken_for_two(here):
    """Or the images to test with would be those to train on."""
    (here / "manual" / "horse-or-human.zip").write_bytes(b"PK")
    said = refusal(FileNotFoundError, "horses_or_humans", here / "manual")
    assert "must have the file validation-horse-or-human.zip, which is at " in said


@pytest.mark.parametrize(("limit", "value"), [("LARGE", 32 * 32 * 3), ("LARGE_ARCHIVES", 0)])
def test_what_may_be_large_can_be_read_out_of_order(here, monkeypatch, limit, value):
    """There may be more images than fit into memory, which nobody knows before they are written."""
    cinic10(here / "manual", OF_CLASS)
    monkeypatch.setattr(prepare_module, limit, value)
    builder = prepare("cinic10", manual_dir=here / "manual")
    assert builder.info.file_format is tfds.core.FileFormat.ARRAY_RECORD
    monkeypatch.setattr(prepared, "LARGEST_IN_MEMORY", 1)
    assert len(load("cinic10", image_size=16).train) == 20


def test_all_splits_are_cut_alike_though_only_one_is_too_large_for_the_memory(tmp_path, monkeypatch):
    """Else hyper-parameters would be chosen on other pixels than are reported."""
    framed = np.pad(np.full((8, 8, 3), 90, np.uint8), [(4, 4), (4, 4), (0, 0)], constant_values=255)
    builder = tfds.dataset_builders.store_as_tfds_dataset(
        name="framed",
        version="1.0.0",
        data_dir=tmp_path,
        features=tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(16, 16, 3)), "label": LABELS}),
        split_datasets={
            split: [(number, {"image": framed, "label": number % 2}) for number in range(count)]
            for split, count in (("train", 40), ("validation", 4), ("test", 4))
        },
    )
    monkeypatch.setattr(prepared, "find_builder", lambda name: builder)
    for limit, kind in ((20, Photos), (40, Images)):  # images that fit
        monkeypatch.setattr(prepared, "LARGEST_IN_MEMORY", limit * framed.size)
        parts = load("framed", image_size=16)
        assert {type(part) for part in (parts.train, parts.validation, parts.test)} == {kind}


def test_what_is_too_large_for_the_memory_says_what_to_do(here, monkeypatch):
    cinic10(here / "manual", OF_CLASS)
    builder = prepare("cinic10", manual_dir=here / "manual")
    monkeypatch.setattr(prepared, "LARGEST_IN_MEMORY", 1)
    with pytest.raises(ValueError, match="Remove that folder: `spkd data prepare cinic10` then writes it as arr"):
        load("cinic10", image_size=16)
    shutil.rmtree(builder.data_dir)


def test_what_is_prepared_is_left_alone(here):
    cinic10(here / "manual", OF_CLASS)
    before = prepare("cinic10", manual_dir=here / "manual").data_dir
    (here / "manual" / CINIC10_ARCHIVE).unlink()
    assert prepare("cinic10").data_dir == before


@pytest.mark.parametrize("name", ["digits", "image_folder"])
def test_what_needs_no_preparation_says_how_it_is_shown(tmp_path, monkeypatch, name):
    with pytest.raises(ValueError, match=f"^{name} needs no preparation.") as caught:
        prepare(name)
    photo_folder(tmp_path / "FOLDER", {"train": 5, "test": 1})
    monkeypatch.chdir(tmp_path)
    command = re.search("`spkd (.*)`", str(caught.value)).group(1).split()
    assert CliRunner().invoke(app, [*command, "--set", "validation=0"]).exit_code == 0


# --- DTD -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def textures(here):
    """The files of the small archive of DTD, which is in `manual`."""
    members = dtd_members()
    archive(here / "manual" / DTD_ARCHIVE, members)
    return members


def content(photos):
    """The bytes and the label of each photo, read from the last to the first and then in disorder."""
    backwards = {number: photos.read(tf.constant(number)).numpy() for number in photos.numbers[::-1]}
    for number in np.random.default_rng(0).permutation(photos.numbers):
        assert photos.read(tf.constant(number)).numpy() == backwards[number]
    return {(backwards[number], int(label)) for number, label in zip(photos.numbers, photos.labels, strict=True)}


def expected(members, part, fold):
    names = members[f"dtd/labels/{part}{fold}.txt"].decode().split()
    labels = dict(zip(DTD_CLASSES, (0, 10, 46), strict=True))  # in the list of the 47
    return {(members[f"dtd/images/{name}"], labels[name.split("/")[0]]) for name in names}


def assert_is_fold(fold, members):
    parts = load(f"dtd/fold{fold}", image_size=32)
    for photos, part in ((parts.train, "train"), (parts.validation, "val"), (parts.test, "test")):
        assert len(photos) == 9
        assert content(photos) == expected(members, part, fold)
        assert photos.image_shape == (32, 32, 3)


@pytest.mark.parametrize("fold", [1, 3, 10])
def test_photos_are_prepared_as_array_records_and_read_in_any_order(here, textures, fold):
    builder = prepare(f"dtd/fold{fold}", manual_dir=here / "manual")
    assert builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    assert len(list((here / "data").rglob("*.array_record-*"))) == 3
    assert_is_fold(fold, textures)


def test_photos_that_tfds_prepared_itself_are_the_same(here, textures, monkeypatch):
    with tarfile.open(here / "manual" / DTD_ARCHIVE) as file:
        file.extractall(here / "extracted", filter="data")
    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", lambda _, url: here / "extracted")
    tfds.builder("dtd_folds/fold3", file_format="tfrecord").download_and_prepare()
    assert len(list((here / "data").rglob("*.tfrecord-*"))) == 3
    assert_is_fold(3, textures)


def test_extraction_stays_in_its_folder(here, textures, monkeypatch):
    temporary = here / "temporary" / "of" / "python"
    temporary.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    evil = {f"{'../' * depth}evil{depth}": b"evil" for depth in range(1, 6)}
    evil |= {f"dtd/images/{'../' * depth}evil-inside{depth}": b"evil" for depth in range(3, 8)}
    archive(here / "manual" / DTD_ARCHIVE, evil | {str(here / "evil-absolute"): b"evil"} | textures)
    with tarfile.open(here / "manual" / DTD_ARCHIVE) as file:
        assert len([name for name in file.getnames() if "evil" in name]) == 11
    prepare("dtd/fold3", manual_dir=here / "manual")
    assert not [path for path in (here / "temporary").rglob("*") if path.is_file()], "the extracted photos are gone"
    assert not list(here.rglob("*evil*"))
    assert_is_fold(3, textures)


def test_a_link_in_an_archive_leads_nowhere(here, textures):
    (here / "outside").mkdir()
    with tarfile.open(here / "manual" / DTD_ARCHIVE, "w:gz") as file:
        for name, target in (("dtd/way", str(here / "outside")), ("dtd/up", "../../..")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            file.addfile(link)
        for name, value in {**textures, "dtd/way/evil": b"evil", "dtd/up/evil": b"evil"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(value)
            file.addfile(member, io.BytesIO(value))
    prepare("dtd/fold3", manual_dir=here / "manual")
    assert not list(here.rglob("*evil*"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dtd/images/dotted/dotted_0002.jpg": None}, "must have the photos of its lists. Not found: dotted/dotted_0"),
        ({"dtd/labels/train3.txt": b"dotted/dotted_0001.jpg " * 2}, "Two examples share the same hashed key"),
        ({"dtd/labels/val3.txt": b"dogs/a.jpg", "dtd/images/dogs/a.jpg": b""}, "dogs"),
    ],
)
def test_an_archive_of_dtd_that_is_not_whole(here, textures, changes, said):
    members = {name: value for name, value in (textures | changes).items() if value is not None}
    archive(here / "manual" / DTD_ARCHIVE, members)
    message = refusal(ValueError, "dtd/fold3", here / "manual")
    assert message.startswith("dtd_folds/fold3/1.0.0 could not be prepared from")
    assert said in message
    archive(here / "manual" / DTD_ARCHIVE, textures)
    prepare("dtd/fold3", manual_dir=here / "manual")
    assert_is_fold(3, textures)


def test_an_archive_of_dtd_without_its_lists(here, textures):
    archive(here / "manual" / DTD_ARCHIVE, {name: value for name, value in textures.items() if "labels" not in name})
    said = refusal(ValueError, "dtd/fold3", here / "manual")
    assert said.endswith("The archive of DTD must have its lists. Not found: dtd/labels/train3.txt.")


def test_a_photo_in_an_archive_that_cannot_be_decoded(here, textures):
    archive(here / "manual" / DTD_ARCHIVE, textures | {"dtd/images/dotted/dotted_0002.jpg": b"no photo"})
    assert "dotted_0002.jpg" in refusal(ValueError, "dtd/fold3", here / "manual")


def test_a_full_disk_is_not_the_fault_of_an_archive(here, monkeypatch):
    cinic10(here / "manual", OF_CLASS)

    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare_module.tempfile, "TemporaryDirectory", full)
    with pytest.raises(OSError, match="No space left"):
        prepare("cinic10", manual_dir=here / "manual")
