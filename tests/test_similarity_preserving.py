"""The similarity-preserving loss, against the paper's formula in float64."""

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from numpy.testing import assert_allclose

from spkd_keras.losses import (
    SimilarityPreserving,
    similarity_matrix,
    similarity_preserving,
)


def reference_matrix(activations):
    """Tung & Mori eq. 1-3, one pair of images at a time in float64; a row of zeros stays zero."""
    rows = [np.asarray(example, "float64").ravel() for example in activations]
    matrix = np.zeros((len(rows), len(rows)))
    for i, first in enumerate(rows):
        similarities = [float(sum(first * second)) for second in rows]
        length = sum(similarity**2 for similarity in similarities) ** 0.5
        if length > 0:
            matrix[i] = [similarity / length for similarity in similarities]
    return matrix


def reference_loss(teacher, student):
    """Tung & Mori eq. 4 for one pair of layers."""
    difference = reference_matrix(teacher) - reference_matrix(student)
    return np.linalg.norm(difference, "fro") ** 2 / len(teacher) ** 2


def feature_maps(seed, shape, non_negative=False):
    maps = np.random.default_rng(seed).normal(size=shape)
    return np.maximum(maps, 0) if non_negative else maps


TEACHER = feature_maps(1, (6, 4, 4, 10))
STUDENT = feature_maps(2, (6, 2, 3, 5), non_negative=True)  # other sides, other channels


@pytest.mark.parametrize(("dtype", "relative"), [("float32", 1e-5), ("float64", 1e-12)])
def test_similarity_preserving_equals_the_reference(dtype, relative):
    result = SimilarityPreserving(dtype=dtype)(TEACHER, STUDENT)
    assert result.dtype == dtype
    assert_allclose(result, reference_loss(TEACHER, STUDENT), rtol=relative)
    matrix = similarity_matrix(STUDENT.astype(dtype))
    assert matrix.dtype == dtype
    assert_allclose(matrix, reference_matrix(STUDENT), rtol=relative, atol=relative)
    values = similarity_preserving(TEACHER.astype(dtype), STUDENT.astype(dtype))
    assert values.dtype == dtype
    difference = reference_matrix(TEACHER) - reference_matrix(STUDENT)
    assert_allclose(values, (difference**2).mean(axis=1), rtol=relative)
    assert_allclose(np.mean(values), np.linalg.norm(difference) ** 2 / 6**2, rtol=relative)


@pytest.mark.parametrize(
    ("student", "rows"),
    [
        # S is all ones, each row (1, 1)/sqrt 2: ((1 - 1/sqrt 2)^2 + 1/2) / 2 = 1 - 1/sqrt 2 a row.
        ([[1, 0], [1, 0]], [1 - 0.5**0.5, 1 - 0.5**0.5]),
        # S = [[1, 1], [1, 2]], second row (1, 2)/sqrt 5: (1/5 + (1 - 2/sqrt 5)^2) / 2. Had the rows been
        # normalised before the product, both values would be equal.
        ([[1, 0], [1, 1]], [1 - 0.5**0.5, 1 - 2 / 5**0.5]),
        # S = [[1, -2], [-2, 4]], rows (1, -2)/sqrt 5 and (-1, 2)/sqrt 5.
        ([[1, 0], [-2, 0]], [1 - 1 / 5**0.5, 1 - 2 / 5**0.5]),
        # The second row is dead: ||(0, 1) - (0, 0)||^2 / 2.
        ([[1, 0], [0, 0]], [0, 0.5]),
        # All dead: the teacher's rows have length one.
        ([[0, 0], [0, 0]], [0.5, 0.5]),
    ],
)
def test_similarity_preserving_by_hand(student, rows):
    teacher = np.eye(2, dtype="float32")  # its matrix is the identity too
    student = np.array(student, "float32")
    assert_allclose(similarity_preserving(teacher, student), rows, rtol=1e-6)
    assert_allclose(SimilarityPreserving()(teacher, student), np.mean(rows), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16])
