"""Losses on the logits: exact gradients, extreme and constant logits, and what changes nothing."""

import numpy as np
import pytest
import tensorflow as tf
from loss_references import CASES, decoupled_distillation, log_softmax
from numpy.testing import assert_allclose
from test_losses_reference import built, finite_differences, gradient

from spkd_keras.losses import DIST, DecoupledDistillation, SoftTargets

LABELS = np.array([0, 1, 2, 3])
LOGITS_CASES = [case for case in CASES if case.kind == "logits"]


def logits(seed, images=4, classes=6):
    return 3 * np.random.default_rng(seed).normal(size=(images, classes))


def extreme_logits():
    """+-50: the student sure of the right class, of a wrong one, of nothing, and sure where the teacher is not."""
    teacher, student = np.full((4, 6), -50.0), np.full((4, 6), -50.0)
    teacher[[0, 1, 2], [0, 1, 2]] = 50
    student[[0, 1, 3], [0, 4, 5]] = 50
    teacher[3], student[2] = logits(1, 1)[0], 50
    return teacher, student


def call_gradient(loss, teacher, student):
    return gradient(loss, teacher, student)[0]


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradient_of_soft_targets_with_extreme_logits(temperature, dtype):
    teacher, student = (z.astype(dtype) for z in extreme_logits())
    # d/dz_S of T^2 KL = T (p_S - p_T) an image.
    expected = temperature * (np.exp(log_softmax(student, temperature)) - np.exp(log_softmax(teacher, temperature))) / 4
    slope = call_gradient(SoftTargets(temperature, dtype=dtype), teacher, student)
    assert np.abs(expected[1]).max() > 0.2
    assert_allclose(slope, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float64", 1e-6)])
def test_decoupled_distillation_with_extreme_logits(temperature, dtype, tolerance):
    teacher, student = extreme_logits()
    loss = DecoupledDistillation(temperature=temperature, dtype=dtype)
    arguments = {"temperature": temperature}
    inputs = (teacher.astype(dtype), LABELS), student.astype(dtype)
    assert_allclose(loss(*inputs), decoupled_distillation((teacher, LABELS), student, **arguments), rtol=tolerance)
    expected = finite_differences(
        lambda: decoupled_distillation((teacher, LABELS), student, **arguments), student, step=1e-4
    )
    assert_allclose(call_gradient(loss, *inputs), expected, rtol=tolerance, atol=10 * tolerance)


def test_labels_as_integers_and_as_shares_are_the_same():
    teacher, student = logits(2), logits(3)
    labels = np.array([4, 0, 5, 2])
    shares = 0.3 * np.eye(6)[labels] + 0.7 * np.random.default_rng(0).dirichlet(np.full(6, 50.0), 4)
    loss = DecoupledDistillation(dtype="float64")
    expected = decoupled_distillation((teacher, labels), student)
    for given in (
        labels,
        labels[:, None],
        labels.astype("uint8"),
        tf.constant(labels),
        np.eye(6, dtype=int)[labels],
        shares,
    ):
        assert_allclose(loss((teacher, given), student), expected, rtol=1e-9)
    assert abs(loss((teacher, LABELS), student) - expected) > 0.1


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_are_the_sum_of_the_decoupled_parts(temperature):
    # Zhao et al., section 3.1: KD = TCKD + (1 - p_target) NCKD.
    teacher, student = logits(4), logits(5)
    whole, once, twice = (
        loss.call((teacher, LABELS) if loss.name != "soft_targets" else teacher, student).numpy()
        for loss in (
            SoftTargets(temperature, dtype="float64"),
            DecoupledDistillation(1.0, 1.0, temperature, dtype="float64"),
            DecoupledDistillation(1.0, 2.0, temperature, dtype="float64"),
        )
    )
    others = twice - once
    target = once - others
    rest = 1 - np.exp(log_softmax(teacher, temperature))[range(4), LABELS]
    assert_allclose(target + rest * others, whole, rtol=1e-9)


@pytest.mark.parametrize("case", LOGITS_CASES, ids=str)
def test_a_number_added_to_the_logits_of_an_image_changes_nothing(case):
    loss = built(case, dtype="float64")
    teacher, student = case.inputs()
    shift = 10 * np.random.default_rng(0).normal(size=(6, 1))
    assert_allclose(loss(teacher, student + shift), loss(teacher, student), rtol=1e-9)


def test_standardised_logits_know_no_scale():
    teacher, student = logits(6), logits(7)
    scale = np.array([[0.1], [2.0], [5.0], [30.0]])
    for standardize in (True, False):
        loss = SoftTargets(standardize=standardize, dtype="float64")
        for given in ((teacher * scale, student), (teacher, student * scale)):
            # Up to the 1e-7 beside the deviation.
            assert bool(abs(loss(*given) - loss(teacher, student)) < 1e-5) is standardize


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_dist_knows_no_positive_linear_map_of_the_probabilities(share):
    # Huang et al., section 3.2: d(m u + n, v) = d(u, v) for m > 0. Mixed with 1/C, rows and columns are linear in p.
    teacher, student = logits(8), logits(9)
    mixed, mixed_teacher = (np.log(share * np.exp(log_softmax(z)) + (1 - share) / 6) for z in (student, teacher))
    loss = DIST(dtype="float64")
    assert_allclose(loss(teacher, mixed), loss(teacher, student), rtol=1e-7)
    assert_allclose(loss(mixed_teacher, student), loss(teacher, student), rtol=1e-7)
    assert_allclose(loss(teacher, mixed_teacher), 0, atol=1e-7)
    assert SoftTargets(1.0)(teacher, mixed_teacher) > 1e-4


@pytest.mark.parametrize("classes", [3, 10, 100])
@pytest.mark.parametrize("images", [6, 128])
@pytest.mark.parametrize("kind", ["zeros", "equal"])
def test_dist_where_the_student_does_not_tell_images_apart(kind, images, classes):
    # A classifier that begins with zeros gives all images and classes 1/C: nothing varies, all correlations count as 0.
    # Rounding must not be taken for a direction: scaled to length one, it gives gradients of 1e4 and more.
    teacher = logits(10, images, classes).astype("float32")
    student = np.zeros_like(teacher) if kind == "zeros" else np.tile(logits(11, 1, classes), (images, 1))
    student = student.astype("float32")
    loss = DIST(gamma=1.0)
    if kind == "zeros":
        assert_allclose(loss(teacher, student), 2, rtol=1e-5)
    largest = np.abs(call_gradient(loss, teacher, student)).max()
    assert largest < 1


@pytest.mark.parametrize("classes", [3, 7, 1000])
@pytest.mark.parametrize("constant", [0.0, 0.1, -7.3])
def test_constant_logits_are_standardised_to_zero(constant, classes):
    # And pass no gradient, also where their float32 mean is not exactly the constant.
    teacher = logits(12, 2, classes).astype("float32")
    student = np.full((2, classes), constant, "float32")
    loss = SoftTargets(standardize=True)
    assert_allclose(loss(teacher, student), loss(teacher, np.zeros_like(student)), rtol=1e-5)
    largest = np.abs(call_gradient(loss, teacher, student)).max()
    assert largest < 100
