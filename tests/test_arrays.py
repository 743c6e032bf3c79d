"""Arrays in `fit`: a loss over the pairs of a batch needs other batches in every epoch."""

import gc
import itertools
import weakref
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import images, small_network
from numpy.testing import assert_array_equal
from test_distiller import KD, SP

from spkd_keras import Distiller, Term
from spkd_keras.data import EpochClock, Images, training_batches
from spkd_keras.distiller.arrays import in_new_orders
from spkd_keras.distiller.strategies import with_class_weight

COUNT, BATCH = 22, 8


def first_epoch() -> int:
    return 0


def batches_of_fit(terms: list[Term], epochs: int = 3, eager: bool = True, **options: Any) -> list[list[list[int]]]:
    """The numbers of the images in every batch of every epoch of a real `fit`, seeded as everyone seeds."""
    keras.utils.set_random_seed(1)
    seen: list[list[int]] = []
    starts: list[int] = []

    def recorded(y: Any, y_pred: Any) -> Any:
        seen.append([int(number) for number in np.ravel(y)])
        return keras.ops.mean(y_pred, axis=-1)

    distiller = Distiller(small_network(6), small_network(), terms)
    distiller.compile("sgd", recorded, run_eagerly=eager)
    mark = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: starts.append(len(seen)))
    x, y = images(COUNT)[0], np.arange(COUNT)
    distiller.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=[mark], **options)
    return [seen[start:end] for start, end in zip(starts, [*starts[1:], len(seen)], strict=True)]


def test_every_epoch_has_other_batches_and_every_image_once() -> None:
    epochs = batches_of_fit([Term(SP())])
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == [8, 8, 6]
        assert sorted(itertools.chain(*epoch)) == list(range(COUNT))
    assert len({str(epoch) for epoch in epochs}) == 3
    assert epochs == batches_of_fit([Term(SP())])  # and the seed still says which
    assert epochs[1:] == batches_of_fit([Term(SP())], initial_epoch=1)  # of a training that goes on too


def test_the_next_fit_has_other_batches() -> None:
    keras.utils.set_random_seed(1)
    first, second = (in_new_orders(np.arange(COUNT), None, COUNT, {}, first_epoch)[0] for _ in range(2))
    assert list(first.as_numpy_iterator().next()) != list(second.as_numpy_iterator().next())
    assert first.options().autotune.enabled is False


def test_the_images_that_are_held_out_are_those_of_keras() -> None:
    (epoch,) = batches_of_fit([Term(SP())], epochs=1, validation_split=0.25, validation_freq=2)
    assert sorted(itertools.chain(*epoch)) == list(range(16))  # floor(22 * 0.75), from the front
    keras.utils.set_random_seed(0)
    distiller = Distiller(small_network(6), small_network(), [Term(SP())])
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = images(COUNT)
    found = distiller.fit(x, y, validation_split=0.25, verbose=0).history["val_loss"][-1]
    assert found == pytest.approx(distiller.evaluate(x[16:], y[16:], verbose=0), rel=1e-5)


def test_keras_still_repeats_one_order() -> None:
    """Once these differ, `in_new_orders` can go."""
    first, *others = batches_of_fit([Term(KD())])
    assert sorted(itertools.chain(*first)) == list(range(COUNT))
    assert first != [list(range(0, 8)), list(range(8, 16)), list(range(16, 22))]
    assert others == [first, first]


@pytest.mark.parametrize("options", [{"shuffle": False}, {"shuffle": "batch"}, {"steps_per_epoch": 2}])
def test_what_was_not_to_be_shuffled_anew_is_left_to_keras(options: dict[str, Any]) -> None:
    x, y = images(8)
    assert in_new_orders(x, y, 4, options, first_epoch) == (x, y, 4, options)


@pytest.mark.parametrize(
    ("x", "y", "options"),
    [
        (np.zeros((4, 2)), np.zeros(3), {}),  # not as many
        (np.zeros((4, 2)), np.zeros(4), {"validation_split": 0.9}),  # none is left
        ([[0.0], [1.0]], np.zeros(2), {}),  # lists
        (tf.data.Dataset.range(2), None, {}),
        (np.zeros((4, 2)), (np.zeros(4), np.zeros(4)), {"sample_weight": np.ones(4)}),  # of two outputs
    ],
)
def test_what_keras_refuses_or_knows_better_is_left_to_it(x: Any, y: Any, options: dict[str, Any]) -> None:
    same = in_new_orders(x, y, 4, options, first_epoch)
    assert all(found is given for found, given in zip(same, (x, y, 4, options), strict=True))


