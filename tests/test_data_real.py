"""The real sets, by their published numbers."""

import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from spkd_keras.data import check_images, load
from spkd_keras.data.builders.dtd_folds import NUM_FOLDS
from spkd_keras.data.prepare import prepare
from spkd_keras.data.prepared import prepared

pytestmark = pytest.mark.slow  # seconds go into reading

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
CLASSES = 10
# The 47 words of Describable Textures, as its authors list them.
WORDS = (
    "banded blotchy braided bubbly bumpy chequered cobwebbed cracked crosshatched crystalline dotted fibrous flecked "
    "freckled frilly gauzy grid grooved honeycombed interlaced knitted lacelike lined marbled matted meshed paisley "
    "perforated pitted pleated polka-dotted porous potholed scaly smeared spiralled sprinkled stained stratified "
    "striped studded swirly veined waffled woven wrinkled zigzagged"
)
TEXTURES = tuple(WORDS.split())


def prepared_folder():
    """The folder of prepared data that the environment names, which TFDS reads when it is imported."""
    if "TFDS_DATA_DIR" not in os.environ:
        pytest.skip("TFDS_DATA_DIR names no folder of prepared data")
    return Path(tfds.core.constants.DATA_DIR)


# --- CIFAR-10 --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cifar10():
    if not (prepared_folder() / "cifar10").is_dir():
        pytest.skip("CIFAR-10 is not in TFDS_DATA_DIR")
    return load("cifar10")


def test_cifar10_has_its_images(cifar10):
    parts = [cifar10.train, cifar10.validation, cifar10.test]
    assert [len(part) for part in parts] == [45_000, 5_000, 10_000]
    for part, of_class in zip(parts, (4_500, 500, 1_000), strict=True):
        assert np.bincount(part.labels).tolist() == [of_class] * CLASSES
        assert part.pixels.shape == (len(part), 32, 32, 3)
        assert part.pixels.dtype == np.uint8
    assert " ".join(cifar10.test.class_names) == "airplane automobile bird cat deer dog frog horse ship truck"
    assert cifar10.origin["validation"] == "0.1 of train, stratified, seed 0"


def test_cifar10_has_its_colours(cifar10):
    # Mean and standard deviation of each channel of the 50,000, as WideResNet's published code has them.
    counts = sum(
        np.stack([np.bincount(part.pixels[..., channel].ravel(), minlength=256) for channel in range(3)])
        for part in (cifar10.train, cifar10.validation)
    )
    values = np.arange(256)
    mean = counts @ values / counts.sum(axis=1)
    deviation = np.sqrt(counts @ values**2 / counts.sum(axis=1) - mean**2)
    assert counts.sum() == 50_000 * 32 * 32 * 3
    np.testing.assert_allclose(mean, (125.3, 123.0, 113.9), rtol=0.01)
    np.testing.assert_allclose(deviation, (63.0, 62.1, 66.7), rtol=0.01)


def test_all_of_cifar10_can_be_trained_on(cifar10):
    whole = load("cifar10", validation=0)
    assert (len(whole.train), whole.validation) == (50_000, None)
    assert np.bincount(whole.train.labels).tolist() == [5_000] * CLASSES
    both = np.concatenate([cifar10.train.pixels, cifar10.validation.pixels])
    np.testing.assert_array_equal(both.sum(axis=0), whole.train.pixels.sum(axis=0), "the same images, divided")


# --- Fashion-MNIST ---------------------------------------------------------------------------------------------------


def test_fashion_mnist_from_the_files_of_debian(tmp_path, monkeypatch):
    if not FASHION_MNIST.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    notices = []
    prepare("fashion_mnist", data_dir=tmp_path, manual_dir=FASHION_MNIST, notice=notices.append)
    assert len(notices) == 4, "Debian packed them anew"
    for file, notice in zip(sorted(path.name for path in FASHION_MNIST.iterdir()), sorted(notices), strict=True):
        assert notice.startswith(f"{file} is not byte for byte the file that TFDS knows")
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    parts = load("fashion_mnist", validation=0)
    for part, of_class in ((parts.train, 6_000), (parts.test, 1_000)):
        assert part.pixels.shape == (CLASSES * of_class, 28, 28, 1)
        assert np.bincount(part.labels).tolist() == [of_class] * CLASSES
    # 0.2860 is the mean that recipes for this set normalise by.
    assert parts.train.pixels.mean() / 255 == pytest.approx(0.2860, abs=1e-4)
    assert parts.train.class_names[0] == "T-shirt/top"


# --- Describable Textures --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def textures(tmp_path_factory):
    """The file names and labels of every part of every fold, and the names of the classes."""
    sample = prepared_folder().parent / "dtd_sample" / "dtd-10-classes.tar.gz"
    if not sample.is_file():
        pytest.skip("The sample of DTD is not beside TFDS_DATA_DIR")
    folder = tmp_path_factory.mktemp("dtd")
    folds = {}
    for fold in range(1, NUM_FOLDS + 1):
        builder = prepare(f"dtd/fold{fold}", data_dir=folder, manual_dir=sample.parent, notice=str)
        undecoded = {"image": tfds.decode.SkipDecoding()}
        for split in builder.info.splits:
            examples = builder.as_data_source(split, decoders=undecoded)
            folds[fold, split] = {example["file_name"].decode(): int(example["label"]) for example in examples}
    return folder, folds


def test_the_folds_of_dtd(textures):
    _, folds = textures
    everything = set().union(*folds.values())
    assert len(everything) == 1_200
    for fold in range(1, NUM_FOLDS + 1):
        parts = [folds[fold, split] for split in ("train", "validation", "test")]
        assert sum(map(len, parts)) == 1_200
        assert set().union(*parts) == everything, "disjoint, since they are as many together"
        for part in parts:
            counts = np.bincount(list(part.values()), minlength=len(TEXTURES))
            assert counts.tolist() == [40] * CLASSES + [0] * 37, "the sample has the first ten"
            assert all(TEXTURES[label] == name.split("/")[0] for name, label in part.items())
    assert len({frozenset(folds[fold, "train"]) for fold in range(1, NUM_FOLDS + 1)}) == NUM_FOLDS


def test_dtd_is_read(textures, monkeypatch):
    folder, folds = textures
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(folder))
    splits, read = prepared("dtd/fold10", 64)
    assert sorted(splits) == ["test", "train", "validation"]
    for split in splits:
        photos = read(split)
        check_images(photos, split)
        assert photos.class_names == TEXTURES
        assert photos.labels.tolist() == list(folds[10, split].values())