def test_narrow_activations_are_computed_in_float32(dtype):
    teacher = (4 * feature_maps(3, (4, 8192))).astype(dtype)
    student = (4 + feature_maps(4, (4, 8192))).astype(dtype)
    if dtype == "float16":
        assert not np.any(np.isfinite(tf.matmul(student, student, transpose_b=True)))  # 8192 * 4^2 > 65504
    result = SimilarityPreserving()(tf.constant(teacher), tf.constant(student))
    assert result.dtype == "float32"
    # Against the rounded activations: nothing else is narrow.
    assert_allclose(result, reference_loss(teacher, student), rtol=1e-3)
    assert similarity_preserving(tf.constant(teacher), tf.constant(student)).dtype == "float32"


@pytest.mark.parametrize("student", [[[2.0, 3.0]], [[0.0, 0.0]]], ids=["alive", "dead"])
def test_a_batch_of_one_is_zero(student):
    loss = SimilarityPreserving()
    traced = tf.function(loss, input_signature=[tf.TensorSpec((None, 3)), tf.TensorSpec((None, 2))])
    teacher, student = tf.constant([[1.0, -1.0, 0.5]]), tf.constant(student)
    assert loss(teacher, student) == 0
    assert traced(teacher, student) == 0
    assert traced(tf.zeros_like(teacher), student) == 0
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = loss(teacher, student)
    assert_allclose(tape.gradient(value, student), np.zeros((1, 2)))


def test_each_batch_uses_its_own_size():
    signature = [tf.TensorSpec((None, *TEACHER.shape[1:])), tf.TensorSpec((None, *STUDENT.shape[1:]))]
    traced = tf.function(SimilarityPreserving(), input_signature=signature)
    for size in (6, 4, 2):
        teacher, student = TEACHER[:size].astype("float32"), STUDENT[:size].astype("float32")
        assert_allclose(traced(teacher, student), reference_loss(teacher, student), rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1, 1e3, 1e6])
def test_scaling_and_rotating_the_features_changes_nothing(scale):
    expected = reference_loss(TEACHER, STUDENT)
    rotation, _ = np.linalg.qr(feature_maps(5, (30, 30)))
    rotated = STUDENT.reshape(6, 30) @ rotation
    assert_allclose(SimilarityPreserving()(TEACHER * scale, rotated), expected, rtol=1e-5)
    assert_allclose(SimilarityPreserving()(TEACHER, rotated * scale), expected, rtol=1e-5)


def test_one_permutation_of_the_batch_permutes_the_values():
    order = np.random.default_rng(6).permutation(6)
    expected = similarity_preserving(TEACHER, STUDENT).numpy()[order]
    assert_allclose(similarity_preserving(TEACHER[order], STUDENT[order]), expected, rtol=1e-5)
    # A permutation of one side alone is another pairing of images.
    assert abs(SimilarityPreserving()(TEACHER, STUDENT[order]) - expected.mean()) > 1e-3


def test_zero_for_equal_activations_and_symmetric():
    loss = SimilarityPreserving()
    assert loss(TEACHER, TEACHER) == 0
    assert_allclose(loss(TEACHER, STUDENT), loss(STUDENT, TEACHER), rtol=1e-6)


@pytest.mark.parametrize(("non_negative", "bound"), [(True, 2), (False, 4)])
@pytest.mark.parametrize("batch_size", [2, 5, 16])
def test_bounds(non_negative, bound, batch_size):
    for seed in range(20):
        teacher, student = (feature_maps((side, seed), (batch_size, 7), non_negative) for side in (1, 2))
        assert 0 <= SimilarityPreserving()(teacher, student) <= bound / batch_size


@pytest.mark.parametrize(("opposite", "bound"), [(True, 4), (False, 2)])
def test_near_the_bounds(opposite, bound):
    # All images but the last are faint: their rows of the student's matrix are nearly (0, ..., 0, 1). With
    # the last image negated, those of the teacher's are (0, ..., 0, -1), at distance 2; of orthogonal images
    # they are the identity's, at distance sqrt 2. The last row agrees: (b - 1)/b of the bound, here 98%.
    student = np.full((64, 1), 1e-3)
    student[-1] = 1
    teacher = np.where(student == 1, -student, student) if opposite else np.eye(64)
    result = SimilarityPreserving(dtype="float64")(teacher, student)
    assert_allclose(result, bound / 64 * 63 / 64, rtol=5e-3)
    assert result < bound / 64