def test_structures_weights_and_types_are_kept() -> None:
    keras.utils.set_random_seed(0)
    number = np.arange(6)
    x = {"left": number.astype("float64"), "right": [tf.constant(number, tf.uint8), number[:, None]]}
    batches, y, batch_size, options = in_new_orders(
        x, number, None, {"sample_weight": number * 0.5, "validation_freq": 2, "validation_split": None}, first_epoch
    )
    assert (y, batch_size) == (None, None)
    assert options == {"validation_freq": 2, "shuffle": False, "validation_batch_size": None}
    ((inputs, labels, weights),) = batches.as_numpy_iterator()
    left, (right, column) = inputs["left"], inputs["right"]
    assert left.dtype == weights.dtype == np.float32  # as Keras casts arrays
    assert right.dtype == np.uint8
    assert column.shape == (6, 1)
    for part in (left, right, column[:, 0], weights * 2):
        assert_array_equal(part, labels)
    assert sorted(labels) == list(number)


@pytest.mark.parametrize("known", [True, False], ids=["known", "open"])
@pytest.mark.parametrize("form", [np.asarray, lambda y: y[:, None] + 0.0, keras.utils.to_categorical])
def test_class_weights_of_a_dataset_that_replicas_share(form: Any, known: bool) -> None:
    """Of integers, a column and one-hot rows, also where the number of columns is not known."""
    x, y = images(COUNT)
    batches = tf.data.Dataset.from_tensors((x, form(y)))
    if not known:
        spec = tf.TensorSpec(x.shape, x.dtype), tf.TensorSpec([None] * form(y).ndim, form(y).dtype)
        batches = tf.data.Dataset.from_generator(lambda: iter([(x, form(y))]), output_signature=spec)
    ((_, _, weights),) = with_class_weight(batches, {0: 2.0, 2: 0.0}).as_numpy_iterator()
    assert_array_equal(weights, np.array([2.0, 1.0, 0.0, 1.0], "float32")[y])


@pytest.mark.parametrize("one_hot", [False, True])
def test_class_weights_are_those_that_keras_gives_arrays(one_hot: bool) -> None:
    """A class without one has 1, which Keras' way for datasets refuses."""
    x, y = images(COUNT)
    labels = keras.utils.to_categorical(y) if one_hot else y[:, None]
    options = {"class_weight": {0: 2.0, 2: 0.0}}
    ((_, targets, weights),) = in_new_orders(x, labels, COUNT, options, first_epoch)[0].as_numpy_iterator()
    classes = targets.argmax(-1) if one_hot else targets[:, 0]
    assert_array_equal(weights, np.array([2.0, 1.0, 0.0, 1.0], "float32")[classes])
    trained = []
    for terms in ([Term(SP(), 0.0)], [Term(KD(), 0.0)]):  # through here, and through Keras
        keras.utils.set_random_seed(2)
        distiller = Distiller(small_network(6), small_network(), terms)
        distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        distiller.fit(x, y, batch_size=COUNT, epochs=2, verbose=0, class_weight={0: 2.0})
        trained.append(distiller.student.get_weights())
    for one, other in zip(*trained, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)  # one batch, in another order


def test_images_alone_train_on_the_terms() -> None:
    distiller = Distiller(small_network(6), small_network(), [Term(SP())], student_loss_weight=0)
    distiller.compile("sgd")
    losses = distiller.fit(images(8)[0], batch_size=4, epochs=2, verbose=0).history["loss"]
    assert np.isfinite(losses).all()


def test_held_out_images_are_compared_in_batches_of_the_same_size() -> None:
    x, y = images(COUNT)
    for given, size in (({}, BATCH), ({"validation_batch_size": 4}, 4)):
        *_, options = in_new_orders(x, y, BATCH, {"validation_split": 0.5, **given}, first_epoch)
        assert options["validation_batch_size"] == size


@pytest.mark.parametrize("kind", ["arrays", "batches"])
def test_a_distiller_that_is_done_is_forgotten(kind: str) -> None:
    """TensorFlow keeps the Python functions that a pipeline calls until the process ends."""
    distiller = Distiller(small_network(6), small_network(), [Term(SP())])
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    if kind == "arrays":
        distiller.fit(*images(COUNT), batch_size=BATCH, verbose=0)
    else:
        clock, (pixels, labels) = EpochClock(), images(COUNT)
        examples = Images(pixels.astype("uint8"), labels.astype("int64"), tuple("abcd"))
        distiller.fit(training_batches(examples, BATCH, 0, clock), shuffle=False, verbose=0, callbacks=[clock])
        del clock
    left = weakref.ref(distiller)
    del distiller
    gc.collect()
    assert left() is None
