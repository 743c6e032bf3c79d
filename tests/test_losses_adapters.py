"""The layers that the losses put on the student's tap."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from loss_references import block_mean, projection, variational_information
from networks import CLASSES, cross_entropy, images, small_network
from numpy.testing import assert_allclose

from spkd_keras import Distiller, Term
from spkd_keras.losses import (
    LOSSES,
    Hint,
    InterChannelCorrelation,
    Projection,
    SoftTargets,
    VariationalHead,
    VariationalInformation,
)

TEACHER = (None, 4, 4, 6)
RANDOM = np.random.default_rng(3)


def adapter_of(loss, teacher_shape, student_shape):
    """As the Distiller makes it: a copy from the configuration, built for the student's tap."""
    adapter = loss.default_adapter(teacher_shape, student_shape)
    copy = type(adapter).from_config(adapter.get_config())
    copy.build(student_shape)
    return copy


def activations(*shape):
    return RANDOM.normal(size=(5, *shape)).astype("float32")


@pytest.mark.parametrize("loss_class", [Hint, InterChannelCorrelation])
def test_a_convolution_to_the_channels_of_the_teacher(loss_class):
    loss, student = loss_class(), activations(4, 4, 3)
    adapter = adapter_of(loss, TEACHER, (None, 4, 4, 3))
    result = adapter(student, training=False).numpy()
    assert result.shape == (5, 4, 4, 6)
    # 1x1: every position by itself, and linear.
    assert_allclose(adapter(student[:, ::-1, ::-1], training=False), result[:, ::-1, ::-1], rtol=1e-5, atol=1e-6)
    other = activations(4, 4, 3)
    assert_allclose(adapter(student - 2 * other) + 2 * adapter(other), adapter(student), rtol=1e-4, atol=1e-5)
    assert np.linalg.matrix_rank(result.reshape(-1, 6), tol=1e-4) == 3
    assert loss(activations(4, 4, 6), result) > 0
    assert loss.default_adapter(TEACHER, (None, 4, 4, 6)) is None


def test_a_dense_layer_to_the_width_of_the_teacher():
    loss, student = Hint(), activations(3)
    adapter = adapter_of(loss, (None, 6), (None, 3))
    (kernel,) = (weight.numpy() for weight in adapter.trainable_weights if len(weight.shape) == 2)
    # In inference, BatchNormalization at its start divides by sqrt(1 + epsilon) alone.
    assert_allclose(adapter(student, training=False), student @ kernel / np.sqrt(1 + 1e-5), rtol=1e-4, atol=1e-6)
    distiller = Distiller(small_network(6), small_network(4), [Term(loss, 1.0, "pooling", "pooling")])
    assert distiller.adapters["hint"].output_shape == (None, 6)


def test_the_adapter_normalises_by_the_batch_in_training_and_keeps_still_in_evaluation():
    model = Distiller(small_network(8), small_network(4), [Term(Hint())], evaluate_terms=True)
    model.compile("sgd", cross_entropy())
    (norm,) = (part for part in model.adapters["hint"].layers if isinstance(part, keras.layers.BatchNormalization))
    before = norm.moving_mean.numpy()
    model.fit(*images(20), batch_size=10, verbose=0)
    after = norm.moving_mean.numpy()
    assert not np.array_equal(before, after)
    model.evaluate(*images(20), verbose=0)
    np.testing.assert_array_equal(norm.moving_mean.numpy(), after)


def test_hints_of_two_sizes_are_refused_with_what_to_do():
    terms = [Term(Hint(), teacher="stage1", student="stage2")]
    with pytest.raises(ValueError, match=r"Name other layers.*`adapter` in Python, for example (.*)\.$") as caught:
        Distiller(small_network(6), small_network(4), terms)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("for example keras.layers.AveragePooling2D(2).")
    adapter = keras.Sequential([keras.layers.AveragePooling2D(2), keras.layers.Conv2D(6, 1)])
    Distiller(small_network(6), small_network(4), [Term(Hint(), teacher="stage2", student="stage1", adapter=adapter)])


