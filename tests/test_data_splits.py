"""Division of a set into parts, and what a loader must give."""

import numpy as np
import pytest
from pictures import numbered, photo_folder, rows

from spkd_keras.data import DATASETS, Images, Photos, check_images, held_out, load
from spkd_keras.experiment import Data, ExperimentError, validated


@pytest.fixture
def sets(monkeypatch):
    """200 training and 30 test images of two classes by the name of `two`, 100 and 20 of four by that of `four`."""
    monkeypatch.setitem(DATASETS, "two", lambda: (numbered(200), numbered(30)))
    monkeypatch.setitem(DATASETS, "four", lambda: (numbered(100, classes=4), numbered(20, classes=4)))


@pytest.mark.usefixtures("sets")
@pytest.mark.parametrize(
    ("validation", "train_fraction", "sizes", "origin"),
    [
        # Of 200 images; fractions of what validation leaves.
        (0.0, 1.0, (200, None), ("train", None)),
        (0.1, 1.0, (180, 20), ("train without validation", "0.1 of train, stratified, seed 0")),
        (None, 1.0, (180, 20), ("train without validation", "0.1 of train, stratified, seed 0")),
        (0.2, 0.5, (80, 40), ("0.5 of train without validation", "0.2 of train, stratified, seed 0")),
        (0, 0.25, (50, None), ("0.25 of train", None)),
    ],
)
def test_sizes_and_origin_of_the_parts(validation, train_fraction, sizes, origin):
    parts = load("two", validation=validation, train_fraction=train_fraction)
    assert (len(parts.train), parts.validation and len(parts.validation)) == sizes
    assert parts.origin == {"train": origin[0], "validation": origin[1], "test": "test"}
    assert rows(parts.test) == rows(numbered(30))
    for part in (parts.train, parts.validation or parts.train):
        assert set(np.bincount(part.labels)) == {len(part) // 2}, "both classes alike, as in the whole"
        assert part.class_names == ("0", "1")
        assert rows(part) <= rows(numbered(200)), "the labels stay with their images"
    if parts.validation:
        assert not rows(parts.train) & rows(parts.validation)


@pytest.mark.usefixtures("sets")
@pytest.mark.parametrize(
    ("fields", "sizes", "origin"),
    [
        # Of 200 images: test first, then validation of what it leaves, then the fraction of the rest.
        (
            {"test": 0.2},
            (144, 16, 40),
            ("train without test and validation", "0.1 of train without test, stratified, seed 0"),
        ),
        ({"test": 0.2, "validation": 0}, (160, None, 40), ("train without test", None)),
        (
            {"test": 0.2, "validation": 0.2, "train_fraction": 0.25},
            (32, 32, 40),
            ("0.25 of train without test and validation", "0.2 of train without test, stratified, seed 0"),
        ),
    ],
)
def test_images_to_test_with_can_be_held_out_too(fields, sizes, origin):
    parts = load("two", **fields)
    chosen = [part for part in (parts.train, parts.validation, parts.test) if part]
    assert [len(part) for part in chosen] == [size for size in sizes if size]
    held = {"validation": origin[1], "test": "0.2 of train, stratified, seed 0"}
    assert parts.origin == {"train": origin[0], **held}
    assert len(set().union(*map(rows, chosen))) == sum(map(len, chosen)), "no image is in two parts"
    assert set().union(*map(rows, chosen)) <= rows(numbered(200))
    assert np.bincount(parts.test.labels).tolist() == [20, 20]


@pytest.mark.usefixtures("sets")
def test_images_to_test_with_depend_on_the_seed_and_not_on_what_else_is_held_out():
    first = load("two", test=0.2)
    assert rows(load("two", test=0.2, validation=0.3, train_fraction=0.5).test) == rows(first.test)
    assert rows(load("two", test=0.2, validation_seed=1).test) != rows(first.test)


def test_photos_without_a_folder_to_test_with(tmp_path):
    photo_folder(tmp_path, {"train": 10})
    folder = {"path": str(tmp_path), "image_size": 8}
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (all of it is compared)
        load("image_folder", **folder)
    assert str(caught.value) == (
        "`test`: image_folder has no split 'test'. It has train. Hold a part of train out for it: test: 0.2."
    )
    parts = load("image_folder", **folder, test=0.2, validation=0.25)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (12, 4, 4)
    assert len({*parts.train.numbers, *parts.validation.numbers, *parts.test.numbers}) == 20


@pytest.mark.parametrize("test", [0.0, 1.0, -0.1, 1.5, 1, True, None, ["test"]])
def test_what_no_fraction_to_test_with_is(test):
    with pytest.raises(ExperimentError, match=r"must be the name of a split or a fraction above 0 and below 1"):
        validated(Data, {"name": "digits", "test": test}, "data")
    assert validated(Data, {"name": "digits", "test": 0.2}, "data").test == 0.2
    if isinstance(test, float):
        with pytest.raises(ValueError, match=f"`test` must be a split or a fraction .* Received: test={test}"):
            load("digits", test=test)


@pytest.mark.usefixtures("sets")
def test_what_is_held_out_depends_on_its_seed_and_on_nothing_else():
    np.random.seed(1)  # scikit-learn's default source of randomness
    first = load("two", validation=0.2)
    np.random.seed(2)
    np.testing.assert_array_equal(first.train.pixels, load("two", validation=0.2).train.pixels)
    fewer = load("two", validation=0.2, train_fraction=0.3)
    np.testing.assert_array_equal(first.validation.pixels, fewer.validation.pixels)
    assert rows(fewer.train) < rows(first.train)
    other = load("two", validation=0.2, validation_seed=1)
    assert rows(other.validation) != rows(first.validation)


def test_held_out_divides_photos_too():
    photos = Photos(lambda number: number, np.arange(100, 140), np.arange(40) % 4, tuple("abcd"), 32)
    rest, part = held_out(photos, 0.1, "validation")
    assert (len(rest), len(part), part.image_shape) == (36, 4, (32, 32, 3))
    assert sorted(part.labels) == [0, 1, 2, 3]
    assert sorted([*rest.numbers, *part.numbers]) == list(range(100, 140))
    np.testing.assert_array_equal(part.numbers % 4, part.labels, "the labels stay with their photos")


@pytest.mark.usefixtures("sets")
@pytest.mark.parametrize(
    ("validation", "train_fraction", "said"),
    [
        (0.01, 1.0, "`validation` must leave an image of each of the 4 classes .* 100 images.* validation=0.01"),
        (0.99, 1.0, "`validation` must leave an image of each of the 4 classes .* 100 images.* validation=0.99"),
        (0.2, 0.01, "`train_fraction` must leave .* the split of 80 images.* train_fraction=0.01"),
    ],
)
def test_parts_that_are_too_small(validation, train_fraction, said):
    with pytest.raises(ValueError, match=said):
        load("four", validation=validation, train_fraction=train_fraction)


# Spoils the 20 pixels or the 20 labels, 0 and 1 in turn.
@pytest.mark.parametrize(
    ("pixels", "labels", "said"),
    [
        (lambda p: p[:0], lambda y: y[:0], "^the train part has no images"),
        (lambda p: p / np.float32(255), None, r"uint8 pixels .* Received: float32 pixels of shape \(20, 1, 1, 1\)"),
        (
            lambda p: p[..., 0],
            None,
            r"of shape \(n, height, .* Received: uint8 pixels of shape \(20, 1, 1\) and labels",
        ),
        (
            lambda p: p[:-1],
            None,
            r"labels of shape \(n,\)\. Received: uint8 pixels of shape \(19, 1, 1, 1\) and labels of shape \(20,\)",
        ),
        (None, lambda y: y.astype(float), r"integer labels\. Received: float64"),
        (None, lambda y: y == 1, r"integer labels\. Received: bool"),
        (None, lambda y: y + 1, r"labels from 0 to 1, .* 2 classes\. Received: labels from 1 to 2"),
        (None, lambda y: y - 1, "Received: labels from -1 to 0"),
        # A column of labels would broadcast against the predictions instead of being compared with them.
        (None, lambda y: y[:, np.newaxis], r"\(20, 1\)"),
    ],
)
def test_what_a_loader_must_give(pixels, labels, said):
    right = numbered(20)
    check_images(right, "the train part")
    wrong = Images(
        pixels(right.pixels) if pixels else right.pixels,
        labels(right.labels) if labels else right.labels,
        right.class_names,
    )
    with pytest.raises(ValueError, match=said):
        check_images(wrong, "the train part")
