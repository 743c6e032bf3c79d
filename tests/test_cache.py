"""What the teacher gives, kept in files: entries, views, sketches, and training without the teacher."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from networks import CLASSES, IMAGE_SHAPE, Counter, cross_entropy, small_network, weights
from test_distiller import KD, SP

from spkd_keras import Distiller, Term, data, losses, models
from spkd_keras.cache import compute, sketch_errors
from spkd_keras.data import Augmentation, EpochClock, Images, view_batches
from spkd_keras.distiller import StandIn

CIFAR = Augmentation("cifar")
COUNT = 22


@pytest.fixture
def images():
    return some_images()


@pytest.fixture
def teacher():
    return small_network(8, name="teacher")


def some_images():
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (COUNT, *IMAGE_SHAPE), dtype="uint8")
    return Images(pixels, random.integers(0, CLASSES, COUNT), tuple("abcd"))


def sp(weight=30.0, **arguments):
    return Term(SP(), weight, **arguments)


def of_epoch(dataset, clock, epoch):
    clock.epoch.assign(epoch)
    return [
        ((x.images.numpy(), {name: value.numpy() for name, value in x.teacher.items()}), y.numpy()) for x, y in dataset
    ]


# --- entries -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("store", "tolerance"), [("float32", 1e-5), ("float16", 1e-3)])
def test_batches_carry_what_the_teacher_gives_for_their_images(store, tolerance, images, teacher, tmp_path):
    """Of every view, in the order of `training_batches`, with a smaller last batch."""
    cache = compute(tmp_path / "cache", teacher, [sp()], images, batch_size=8, augmentation=CIFAR, views=2, store=store)
    clock = EpochClock()
    dataset, plain = cache.batches(images, 8, 3, clock), data.training_batches(images, 8, 3, clock)
    assert dataset.options().autotune.enabled is False
    tapped = keras.Model(teacher.input, [teacher.get_layer("stage2").output, teacher.output])
    epochs = [of_epoch(dataset, clock, epoch) for epoch in range(3)]
    for epoch, batches in enumerate(epochs):
        clock.epoch.assign(epoch)
        labels = np.concatenate([y.numpy() for _, y in plain])
        np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), labels)
        assert [len(y) for _, y in batches] == [8, 8, 6]
        for (pixels, values), _ in batches:
            assert list(values) == ["stage2", "/output"]
            assert {value.dtype for value in values.values()} == {np.dtype(store)}
            for value, expected in zip(values.values(), tapped(pixels, training=False), strict=True):
                np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance)

    def sorted_pixels(epoch):
        return sorted(pixel.tobytes() for (pixels, _), _ in epochs[epoch] for pixel in pixels)

    assert sorted_pixels(0) == sorted_pixels(2) != sorted_pixels(1)
    assert not np.array_equal(epochs[0][0][1], epochs[2][0][1])  # in another order


def test_an_epoch_can_be_entered_in_its_middle(images, teacher, tmp_path):
    cache = compute(tmp_path / "cache", teacher, [sp()], images, augmentation=CIFAR, views=3)
    clock = EpochClock()
    whole, rest = (of_epoch(cache.batches(images, 4, 1, clock, skip), clock, 4) for skip in (0, 2))
    assert len(rest) == len(whole) - 2
    for ((pixels, values), labels), ((other_pixels, other_values), other_labels) in zip(whole[2:], rest, strict=True):
        np.testing.assert_array_equal(pixels, other_pixels)
        np.testing.assert_array_equal(labels, other_labels)
        for name in values:
            np.testing.assert_array_equal(values[name], other_values[name])


def test_views_are_a_function_of_their_seed_and_number(images):
    clock = EpochClock()

    def pixels(epoch, **arguments):
        clock.epoch.assign(epoch)
        arguments = {"seed": None, "views": 4, "view_seed": 0} | arguments
        batches = list(view_batches(images, 5, clock=clock, augmentation=CIFAR, **arguments))
        return np.concatenate([batch.numpy() for batch, _, _ in batches]), np.concatenate([n for _, _, n in batches])

    first, numbers = pixels(1)
    np.testing.assert_array_equal(numbers, COUNT + np.arange(COUNT))
    shuffled, numbers = pixels(1, seed=7)
    np.testing.assert_array_equal(shuffled, first[numbers - COUNT])
    np.testing.assert_array_equal(first, pixels(5)[0])
    np.testing.assert_array_equal(first, pixels(1, views=2)[0])  # more views are the same ones and others
    assert not np.array_equal(first, pixels(2)[0])
    assert not np.array_equal(first, pixels(1, view_seed=1)[0])
    with pytest.raises(ValueError, match="of whole batches"):
        view_batches(images, 5, 0, clock, Augmentation("cifar", mixup=0.2), 2, 0)


def test_several_files_are_one_cache(images, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("spkd_keras.cache.computing.SHARD_BYTES", 2000)
    cache = compute(tmp_path / "many", teacher, [sp()], images)
    assert len(list((tmp_path / "many").glob("*.array_record"))) > 3
    monkeypatch.undo()
    one = compute(tmp_path / "one", teacher, [sp()], images)
    numbers = np.random.default_rng(0).permutation(COUNT)
    for name, value in cache.read(numbers).items():
        np.testing.assert_array_equal(value, one.read(numbers)[name])


# --- training ------------------------------------------------------------------------------------------------------


def trained(source, cache, images, terms, epochs=3):
    keras.utils.set_random_seed(5)
    student, clock = small_network(name="student"), EpochClock()
    model = Distiller(source, student, terms)
    model.compile(keras.optimizers.SGD(0.05), cross_entropy(), metrics=["accuracy"])
    batches = cache.batches(images, 8, 0, clock) if cache else data.training_batches(images, 8, 0, clock)
    history = model.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=[clock]).history
    return weights(student), history


def test_training_from_the_cache_is_training_with_the_teacher(images, teacher, tmp_path):
    """Two terms on the taps and one on the logits, an adapter among them. The teacher is not run."""
    terms = [sp(), Term(losses.Hint(), 0.1), Term(KD(), 0.9)]
    cache = compute(tmp_path / "cache", teacher, terms, images, batch_size=8, store="float32")
    expected, history = trained(teacher, None, images, terms)
    found, cached_history = trained(cache.stand_in, cache, images, terms)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert list(history) == list(cached_history)
    np.testing.assert_allclose(history["loss"], cached_history["loss"], rtol=1e-4)


@keras.saving.register_keras_serializable("spkd_keras_tests")
class AloneItDiffers(keras.layers.Layer):
    """Gives an image that is alone another value."""

    def call(self, x):
        return x + keras.ops.cast(keras.ops.shape(x)[0] == 1, x.dtype)


@pytest.mark.parametrize(("batch_size", "same"), [(11, True), (10, True), (7, False)])
def test_the_last_batch_of_an_epoch_counts_too(batch_size, same, images, tmp_path):
    """Of 22 images, seven a batch, the last is alone."""
    teacher = small_network(8, before=[AloneItDiffers()], name="teacher")
    cache = compute(tmp_path / "cache", teacher, [sp()], images, batch_size=batch_size, store="float32")
    assert cache.manifest.same_in_every_batch == {"stage2": same, "/output": same}


@pytest.mark.slow
def test_from_float32_without_augmentation_it_is_the_same_bits(tmp_path):
    """Where an image has the same bits in every batch, which oneDNN sees to."""
    code = """
