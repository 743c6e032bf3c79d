"""Augmented batches as a function of seed, epoch and position: not of process, threads, or where one begins."""

import collections
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from pictures import blue_of, noise, photo_folder
from test_data_augmentation import all_cuts

from spkd_keras.data import (
    DATASETS,
    Augmentation,
    EpochClock,
    Images,
    digits,
    evaluation_batches,
    load,
    training_batches,
    view_batches,
)

COUNT = 22  # of images: not a multiple of a batch
BATCH = 8
OF_ARRAYS = [
    Augmentation(),
    Augmentation("cifar"),
    Augmentation("cifar", mixup=0.4),
    Augmentation(cutmix=1.0),
    Augmentation("cifar", randaugment=0.5),
]
OF_PHOTOS = [Augmentation(), Augmentation("imagenet"), Augmentation("imagenet", mixup=0.4, randaugment=0.3)]
EVERY = [
    pytest.param(kind, augmentation, marks=[pytest.mark.slow] if augmentation.randaugment else [])
    for kind, those in (("arrays", OF_ARRAYS), ("photos", OF_PHOTOS))
    for augmentation in those
]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    blues = photo_folder(root, {"train": COUNT // 2, "test": 1})
    parts = load("image_folder", path=str(root), image_size=24, validation=0)
    return {"arrays": noise(COUNT, 16), "photos": parts.train, "test": parts.test, "blues": blues}


def batches_of(images, augmentation, seed=3, epoch=2, batch_size=BATCH, options=None, **arguments):
    """The batches of an epoch, from a pipeline made for this alone."""
    clock = EpochClock()
    clock.on_epoch_begin(epoch)
    batches = training_batches(images, batch_size, seed, clock, augmentation, **arguments)
    batches = batches.with_options(options) if options else batches
    found = list(batches.as_numpy_iterator())
    assert len(found) == batches.cardinality().numpy()
    return found


def assert_same(found, expected):
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(left[0], right[0])
        np.testing.assert_array_equal(left[1], right[1])


def joined(batches):
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


# --- a function of seed and epoch ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "augmentation"), EVERY)
def test_batches_are_a_function_of_seed_and_epoch(sets, kind, augmentation):
    images = sets[kind]
    first = batches_of(images, augmentation)
    classes = len(images.class_names)
    for pixels, labels in first:
        assert pixels.dtype == np.uint8
        assert pixels.shape[1:] == images.image_shape
        assert labels.shape[1:] == ((classes,) if augmentation.mixes_labels else ())
        assert np.issubdtype(labels.dtype, np.floating if augmentation.mixes_labels else np.integer)
    assert [len(pixels) for pixels, _ in first] == [8, 8, 6]
    keras.utils.set_random_seed(99)
    assert_same(batches_of(images, augmentation), first)
    for other in ({"seed": 4}, {"epoch": 3}):
        assert (joined(batches_of(images, augmentation, **other))[0] != joined(first)[0]).any()


@pytest.mark.parametrize(("kind", "augmentation"), EVERY)
def test_what_is_skipped_is_the_beginning_of_the_same(sets, kind, augmentation):
    whole = batches_of(sets[kind], augmentation)
    for skip in range(4):
        assert_same(batches_of(sets[kind], augmentation, skip=skip), whole[skip:])
    assert batches_of(sets[kind], augmentation, skip=9) == []


@pytest.mark.parametrize(
    ("kind", "augmentation"),
    [("arrays", OF_ARRAYS[0]), ("arrays", OF_ARRAYS[1]), ("photos", OF_PHOTOS[0]), ("photos", OF_PHOTOS[1])],
)
def test_what_happens_to_an_image_does_not_depend_on_its_batch(sets, kind, augmentation):
    by_eight, by_sixteen, one_by_one = (
        joined(batches_of(sets[kind], augmentation, batch_size=size)) for size in (8, 16, 1)
    )
    assert_same([by_eight, by_eight], [by_sixteen, one_by_one])


@pytest.mark.parametrize(("kind", "augmentation"), EVERY)
def test_threads_change_nothing(sets, kind, augmentation, monkeypatch):
    expected = batches_of(sets[kind], augmentation)
    for threads in (1, 8):
        options = tf.data.Options()
        options.threading.private_threadpool_size = threads
        options.threading.max_intra_op_parallelism = 1
        assert_same(batches_of(sets[kind], augmentation, options=options), expected)
    for calls in (1, 7):  # at a time
        monkeypatch.setattr(tf.data, "AUTOTUNE", calls)
        assert_same(batches_of(sets[kind], augmentation), expected)


# --- every image, cut everywhere -------------------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", OF_ARRAYS[:2])
def test_every_array_comes_once_an_epoch(augmentation):
    images = noise(COUNT, 16, classes=COUNT)
    for epoch in range(3):
        assert sorted(joined(batches_of(images, augmentation, epoch=epoch))[1]) == list(range(COUNT))


@pytest.mark.parametrize("augmentation", OF_PHOTOS[:2])
def test_every_photo_comes_once_an_epoch(sets, augmentation):
    for epoch in range(3):
        pixels, labels = joined(batches_of(sets["photos"], augmentation, epoch=epoch))
        assert len(pixels) == COUNT
        assert dict(zip(blue_of(pixels), labels, strict=True)) == sets["blues"]["train"]


def test_arrays_are_cut_everywhere_alike():
    image = np.arange(121, dtype=np.uint8).reshape(1, 11, 11, 1)
    count = 100 * 162
    images = Images(image.repeat(count, 0), np.zeros(count, np.int64), ("a", "b"))
    cuts = all_cuts(image[0])
    pixels, _ = joined(batches_of(images, Augmentation("cifar"), batch_size=1000))
    counts = collections.Counter(cuts[cut.tobytes()] for cut in pixels)
    assert len(counts) == 162
    # Pearson's statistic has a mean of 161 and a standard deviation of 18 if all are equally frequent.
    assert sum((found - 100) ** 2 / 100 for found in counts.values()) < 161 + 4 * 18


def test_a_photo_is_cut_elsewhere_in_each_epoch(sets):
    cuts = collections.defaultdict(set)
    for epoch in range(4):
        pixels, _ = joined(batches_of(sets["photos"], Augmentation("imagenet"), epoch=epoch))
        for blue, cut in zip(blue_of(pixels), pixels, strict=True):
            cuts[blue].add(cut.tobytes())
    assert {len(found) for found in cuts.values()} == {4}


def test_without_augmentation_a_photo_is_cut_as_for_evaluation(sets):
    pixels, labels = joined(batches_of(sets["photos"], Augmentation()))
    expected, expected_labels = joined(evaluation_batches(sets["photos"], 5).as_numpy_iterator())
    order, expected_order = np.argsort(blue_of(pixels)), np.argsort(blue_of(expected))
    np.testing.assert_array_equal(pixels[order], expected[expected_order])
    np.testing.assert_array_equal(labels[order], expected_labels[expected_order])


def test_batches_are_not_mixed_alike():
    images = noise(16, 8, classes=16)
    batches = [
        labels
        for seed, epoch in ((3, 2), (3, 3), (4, 2))
        for _, labels in batches_of(images, Augmentation(mixup=1.0), seed, epoch)
    ]
    shares = [np.sort(labels, axis=1)[:, -2:] for labels in batches]  # whatever the order of the images
    assert len({found.tobytes() for found in shares}) == len(shares) == 6


# --- evaluation ------------------------------------------------------------------------------------------------------


def test_evaluation_of_photos_keeps_their_order(sets):
    batches = evaluation_batches(sets["photos"], BATCH)
    assert batches.cardinality().numpy() == 3
    for _ in range(2):
        pixels, labels = joined(batches.as_numpy_iterator())
        assert pixels.dtype == np.uint8
        # Files in the order of their names, class after class, as they were written.
        assert list(zip(blue_of(pixels), labels, strict=True)) == list(sets["blues"]["train"].items())


@pytest.mark.parametrize("kind", ["arrays", "photos"])
def test_evaluation_with_shares_of_classes(sets, kind):
    for one_hot, shares in zip(
        evaluation_batches(sets[kind], BATCH).as_numpy_iterator(),
        evaluation_batches(sets[kind], BATCH, one_hot=True).as_numpy_iterator(),
        strict=True,
    ):
        np.testing.assert_array_equal(one_hot[0], shares[0])
        np.testing.assert_array_equal(np.eye(len(sets[kind].class_names))[one_hot[1]], shares[1])
        assert shares[1].dtype == np.float32


# --- fit, sizes, folders ---------------------------------------------------------------------------------------------


class Recorder(keras.Model):
    """Keeps the batches that `fit` gives it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def call(self, x):
        return x

    def train_step(self, data):
        self.seen.append(tuple(part.numpy() for part in data))
        return {"loss": 0.0}


@pytest.mark.parametrize(("kind", "augmentation"), [("arrays", OF_ARRAYS[2]), ("photos", OF_PHOTOS[1])])
def test_fit_sees_the_epochs_that_it_is_in(sets, kind, augmentation):
    expected = [batches_of(sets[kind], augmentation, epoch=epoch) for epoch in range(3)]
    for initial_epoch in (0, 1):
        recorder, clock = Recorder(), EpochClock()
        recorder.compile(optimizer="sgd", run_eagerly=True)
        batches = training_batches(sets[kind], BATCH, 3, clock, augmentation)
        recorder.fit(batches, initial_epoch=initial_epoch, epochs=3, callbacks=[clock], shuffle=False, verbose=0)
        assert_same(recorder.seen, list(itertools.chain(*expected[initial_epoch:])))


def test_arrays_are_brought_to_a_size(monkeypatch):
    parts = load("digits", image_size=12)
    assert {part.image_shape for part in parts[:3]} == {(12, 12, 1)}
    assert [len(part) for part in parts[:3]] == [808, 90, 899]
    small = load("digits")
    np.testing.assert_array_equal(parts.train.labels, small.train.labels)
    means = [part.train.pixels.mean(axis=(1, 2, 3)) for part in (parts, small)]
    assert np.corrcoef(means)[0, 1] > 0.99, "the same images"
    monkeypatch.setitem(DATASETS, "same", digits)
    np.testing.assert_array_equal(load("same", image_size=8).train.pixels, small.train.pixels)


@pytest.mark.parametrize("name", ["validation", "valid", "val"])
def test_a_folder_of_photos_from_end_to_end(tmp_path, name):
    blues = photo_folder(tmp_path, {"train": 5, name: 2, "test": 3}, classes=("ant", "bee"))
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no photo")
    parts = load("image_folder", path=str(tmp_path), image_size=32)
    assert parts.origin == {"train": "train", "validation": name, "test": "test"}
    assert parts.train.class_names == ("ant", "bee")
    for part, split in ((parts.train, "train"), (parts.validation, name), (parts.test, "test")):
        pixels, labels = joined(evaluation_batches(part, 4).as_numpy_iterator())
        assert pixels.shape[1:] == part.image_shape == (32, 32, 3)
        assert dict(zip(blue_of(pixels), labels, strict=True)) == blues[split]
    held = load("image_folder", path=str(tmp_path), image_size=32, validation=0.2)
    assert (len(held.train), len(held.validation)) == (8, 2)
    pixels, labels = joined(batches_of(held.train, Augmentation("imagenet"), batch_size=3))
    assert dict(zip(blue_of(pixels), labels, strict=True)).items() <= blues["train"].items()
    assert len(set(blue_of(pixels))) == 8


def test_the_validation_split_may_be_what_is_reported(tmp_path):
    photo_folder(tmp_path, {"train": 10, "validation": 2, "test": 3})
    parts = load("image_folder", path=str(tmp_path), image_size=16, test="validation")
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (18, 2, 4)


def test_the_end_of_an_epoch_does_not_wait_for_autotuning():
    """`test_workarounds.py` shows the wait, and that it is gone without."""
    images, clock = noise(COUNT, 16), EpochClock()
    for batches in (
        training_batches(images, BATCH, 3, clock),
        view_batches(images, BATCH, 3, clock, Augmentation("cifar"), views=2, view_seed=1),
        evaluation_batches(images, BATCH),
    ):
        assert batches.options().autotune.enabled is False