def student_gradient(teacher, student):
    teacher, student = tf.constant(teacher, "float64"), tf.constant(student, "float64")
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = SimilarityPreserving(dtype="float64")(teacher, student)
    return tape.gradient(value, student).numpy()


def test_gradient_equals_finite_differences():
    teacher, student = feature_maps(7, (4, 6)), feature_maps(8, (4, 5))
    expected = np.zeros_like(student)
    for index in np.ndindex(student.shape):
        step = np.zeros_like(student)
        step[index] = 1e-5
        rise = reference_loss(teacher, student + step) - reference_loss(teacher, student - step)
        expected[index] = rise / 2e-5
    assert_allclose(student_gradient(teacher, student), expected, rtol=1e-6, atol=1e-9)


def test_gradient_at_a_dead_row():
    teacher, student = feature_maps(7, (4, 6)), feature_maps(8, (4, 5))
    student[2] = 0
    # Through its own row nothing passes. Image 2 is also a column of others, G_S[i, 2] = q_i q_2 / ||S_i||,
    # whose norm is stationary at S[i, 2] = 0: dL/dq_2 = 2/b^2 * sum over i of (0 - G_T[i, 2]) q_i / ||S_i||.
    norms = np.linalg.norm(student @ student.T, axis=1)
    teacher_matrix = reference_matrix(teacher)
    expected = sum(-2 / 16 * teacher_matrix[i, 2] * student[i] / norms[i] for i in (0, 1, 3))
    gradient = student_gradient(teacher, student)
    assert np.all(np.isfinite(gradient))
    assert np.abs(expected).max() > 1e-3
    assert_allclose(gradient[2], expected, rtol=1e-10)
    assert np.abs(gradient).max() < 1  # a clamped norm gives 1e14
    # A teacher that finds image 2 unlike all others leaves nothing to learn through those columns.
    teacher[:, 0], teacher[2] = 0, np.eye(6)[0]
    assert_allclose(student_gradient(teacher, student)[2], np.zeros(5), atol=0)


@pytest.mark.parametrize("faint", [0.0, 1e-13])
def test_no_gradient_through_the_normalisation_of_dead_rows(faint):
    # With 1e-13 the row's squared norm is about 1e-26, below 1e-24: as dead as zeros.
    student = tf.constant([[1.0, 2.0], [faint, 0.0], [0.5, -1.0]])
    with tf.GradientTape() as tape:
        tape.watch(student)
        dead_row = similarity_matrix(student)[1]
    assert_allclose(dead_row, np.zeros(3), atol=0)
    assert_allclose(tape.gradient(dead_row, student), np.zeros((3, 2)), atol=0)
    assert_allclose(student_gradient(np.eye(3), np.zeros((3, 2))), np.zeros((3, 2)), atol=0)


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_an_activation_that_is_not_a_number_is_not_taken_for_a_dead_row(side):
    # Every comparison with NaN is false: a masked row is a finite value, while a student's gradient is NaN.
    broken = feature_maps(8, (4, 5))
    broken[1, 2] = np.nan
    whole = feature_maps(7, (4, 6))
    assert np.isnan(SimilarityPreserving()(*((broken, whole) if side == "teacher" else (whole, broken))))


def test_inside_keras_own_feature_distillation():
    loss = SimilarityPreserving()
    teacher, student = tf.constant(TEACHER, "float32"), tf.constant(STUDENT, "float32")
    distillation = keras.distillation.FeatureDistillation(loss=loss)
    assert distillation.compute_loss(teacher, student) == loss(teacher, student)


def test_similarity_preserving_adds_the_pairs_of_several_layers():
    random = np.random.default_rng(0)
    teacher = [random.normal(size=(4, 3, 3, 2)), random.normal(size=(4, 5))]
    student = [random.normal(size=(4, 2, 2, 2)), random.normal(size=(4, 7))]
    loss = SimilarityPreserving(dtype="float64")
    expected = sum(float(loss(one, other)) for one, other in zip(teacher, student, strict=True))
    assert_allclose(float(loss(teacher, student)), expected, rtol=1e-12)
