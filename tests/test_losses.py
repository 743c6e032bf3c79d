"""Soft targets, and what all losses have in common as Keras losses."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.testing import assert_allclose
from test_similarity_preserving import STUDENT, TEACHER, feature_maps

from spkd_keras.losses import (
    LOSSES,
    DistillationLoss,
    SimilarityPreserving,
    SoftTargets,
    soft_targets,
)

OURS = {name: kind for name, kind in LOSSES.items() if issubclass(kind, DistillationLoss)}


def reference_log_softmax(logits, temperature):
    scaled = np.asarray(logits, "float64") / temperature
    return scaled - np.logaddexp.reduce(scaled, axis=-1, keepdims=True)


def reference_soft_targets(teacher, student, temperature):
    """Cross-entropy minus entropy of the softened probabilities, times the squared temperature."""
    teacher, student = (reference_log_softmax(logits, temperature) for logits in (teacher, student))
    return temperature**2 * ((np.exp(teacher) * teacher).sum(-1) - (np.exp(teacher) * student).sum(-1))


@pytest.fixture
def float16_floatx():
    keras.config.set_floatx("float16")
    yield
    keras.config.set_floatx("float32")


@pytest.mark.parametrize("temperature", [1, 4, 20])
@pytest.mark.parametrize(("dtype", "relative"), [("float32", 2e-5), ("float64", 1e-11)])
def test_soft_targets_equal_the_reference(temperature, dtype, relative):
    teacher, student = 6 * feature_maps(9, (5, 10)), 6 * feature_maps(10, (5, 10))
    expected = reference_soft_targets(teacher, student, temperature)
    values = soft_targets(teacher.astype(dtype), student.astype(dtype), temperature)
    assert_allclose(values, expected, rtol=relative)
    result = SoftTargets(temperature, dtype=dtype)(teacher, student)
    assert result.dtype == dtype
    assert_allclose(result, expected.mean(), rtol=relative)


def test_soft_targets_by_hand():
    # p = (3/4, 1/4), q = (1/2, 1/2) at temperature 2: 4 * (3/4 log 3/2 + 1/4 log 1/2).
    teacher, student = [[2 * np.log(3), 0.0]], [[5.0, 5.0]]
    expected = 4 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert_allclose(SoftTargets(temperature=2)(teacher, student), expected, rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_soft_targets_gradient(temperature):
    teacher, student = 3 * feature_maps(11, (4, 5)), 3 * feature_maps(12, (4, 5))
    teacher[0], student[0] = [50, -50, -50, -50, -50], [-50, 50, -50, -50, -50]  # the student is surely wrong
    student_tensor = tf.constant(student, "float32")
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(student_tensor)
        values = soft_targets(tf.constant(teacher, "float32"), student_tensor, temperature)
        mean = SoftTargets(temperature)(teacher, student_tensor)
    # d/dz_S of T^2 KL = T^2 * 1/T * (q - p).
    softened = [np.exp(reference_log_softmax(logits, temperature)) for logits in (student, teacher)]
    expected = temperature * (softened[0] - softened[1])
    assert np.abs(expected[0]).max() > 0.7
    assert_allclose(tape.gradient(values, student_tensor), expected, rtol=1e-4, atol=1e-5)
    assert_allclose(tape.gradient(mean, student_tensor), expected / 4, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [1, 4, 20])
def test_soft_targets_properties(temperature):
    teacher, student = feature_maps(13, (50, 10)), feature_maps(14, (50, 10))
    values = soft_targets(teacher, student, temperature)
    assert_allclose(soft_targets(teacher, teacher, temperature), np.zeros(50), atol=0)
    assert np.min(values) > 0
    # A number added to all logits of an image changes no probability.
    shift = 10 * feature_maps(15, (50, 1))
    assert_allclose(soft_targets(teacher + shift, student - 2 * shift, temperature), values, rtol=1e-9)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf")])
def test_soft_targets_refuse_a_temperature_that_is_not_positive(temperature):
    with pytest.raises(ValueError, match=r"`temperature` must be finite and above 0.*Received: temperature="):
        SoftTargets(temperature=temperature)


@pytest.mark.parametrize("loss_class", [SimilarityPreserving, SoftTargets])
def test_reductions_and_sample_weight(loss_class):
    teacher, student = TEACHER.reshape(6, -1)[:, :8], STUDENT.reshape(6, -1)[:, :8]
    assert loss_class().reduction == "sum_over_batch_size"
    values = loss_class(reduction=None)(teacher, student).numpy()
    assert values.shape == (6,)
    assert_allclose(loss_class()(teacher, student), values.mean(), rtol=1e-6)
    assert_allclose(loss_class(reduction="sum")(teacher, student), values.sum(), rtol=1e-6)
    weight = np.array([1, 0, 2, 0.5, 1, 3])
    weighted = loss_class()(teacher, student, sample_weight=weight)
    assert_allclose(weighted, (weight * values).sum() / 6, rtol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        SimilarityPreserving(),
        SimilarityPreserving(dtype="float64", reduction="sum", name="relations"),
        SoftTargets(temperature=7.5, dtype="float64"),
        SoftTargets(reduction=None),
    ],
)
def test_configuration_round_trips(loss):
    for copy in (
        type(loss).from_config(loss.get_config()),
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss)),
    ):
        assert type(copy) is type(loss)
        assert copy.get_config() == loss.get_config()
        assert (copy.dtype, copy.reduction, copy.name) == (loss.dtype, loss.reduction, loss.name)
        assert getattr(copy, "temperature", None) == getattr(loss, "temperature", None)


@pytest.mark.parametrize("loss_class", OURS.values())
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed_float16", "mixed_bfloat16"])
def test_narrow_dtypes_are_refused(loss_class, dtype):
    message = rf"must be 'float32' or 'float64'.*Received: dtype={dtype} .*Pass dtype='float32'"
    with pytest.raises(ValueError, match=message):
        loss_class(dtype=dtype)


@pytest.mark.parametrize("loss_class", OURS.values())
@pytest.mark.usefixtures("float16_floatx")
def test_a_narrow_floatx_is_refused(loss_class):
    with pytest.raises(ValueError, match=r"keras.config.floatx\(\) is 'float16'\). Pass dtype='float32'."):
        loss_class()
    assert loss_class(dtype="float32").dtype == "float32"


def test_what_the_losses_want():
    assert (SimilarityPreserving.default_tap, SimilarityPreserving.batch_relational) == ("last_stage", True)
    assert (SoftTargets.default_tap, SoftTargets.batch_relational) == ("logits", False)
    for loss in (SimilarityPreserving(), SoftTargets()):
        assert loss.default_adapter((None, 8, 8, 16), (None, 4, 4, 8)) is None


@pytest.mark.parametrize(("key", "loss_class"), OURS.items())
def test_names_and_references(key, loss_class):
    assert key == re.sub(r"(?<=[a-z])(?=[A-Z])", "_", loss_class.__name__).lower()
    assert loss_class().name == key
    assert "Reference" in loss_class.__doc__
