"""All losses against their float64 NumPy references: values, gradients and what becomes of dead and equal rows."""

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from keras import tree
from loss_references import CASES, VARIANTS
from numpy.testing import assert_allclose

from spkd_keras.losses import LOSSES

each_case = pytest.mark.parametrize("case", CASES, ids=str)


def built(case, **arguments):
    return LOSSES[case.key](**case.arguments, **arguments)


def converted(inputs, dtype):
    return tree.map_structure(lambda x: x if x.dtype.kind == "i" else x.astype(dtype), inputs)


def first_images(size, inputs):
    return tree.map_structure(lambda x: x[:size], inputs)


def gradient(loss, teacher, student):
    """With respect to the student, one array for each of its tensors."""
    student = tree.map_structure(tf.constant, student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = loss(teacher, student)
    return [slope.numpy() for slope in tree.flatten(tape.gradient(value, student))]


def finite_differences(function, array, step=1e-5):
    """Central differences of a function of nothing that reads the array."""
    slope = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        here, ends = array[index], []
        for there in (here + step, here - step):
            array[index] = there
            ends.append(function())
        array[index], slope[index] = here, (ends[0] - ends[1]) / (2 * step)
    return slope


def test_every_loss_has_a_reference():
    assert {case.key for case in CASES} == set(LOSSES) - {"similarity_preserving", "mean_squared_error"}
    assert LOSSES["mean_squared_error"] is keras.losses.MeanSquaredError


@each_case
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "relative", "absolute"), [("float32", 1e-5, 3e-8), ("float64", 1e-6, 1e-14)])
def test_equals_the_reference(case, variant, dtype, relative, absolute):
    inputs = converted(case.inputs(variant), dtype)
    expected = case.expected(*converted(inputs, "float64"))
    loss = built(case, dtype=dtype)
    result, values = loss(*inputs), loss.call(*inputs)
    assert result.dtype == values.dtype == dtype
    assert values.shape == (2 if variant == "two" else 6,)
    assert_allclose(result, expected, rtol=relative, atol=absolute)
    assert_allclose(np.mean(values), expected, rtol=relative, atol=absolute)


@each_case
def test_in_a_graph_of_any_batch_size(case):
    inputs = case.inputs("outlier")
    signature = tree.map_structure(lambda x: tf.TensorSpec((None, *x.shape[1:]), x.dtype), inputs)
    traced = tf.function(built(case, dtype="float64"), input_signature=list(signature))
    for size in (6, 3):
        given = first_images(size, inputs)
        assert_allclose(traced(*tree.map_structure(tf.constant, given)), case.expected(*given), rtol=1e-6)


@each_case
@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16])
def test_narrow_inputs_are_computed_in_float32(case, dtype):
    inputs = converted(case.inputs("outlier"), dtype)
    expected = case.expected(*converted(inputs, "float64"))
    loss = built(case)
    result, values = loss(*inputs), loss.call(*tree.map_structure(tf.constant, inputs))
    assert result.dtype == values.dtype == "float32"
    # Against the rounded inputs: nothing else is narrow (a sum in float16 is off by 1e-3).
    assert_allclose(result, expected, rtol=2e-5)
    assert_allclose(np.mean(values), expected, rtol=2e-5)


@each_case
@pytest.mark.parametrize("variant", ["random", "dead", "dead_on_one_side", "duplicate"])
def test_gradient_equals_finite_differences(case, variant):
    teacher, student = case.inputs(variant)
    slopes = gradient(built(case, dtype="float64"), teacher, student)
    for slope, array in zip(slopes, tree.flatten(student), strict=True):
        expected = finite_differences(lambda: case.expected(teacher, student), array)
        smooth = array != 0  # at a dead vector the normalisation has no derivative
        if variant == "duplicate" and case.key.startswith("relational"):
            smooth[[0, 2, 4, 5]] = False  # neither has a distance of zero
        assert np.abs(expected[smooth]).max() > 1e-5
        assert_allclose(slope[smooth], expected[smooth], rtol=1e-5, atol=1e-8)
        assert np.abs(slope).max() < 100  # finite, and not of the size of 1 / epsilon


@each_case
@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_gradients_are_finite_and_small(case, variant):
    inputs = converted(case.inputs(variant), "float32")
    for slope in gradient(built(case), *inputs):
        assert np.abs(slope).max() < 500