def head_by_hand(head, x, channels):
    """Three 1x1 convolutions with ReLU between them, from the weights."""
    kernels = [weight.numpy()[0, 0] for weight in head.trainable_weights if len(weight.shape) == 4]
    assert [kernel.shape[1] for kernel in kernels][-1] == channels
    assert len(kernels) == 3
    first, second, third = kernels
    return np.maximum(np.maximum(x @ first, 0) @ second, 0) @ third


@pytest.mark.parametrize("side", [4, 8])
def test_variational_head(side):
    student = activations(side, side, 3)
    head = adapter_of(VariationalInformation(), TEACHER, (None, side, side, 3))
    result = head(student).numpy()
    assert result.shape == (5, 4, 4, 12)
    pooled = np.array([block_mean(image, 4, 4) for image in student])
    assert_allclose(result[..., :6], head_by_hand(head, pooled, 6), rtol=1e-4, atol=1e-5)
    assert_allclose(result[..., 6:], np.full((5, 4, 4, 6), 5.0), rtol=1e-6)
    teacher = activations(4, 4, 6)
    assert_allclose(VariationalInformation()(teacher, result), variational_information(teacher, result), rtol=1e-5)


@pytest.mark.parametrize("initial_variance", [1e-3, 0.5, 5.0, 100.0, 1000.0])
@pytest.mark.parametrize("epsilon", [1e-5, 5e-4])
def test_the_variance_begins_where_it_was_told_and_never_falls_below_epsilon(initial_variance, epsilon):
    loss = VariationalInformation(initial_variance, epsilon)
    head = adapter_of(loss, TEACHER, (None, 4, 4, 3))
    student = activations(4, 4, 3)
    assert_allclose(head(student)[..., 6:], np.full((5, 4, 4, 6), initial_variance), rtol=1e-4)
    (scale,) = (weight for weight in head.trainable_weights if weight.shape == (6,))
    scale.assign(np.full(6, -200.0))
    assert_allclose(head(student)[..., 6:], np.full((5, 4, 4, 6), epsilon), rtol=1e-6)


def test_the_variance_is_trained_to_the_mean_squared_error_of_its_channel():
    # d/dv of (m / v + log v)/2 is 0 at v = m.
    loss = VariationalInformation(epsilon=1e-5)
    head = adapter_of(loss, TEACHER, (None, 4, 4, 3))
    teacher, student = activations(4, 4, 6) * np.arange(1, 7, dtype="float32"), activations(4, 4, 3)
    error = np.mean((teacher - head(student)[..., :6].numpy()) ** 2, axis=(0, 1, 2))
    (scale,) = (weight for weight in head.trainable_weights if weight.shape == (6,))
    with tf.GradientTape() as tape:
        value = loss(teacher, head(student))
    slopes = tape.gradient(value, head.trainable_weights)
    assert all(np.abs(slope).max() > 1e-4 for slope in slopes)
    # softplus(s) + epsilon = v  <=>  s = log(exp(v - epsilon) - 1)
    scale.assign(np.log(np.expm1(error - 1e-5)))
    with tf.GradientTape() as tape:
        value = loss(teacher, head(student))
    assert_allclose(tape.gradient(value, scale), np.zeros(6), atol=1e-5)


@pytest.mark.parametrize("student_shape", [(None, 2, 2, 3), (None, 6, 6, 3), (None, 4, 6, 3)])
def test_maps_that_cannot_be_pooled_to_the_size_of_the_teacher_are_refused(student_shape):
    with pytest.raises(ValueError, match=r"must be of the teacher's size or a multiple of it\. Received: ") as caught:
        VariationalInformation().default_adapter(TEACHER, student_shape)
    assert "\n" not in str(caught.value)


