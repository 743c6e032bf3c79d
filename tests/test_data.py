"""Digits, and batches whose order is a function of seed, epoch and position alone."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from pictures import numbered, rows
from sklearn.datasets import load_digits

from spkd_keras.data import DATASETS, EpochClock, digits, evaluation_batches, training_batches


@pytest.fixture(scope="module")
def loaded():
    return digits()


def order(batches):
    """The numbers of the images of one pass, in their order."""
    return [int(number) for pixels, _ in batches for number in np.ravel(pixels)]


def order_of(seed, epoch, count=50, batch_size=8):
    """The same from a pipeline made for this alone, which enters the epoch directly."""
    clock = EpochClock()
    clock.on_epoch_begin(epoch)
    return order(training_batches(numbered(count), batch_size, seed, clock))


# --- digits ----------------------------------------------------------------------------------------------------------


def test_digits_have_the_size_and_type_that_networks_take(loaded):
    assert [len(part) for part in loaded] == [898, 899]
    for part in loaded:
        assert part.pixels.shape == (len(part), 8, 8, 1)
        assert (part.pixels.dtype, part.labels.dtype) == (np.uint8, np.int64)
        assert part.labels.shape == (len(part),)
        assert (part.pixels.min(), part.pixels.max()) == (0, 255)
        assert part.class_names == tuple("0123456789")
    assert DATASETS["digits"] is digits


def test_digits_are_those_of_scikit_learn(loaded):
    bunch = load_digits()
    # 0..16 there, 0..255 here; no pixel falls halfway between two integers.
    expected = {
        (np.round(image * 255 / 16).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(bunch.images, bunch.target, strict=True)
    }
    train, test = loaded
    assert rows(train) | rows(test) == expected
    assert len(train) + len(test) == len(bunch.images) == 1797


def test_digits_are_split_by_class_and_do_not_overlap(loaded):
    train, test = loaded
    assert not rows(train) & rows(test)
    difference = np.bincount(train.labels, minlength=10) - np.bincount(test.labels, minlength=10)
    assert np.abs(difference).max() <= 1, "half of each class"


def test_digits_are_always_the_same(loaded):
    np.random.seed(1)  # scikit-learn's default source of randomness
    for before, again in zip(loaded, digits(), strict=True):
        np.testing.assert_array_equal(before.pixels, again.pixels)
        np.testing.assert_array_equal(before.labels, again.labels)


# --- batches ---------------------------------------------------------------------------------------------------------


def test_batches():
    batches = training_batches(numbered(50, classes=3), 8, 0, EpochClock())
    assert batches.cardinality().numpy() == 7
    shapes = [tuple(pixels.shape) for pixels, _ in batches]
    assert shapes == [(8, 1, 1, 1)] * 6 + [(2, 1, 1, 1)]
    for pixels, labels in batches:
        assert (pixels.dtype, labels.dtype) == (tf.uint8, tf.int64)
        np.testing.assert_array_equal(np.ravel(pixels) % 3, labels, "the labels stay with their images")


def test_every_image_comes_once_an_epoch():
    for epoch in range(3):
        assert sorted(order_of(seed=1, epoch=epoch)) == list(range(50))


def test_order_depends_on_seed_and_epoch_and_nothing_else():
    orders = {(seed, epoch): tuple(order_of(seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(set(orders.values())) == 9
    assert tuple(range(50)) not in orders.values()
    for global_seed in (5, 6):
        keras.utils.set_random_seed(global_seed)
        keras.random.normal((3,))
        assert tuple(order_of(2, 1)) == orders[2, 1]


def test_order_does_not_depend_on_how_it_is_batched():
    assert order_of(1, 1, batch_size=50) == order_of(1, 1, batch_size=8)


def test_an_epoch_entered_directly_is_the_one_reached_by_iterating():
    clock = EpochClock()
    batches = training_batches(numbered(50), 8, 7, clock)
    reached = []
    for epoch in range(4):
        clock.on_epoch_begin(epoch)
        reached.append(order(batches))
    assert reached[3] == order_of(7, 3)
    assert len(set(map(tuple, reached))) == 4
    clock.on_epoch_begin(1)
    assert order(batches) == reached[1], "and an epoch can be repeated"


@pytest.mark.slow
def test_order_is_the_same_in_another_process():
    code = (
        "import json, sys, numpy as np\n"
        "from spkd_keras.data import EpochClock, Images, training_batches\n"
        "pixels = np.arange(50, dtype=np.uint8).reshape(50, 1, 1, 1)\n"
        "clock = EpochClock()\n"
        "clock.on_epoch_begin(3)\n"
        "batches = training_batches(Images(pixels, np.zeros(50, np.int64), ('0',)), 8, 7, clock)\n"
        "print(json.dumps([int(number) for pixels, _ in batches for number in np.ravel(pixels)]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == order_of(7, 3)


class Recorder(keras.Model):
    """Keeps the images that `fit` and `evaluate` give it."""

    def __init__(self):
        super().__init__()
        self.seen = {"train": [], "test": []}

    def call(self, x):
        return x

    def train_step(self, data):
        self.seen["train"].extend(int(number) for number in np.ravel(data[0]))
        return {"loss": 0.0}

    def test_step(self, data):
        self.seen["test"].extend(int(number) for number in np.ravel(data[0]))
        return {"loss": 0.0}


@pytest.mark.parametrize("initial_epoch", [0, 2])
def test_fit_sees_another_order_in_each_epoch(initial_epoch):
    clock, recorder = EpochClock(), Recorder()
    recorder.compile(optimizer="sgd", run_eagerly=True)
    recorder.fit(
        training_batches(numbered(20), 8, 3, clock),
        validation_data=evaluation_batches(numbered(5), 2),
        initial_epoch=initial_epoch,
        epochs=4,
        shuffle=False,
        callbacks=[clock],
        verbose=0,
    )
    assert recorder.seen["train"] == [
        number for epoch in range(initial_epoch, 4) for number in order_of(3, epoch, count=20)
    ]
    assert recorder.seen["test"] == [0, 1, 2, 3, 4] * (4 - initial_epoch)


def test_evaluation_batches_keep_the_order():
    images = numbered(11, classes=3)
    batches = evaluation_batches(images, 4)
    assert batches.cardinality().numpy() == 3
    assert order(batches) == order(batches) == list(range(11))
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), images.labels)
    assert {pixels.dtype for pixels, _ in batches} == {tf.uint8}