@each_case
@pytest.mark.parametrize("side", ["teacher", "student", "both"])
def test_a_batch_of_zeros(case, side):
    teacher, student = case.inputs()
    if side != "student":
        # Labels stay what they are.
        teacher = tree.map_structure(lambda x: x if x.dtype.kind == "i" else 0 * x, teacher)
    if side != "teacher":
        zeros = tree.map_structure(np.zeros_like, student)
        student = np.concatenate([zeros[..., :4], student[..., 4:]], -1) if case.kind == "gaussian" else zeros
    for dtype in ("float32", "float64"):
        inputs = converted((teacher, student), dtype)
        loss = built(case, dtype=dtype)
        assert_allclose(loss(*inputs), case.expected(*converted(inputs, "float64")), rtol=1e-5, atol=1e-6)
        assert all(np.abs(slope).max() < 500 for slope in gradient(loss, *inputs))


@each_case
def test_a_batch_of_one(case):
    inputs = first_images(1, case.inputs())
    expected = case.expected(*inputs)
    # Between the images of a batch there is nothing to compare; what DIST compares within an image stays.
    assert bool(expected < 1e-12) is (case.kind == "embeddings")
    loss = built(case, dtype="float64")
    assert_allclose(loss(*inputs), expected, rtol=1e-6, atol=1e-12)
    largest = max(np.abs(slope).max() for slope in gradient(loss, *inputs))
    assert largest < 1e-12 if case.kind == "embeddings" else 1e-3 < largest < 100


@each_case
def test_not_a_number_is_not_taken_for_a_dead_row(case):
    for side in (0, 1):
        inputs = case.inputs()
        array = next(x for x in tree.flatten(inputs[side]) if x.dtype.kind == "f")
        array[0, ..., 0] = np.nan
        assert np.isnan(built(case)(*inputs))


@pytest.mark.parametrize("variant", ["random", "duplicate", "two"])
@pytest.mark.parametrize("case", [case for case in CASES if case.kind != "gaussian"], ids=str)
def test_zero_and_flat_where_teacher_equals_student(case, variant):
    teacher, _ = case.inputs(variant)
    student = teacher[0] if isinstance(teacher, tuple) else teacher
    assert_allclose(built(case)(teacher, student), 0, atol=5e-6)
    loss = built(case, dtype="float64")
    assert_allclose(loss(teacher, student), 0, atol=1e-12)
    for slope in gradient(loss, teacher, student):
        # The published epsilon of PKT moves its minimum by about 1e-7.
        assert_allclose(slope, np.zeros_like(slope), atol=1e-7 if case.key == "pkt" else 1e-9)


@each_case
def test_whether_an_image_depends_on_the_others(case):
    loss = built(case, dtype="float64")
    inputs, others = case.inputs(), case.inputs(seed=1)
    values = loss.call(*inputs).numpy()
    mixed = tree.map_structure(lambda one, other: np.concatenate([one[:1], other[1:]]), inputs, others)
    alone = abs(loss.call(*mixed)[0] - values[0]) < 1e-9
    assert loss.batch_relational is not bool(alone)
    for i in range(6 if alone else 0):
        one = tree.map_structure(lambda x, i=i: x[i : i + 1], inputs)
        assert_allclose(values[i], case.expected(*one), rtol=1e-6)


@each_case
def test_one_permutation_of_the_batch_changes_nothing(case):
    order = np.array([3, 5, 1, 0, 4, 2])
    teacher, student = case.inputs()
    loss = built(case, dtype="float64")
    together = tree.map_structure(lambda x: x[order], (teacher, student))
    assert_allclose(loss(*together), loss(teacher, student), rtol=1e-9)
    # A permutation of the student's alone pairs other images.
    apart = loss(teacher, tree.map_structure(lambda x: x[order], student))
    assert abs(apart - loss(teacher, student)) > 1e-4


@pytest.mark.parametrize("key", ["attention_transfer", "neuron_selectivity"])
def test_maps_whose_size_the_graph_does_not_know(key):
    maps = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 2)).astype("float32")
    traced = tf.function(LOSSES[key](), input_signature=[tf.TensorSpec((None, None, None, 2))] * 2)
    assert_allclose(traced(*maps), LOSSES[key]()(*maps), rtol=1e-6)