def test_a_head_that_cannot_be_made_is_told_with_what_to_do_once():
    terms = [Term(VariationalInformation(), teacher="stage1", student="stage2")]
    with pytest.raises(ValueError, match="of the teacher's size or a multiple") as caught:
        Distiller(small_network(6), small_network(4), terms)
    said = str(caught.value)
    assert said.count("Name ") == said.count("`adapter`") == 1
    assert said.endswith("a keras.Sequential that begins with keras.layers.UpSampling2D(2).")
    adapter = keras.Sequential([keras.layers.UpSampling2D(2), VariationalHead(6, (8, 8))])
    Distiller(small_network(6), small_network(4), [dataclasses.replace(terms[0], adapter=adapter)])


@pytest.mark.parametrize("projectors", [1, 3, 5])
def test_projector_ensemble(projectors):
    loss = Projection(projectors)
    adapter = adapter_of(loss, (None, 7), (None, 4))
    for weight in adapter.trainable_weights:
        weight.assign(RANDOM.normal(size=weight.shape))
    kernels = np.concatenate([w.numpy() for w in adapter.trainable_weights if len(w.shape) == 2], axis=1)
    biases = np.concatenate([w.numpy() for w in adapter.trainable_weights if len(w.shape) == 1])
    assert kernels.shape == (4, 7 * projectors)
    assert biases.shape == (7 * projectors,)
    student, teacher = activations(4), activations(7)
    expected = np.maximum(student @ kernels + biases, 0).reshape(5, projectors, 7).mean(axis=1)
    assert_allclose(adapter(student), expected, rtol=1e-5, atol=1e-6)
    assert_allclose(loss(teacher, adapter(student)), projection(teacher, expected), rtol=1e-5)


def test_the_projectors_begin_apart():
    adapter = adapter_of(Projection(3), (None, 7), (None, 4))
    first, second, third = (w.numpy() for w in adapter.trainable_weights if len(w.shape) == 2)
    assert min(np.abs(first - second).max(), np.abs(second - third).max(), np.abs(first - third).max()) > 0.1


@pytest.mark.parametrize("key", ["hint", "inter_channel_correlation", "variational_information", "projection"])
def test_adapters_are_kept_in_files(key, tmp_path):
    embedding = key == "projection"
    shapes = ((None, 7), (None, 4)) if embedding else (TEACHER, (None, 4, 4, 3))
    adapter = adapter_of(LOSSES[key](), *shapes)
    model = keras.Sequential([keras.Input(shapes[1][1:]), adapter])
    for weight in adapter.weights:
        weight.assign(RANDOM.uniform(0.1, 1, size=weight.shape))
    model.save(tmp_path / "adapter.keras")
    student = activations(*shapes[1][1:])
    loaded = keras.saving.load_model(tmp_path / "adapter.keras")
    assert_allclose(loaded(student), model(student), rtol=0, atol=0)


@pytest.mark.parametrize("key", ["hint", "variational_information"])
def test_adapters_learn_in_fit(key):
    teacher, student = small_network(6), small_network(4)
    distiller = Distiller(teacher, student, [Term(LOSSES[key]())], student_loss_weight=0.0)
    distiller.compile(keras.optimizers.Adam(0.01), cross_entropy())
    x, y = images(40)
    history = distiller.fit(x, y, batch_size=20, epochs=8, verbose=0).history
    values = history[key]
    assert values[-1] < values[0] - 0.01


def test_an_adapter_on_a_student_whose_inside_cannot_be_reached():
    class Closed(keras.Model):
        def __init__(self):
            super().__init__()
            self.network = small_network(4)

        def call(self, x, training=None):
            return self.network(x, training=training)

    student, (x, y) = Closed(), images(8)
    student(x)
    logits = keras.Input((CLASSES,))
    adapter = keras.Model(logits, keras.layers.Dense(CLASSES)(logits))
    distiller = Distiller(small_network(8), student, [Term(SoftTargets(), adapter=adapter)])
    distiller.compile(keras.optimizers.SGD(0.1), cross_entropy())
    distiller.fit(x, y, verbose=0)
    trained = distiller.adapters["soft_targets"].get_weights()
    assert any(np.abs(one - other).max() > 0 for one, other in zip(adapter.get_weights(), trained, strict=True))