import sys
import keras, numpy as np, tensorflow as tf
from spkd_keras import Distiller, Term, cache, data, losses, models
tf.config.experimental.enable_op_determinism()
train = data.load("digits").train
teacher = models.wide_resnet(10, 1, image_shape=(8, 8, 1))
terms = [Term(losses.SimilarityPreserving(), 30.0), Term(losses.SoftTargets(), 0.9)]
kept = cache.compute(sys.argv[1], teacher, terms, train, batch_size=64, store="float32")
assert all(kept.manifest.same_in_every_batch.values())
students = []
for cached in (False, True):
    keras.utils.set_random_seed(1)
    student, clock = models.wide_resnet(10, 0.5, image_shape=(8, 8, 1)), data.EpochClock()
    model = Distiller(kept.stand_in if cached else teacher, student, terms)
    model.compile(keras.optimizers.SGD(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    batches = kept.batches(train, 64, 0, clock) if cached else data.training_batches(train, 64, 0, clock)
    model.fit(batches, epochs=2, shuffle=False, verbose=0, callbacks=[clock])
    students.append(student.get_weights())
for one, other in zip(*students, strict=True):
    np.testing.assert_array_equal(one, other)
"""
    environment = os.environ | {"TF_ENABLE_ONEDNN_OPTS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "cache")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_teacher_never_runs(images, tmp_path):
    counter = Counter(name="counter")
    teacher = small_network(8, before=[counter])
    terms = [sp(), Term(KD(), 0.9)]
    cache = compute(tmp_path / "cache", teacher, terms, images, batch_size=8)
    passes = int(counter.passes)
    assert passes > 0
    trained(teacher, cache, images, terms)  # with the teacher at hand too
    trained(cache.stand_in, cache, images, terms)
    assert int(counter.passes) == passes


def test_a_distiller_goes_on_from_the_cache_after_loading(images, teacher, tmp_path):
    cache, clock = compute(tmp_path / "cache", teacher, [sp()], images), EpochClock()
    model = Distiller(cache.stand_in, small_network(), [sp()])
    model.compile("sgd", cross_entropy(), metrics=["accuracy"])
    batches = cache.batches(images, 8, 0, clock)
    model.fit(batches, shuffle=False, verbose=0, callbacks=[clock])
    model.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert loaded.teacher_fingerprint == models.fingerprint(teacher)
    np.testing.assert_array_equal(loaded.predict(images.pixels, verbose=0), model.predict(images.pixels, verbose=0))
    assert np.isfinite(loaded.evaluate(images.pixels, images.labels, verbose=0)).all()
    loaded.teacher = cache.stand_in
    for each in (model, loaded):
        each.fit(batches, shuffle=False, verbose=0, callbacks=[clock])
    for one, other in zip(weights(model.student), weights(loaded.student), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="must be the one that this student was distilled from"):
        loaded.teacher = StandIn("other", "0" * 32, cache.stand_in.shapes, defaults=cache.stand_in.defaults)


def test_batches_without_the_teachers_values_are_refused(images, teacher, tmp_path):
    cache = compute(tmp_path / "cache", teacher, [sp()], images)
    model = Distiller(cache.stand_in, small_network(), [sp()])
    model.compile("sgd", cross_entropy())
    with pytest.raises(ValueError, match=r"is not there, so batches must carry.*Received: "):
        model.fit(images.pixels, images.labels, verbose=0)


@pytest.mark.parametrize("term", [Term(losses.AttentionTransfer()), sp(teacher="stage1")])
def test_a_term_that_needs_more_than_the_cache_has(term, images, teacher, tmp_path):
    cache = compute(tmp_path / "cache", teacher, [sp()], images)
    with pytest.raises(ValueError, match=r"must have .*It has: stage2, output. Compute it anew"):
        Distiller(cache.stand_in, small_network(), [term])


# --- sketches ------------------------------------------------------------------------------------------------------


def test_a_sketch_is_kept_where_inner_products_are_all_that_counts(images, teacher, tmp_path):
    cache = compute(tmp_path / "cache", teacher, [sp()], images, sketch=100)
    (stage, output) = cache.manifest.tensors
    assert (stage.shape, stage.sketched_from, output.shape, output.sketched_from) == ((100,), 128, (CLASSES,), None)
    assert cache.manifest.bytes_an_entry == 2 * (100 + CLASSES)
    _, history = trained(cache.stand_in, cache, images, [sp(), Term(KD())])
    assert np.isfinite(history["loss"]).all()
    with pytest.raises(ValueError, match="random projection of stage2 only"):
        Distiller(cache.stand_in, small_network(), [Term(losses.Hint(), teacher="stage2")])
    both = compute(tmp_path / "both", teacher, [sp(), Term(losses.Hint(), teacher="stage2")], images, sketch=100)
    assert both.manifest.tensors[0].shape == (4, 4, 8)


def test_the_error_of_a_sketch_falls_as_its_root_and_is_what_numpy_says():
    activations = np.abs(np.random.default_rng(0).normal(size=(16, 8, 8, 40))).astype("float32")
    errors = sketch_errors(activations, seed=0, store="float32")
    assert [error.size for error in errors] == [64, 128, 256, 512, 1024, 2048, 2560]
    assert [error.bytes_an_image for error in errors] == [4 * error.size for error in errors]
    assert errors[-1].error == 0
    # In the mean of many seeds, four times the size halves it.
    mean = np.mean([[e.error for e in sketch_errors(activations, seed, "float32")] for seed in range(12)], axis=0)
    assert mean[0] / mean[2] == pytest.approx(2, rel=0.2)
    assert mean[2] / mean[4] == pytest.approx(2, rel=0.2)

    from spkd_keras.cache.sketch import projection

    def similarities(flat):
        gram = np.float64(flat) @ np.float64(flat).T
        return gram / np.linalg.norm(gram, axis=1, keepdims=True)

    flat = activations.reshape(16, -1)
    exact, kept = similarities(flat), similarities(flat @ projection(2560, 64, 0).numpy())
    assert np.linalg.norm(kept - exact) / np.linalg.norm(exact) == pytest.approx(errors[0].error, rel=1e-3)


def test_a_wide_tap_is_projected_by_parts(monkeypatch):
    """Of 10,000 values, whose projection is drawn in three parts; larger sketches than 4,096 are not tried."""
    from spkd_keras.cache import sketch
    from spkd_keras.cache.sketch import _projected, projection, projector

    flat = np.random.default_rng(0).normal(size=(4, 10_000)).astype("float32")
    matrix = projection(10_000, 64, 3).numpy()
    np.testing.assert_allclose(_projected(flat, 64, 3), flat @ matrix, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(projector(10_000, 64, 3)(flat), flat @ matrix, rtol=1e-3, atol=1e-3)
    assert matrix.std() == pytest.approx(1 / 8, rel=0.01)
    monkeypatch.setattr(sketch, "LARGEST_HELD", 10_000 * 64 - 1)
    monkeypatch.setattr(sketch, "projection", pytest.fail)  # it would not fit
    np.testing.assert_array_equal(projector(10_000, 64, 3)(flat), _projected(flat, 64, 3))
    assert not np.array_equal(matrix[:100], matrix[4096:4196])
    assert [error.size for error in sketch_errors(flat, 0, "float16")][-2:] == [4096, 10_000]


def test_float16_alone_costs_next_to_nothing():
    activations = np.random.default_rng(0).normal(size=(16, 500)).astype("float32")
    (*_, full) = sketch_errors(activations, seed=0, store="float16")
    assert 0 < full.error < 1e-3
    assert full.bytes_an_image == 1000
