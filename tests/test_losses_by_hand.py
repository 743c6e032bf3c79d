"""Losses on tensors so small that the value can be worked out by hand."""

import numpy as np
import pytest
import tensorflow as tf
from numpy.testing import assert_allclose

from spkd_keras.losses import LOSSES

LOG = np.log
ROOT = np.sqrt


def value(key, teacher, student, **arguments):
    return float(LOSSES[key](**arguments, dtype="float64")(teacher, student))


def logits(probabilities, temperature=1.0):
    """Logits that a softmax at the temperature turns into the probabilities."""
    return temperature * np.log(probabilities) + 5


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_standardised_soft_targets(temperature):
    # Two classes: the deviation with n - 1 is |z_1 - z_2|/sqrt 2, so whatever the logits they become (-1, 1)/sqrt 2 or,
    # for this student, (1, -1)/sqrt 2. KL of (1 - p, p) and (p, 1 - p) is (2 p - 1) log p/(1 - p), where
    # log p/(1 - p) = sqrt 2/T and 2 p - 1 = tanh(sqrt 2/(2 T)).
    teacher, student = np.array([[1.0, 3.0]]), np.array([[9.0, -4.0]])
    expected = temperature**2 * np.tanh(ROOT(2) / (2 * temperature)) * ROOT(2) / temperature
    result = value("soft_targets", teacher, student, temperature=temperature, standardize=True)
    assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("label", [0, [1, 0, 0], [0.5, 0.2, 0.3]], ids=["integer", "one-hot", "soft"])
def test_decoupled_distillation(temperature, label):
    # p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4), target 0. TCKD: (1/2, 1/2) against (1/4, 3/4);
    # NCKD: (1/2, 1/2) against (2/3, 1/3).
    target = 0.5 * LOG(2) + 0.5 * LOG(2 / 3)
    rest = 0.5 * LOG(3 / 4) + 0.5 * LOG(3 / 2)
    teacher, student = logits([[0.5, 0.25, 0.25]], temperature), logits([[0.25, 0.5, 0.25]], temperature)
    for alpha, beta in ((1.0, 8.0), (3.0, 0.5)):
        arguments = {"alpha": alpha, "beta": beta, "temperature": temperature}
        result = value("decoupled_distillation", (teacher, np.array([label])), student, **arguments)
        assert_allclose(result, temperature**2 * (alpha * target + beta * rest), rtol=1e-9)


@pytest.mark.parametrize("label", [-1, 3])
def test_decoupled_distillation_of_an_image_whose_label_is_no_class(label):
    # The first image is that of the test above; the second has no target, counts 0, and passes no gradient.
    teacher = logits([[0.5, 0.25, 0.25], [0.6, 0.3, 0.1]])
    student = tf.constant(logits([[0.25, 0.5, 0.25], [0.1, 0.3, 0.6]]))
    loss = LOSSES["decoupled_distillation"](temperature=1.0, dtype="float64")
    with tf.GradientTape() as tape:
        tape.watch(student)
        values = loss.call((teacher, np.array([0, label])), student)
    first = 0.5 * LOG(2) + 0.5 * LOG(2 / 3) + 8 * (0.5 * LOG(3 / 4) + 0.5 * LOG(3 / 2))
    assert_allclose(values, [first, 0], rtol=1e-9)
    slopes = tape.gradient(values, student).numpy()
    assert np.abs(slopes[0]).max() > 0.1
    assert_allclose(slopes[1], np.zeros(3), atol=0)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    ("student", "inter", "intra"),
    [
        # Nearer to 1/2 than the teacher's (3/4, 1/4), (1/4, 3/4), but linear in them: all correlations are 1.
        ([[0.6, 0.4], [0.4, 0.6]], 0, 0),
        # Swapped: all are -1.
        ([[0.4, 0.6], [0.6, 0.4]], 2, 2),
        # Equal rows: 1 for the first image, -1 for the second; over the batch neither class varies, which counts as 0.
        ([[0.6, 0.4], [0.6, 0.4]], 1, 1),
    ],
)
def test_dist(temperature, student, inter, intra):
    teacher = logits([[0.75, 0.25], [0.25, 0.75]], temperature)
    for beta, gamma in ((1.0, 1.0), (2.0, 0.5)):
        result = value("dist", teacher, logits(student, temperature), beta=beta, gamma=gamma, temperature=temperature)
        assert_allclose(result, temperature**2 * (beta * inter + gamma * intra), rtol=1e-6, atol=1e-6)


def test_dist_between_images_of_three_classes():
    # Centred (2, -1, -1)/12 and (-1, 2, -1)/12: dot product -3/144, squared lengths 6/144, correlation -1/2. Only the
    # first image differs. Class 1: the teacher's 1/2, 1/4 fall, the student's 1/4, 1/4 do not vary: 0. Class 2: the
    # teacher's 1/4, 1/2 rise, the student's 1/2, 1/2 do not vary: 0. Class 3 varies in neither: they agree, 1.
    teacher, student = [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]], [[0.25, 0.5, 0.25], [0.25, 0.5, 0.25]]
    result = value("dist", logits(teacher), logits(student), beta=1.0, gamma=10.0)
    assert_allclose(result, (1.5 + 0) / 2 + 10 * (1 + 1 + 0) / 3, rtol=1e-6)


def test_dist_where_nothing_varies():
    # Over a batch of one no class varies, in teacher or student, so that only the classes of the image count: their
    # correlation is -1/2, as above. An image whose classes are all alike agrees with another such.
    teacher, student = logits([[0.5, 0.25, 0.25]]), logits([[0.25, 0.5, 0.25]])
    assert_allclose(value("dist", teacher, student, beta=1.0, gamma=10.0), 1.5, rtol=1e-6)
    same = np.array([[3.0, 1.0, 0.0, 0.0], [1.0, 3.0, 0.0, 0.0], [5.0, 5.0, 5.0, 5.0]])
    for batch in (same, same[:1], same[2:]):
        assert_allclose(value("dist", batch, batch), 0, atol=1e-12)
        student = tf.constant(batch)
        with tf.GradientTape() as tape:
            tape.watch(student)
            result = LOSSES["dist"](dtype="float64")(batch[:, ::-1], student)
        assert np.all(np.isfinite(tape.gradient(result, student)))


@pytest.mark.parametrize(
    ("power", "expected"),
    [
        # Channels (3, 4) and (5, 0) in the two pixels; the teacher's map is (1, 0).
        # |3| + |4| : |5| = 7 : 5. ((1 - 7/sqrt 74)^2 + 25/74)/2 = 1 - 7/sqrt 74.
        (1.0, 1 - 7 / ROOT(74)),
        # 25 : 25: ((1 - 1/sqrt 2)^2 + 1/2)/2.
        (2.0, 1 - 1 / ROOT(2)),
        # 81 + 256 = 337 : 625.
        (4.0, 1 - 337 / np.hypot(337, 625)),
    ],
)
def test_attention_transfer(power, expected):
    teacher = np.array([7.0, 0.0]).reshape(1, 1, 2, 1)
    student = np.array([[3.0, -4.0], [-5.0, 0.0]]).reshape(1, 1, 2, 2)
    assert_allclose(value("attention_transfer", [teacher], [student], power=power), expected, rtol=1e-9)
    twice = value("attention_transfer", [teacher, teacher], [student, student], power=power)
    assert_allclose(twice, 2 * expected, rtol=1e-9)


@pytest.mark.parametrize("key", ["attention_transfer", "neuron_selectivity"])
def test_maps_are_pooled_before_they_are_squared(key):
    # Pooled to (1, 0): the second half's +1 and -1 cancel. Squared first, the map would be (1, 1).
    small = np.array([[1.0], [0.0]]).reshape(1, 1, 2, 1)
    large = np.array([[1.0, 1.0, 1.0, -1.0], [1.0, 1.0, -1.0, 1.0]]).reshape(1, 2, 4, 1)
    assert_allclose(value(key, [small], [large]), 0, atol=1e-12)
    assert_allclose(value(key, [large], [small]), 0, atol=1e-12)
    assert value(key, [small], [large**2]) > 0.1


def on_a_line(*positions):
    return np.array(positions, "float64")[:, None] * [[0.6, 0.8]]


@pytest.mark.parametrize(
    ("student", "expected"),
    [
        # Distances of the teacher's 0, 1, 2: 1, 1, 2 with mean 4/3, so 3/4, 3/4, 3/2 for the pairs 12, 23, 13.
        # The student's 0, 1, 3: 1, 2, 3 with mean 2, so 1/2, 1, 3/2. (1/4)^2/2 for two pairs, each twice among nine.
        ((0, 1, 3), 2 * 2 * (1 / 32) / 9),
        # 0, 1, 1: 1, 0, 1 with mean 2/3, so 3/2, 0, 3/2: (3/4)^2/2 twice. (Without the 0 the mean would be 1.)
        ((0, 1, 1), 2 * 2 * (9 / 32) / 9),
        # All equal: there is no mean and the distances stay 0. (3/4)^2/2 twice, and 3/2 - 1/2 of the linear branch.
        ((5, 5, 5), 2 * (9 / 32 + 9 / 32 + 1) / 9),
    ],
)
def test_relational_distance(student, expected):
    assert_allclose(value("relational_distance", on_a_line(0, 1, 2), on_a_line(*student)), expected, rtol=1e-6)


def test_relational_angle():
    # Cosines at the corners of the teacher's right triangle: 0, 1/sqrt 2, 1/sqrt 2; of the student's 0, 1, 2 on a line:
    # 1, -1, 1. Smooth L1 of 1, 1 + 1/sqrt 2 and 1 - 1/sqrt 2: 1/2, 1/2 + 1/sqrt 2 and (3/2 - sqrt 2)/2, together 7/4.
    # Each corner is there twice among the 27 triples; the others agree (0 or 1 in both).
    teacher = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert_allclose(value("relational_angle", teacher, on_a_line(0, 1, 2)), 2 * (7 / 4) / 27, rtol=1e-9)


def test_relations_of_two_images_are_the_same_in_all_networks():
    # One distance, which is its own mean, and no angle.
    teacher, student = np.array([[1.0, 2.0], [3.0, 5.0]]), np.array([[4.0, 1.0], [4.0, 9.0]])
    assert_allclose(value("relational_distance", teacher, student), 0, atol=1e-12)
    assert_allclose(value("relational_angle", teacher, student), 0, atol=1e-12)


@pytest.mark.parametrize(
    ("student", "row"),
    [
        # Cosines 1 and 0 of the teacher: (1, 1/2) gives the row (2/3, 1/3). The student's 1 and 1: (1/2, 1/2).
        ([[1, 2], [2, 4]], 2 / 3 * LOG(4 / 3) + 1 / 3 * LOG(2 / 3)),
        # 1 and -1: (1, 0), where epsilon keeps the logarithm finite.
        ([[1, 2], [-1, -2]], 2 / 3 * LOG(2 / 3) + 1 / 3 * LOG(1 / 3e-7)),
        # A dead row has cosines 0, with itself too: (1/2, 1/2) in its row and (2/3, 1/3) in the other.
        ([[1, 2], [0, 0]], (1 / 3 * LOG(2 / 3) + 2 / 3 * LOG(4 / 3)) / 2),
    ],
)
def test_pkt(student, row):
    # The mean over b^2 = 4 of two rows, equal unless one is dead.
    assert_allclose(value("pkt", np.eye(2) * [[2.0], [3.0]], np.array(student, "float64")), 2 * row / 4, rtol=3e-6)


@pytest.mark.parametrize("gamma", [0.4, 2.0])
def test_correlation_congruence(gamma):
    # Orthogonal in the teacher: exp(-2 gamma) beside the diagonal; equal in the student: exp(-2 gamma) (1 + 2 gamma +
    # 2 gamma^2) for order 2. Two such entries of four.
    teacher, student = np.eye(2) * [[2.0], [3.0]], np.array([[1.0, 1.0], [3.0, 3.0]])
    difference = np.exp(-2 * gamma) * (2 * gamma + 2 * gamma**2)
    assert_allclose(value("correlation_congruence", teacher, student, gamma=gamma), difference**2 / 2, rtol=1e-9)
    linear = value("correlation_congruence", teacher, student, gamma=gamma, order=1)
    assert_allclose(linear, (np.exp(-2 * gamma) * 2 * gamma) ** 2 / 2, rtol=1e-9)


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        # Equal channels: both rows (1, 1)/sqrt 2, at squared distance 2 - sqrt 2 from (1, 0) and (0, 1).
        ([[1, 0], [1, 0]], 2 - ROOT(2)),
        # F F^T = [[1, 1], [1, 2]]: rows (1, 1)/sqrt 2 and (1, 2)/sqrt 5.
        ([[1, 0], [1, 1]], ((2 - ROOT(2)) + (2 - 4 / ROOT(5))) / 2),
        # A dead channel: its row is zero, at distance 1 from (0, 1).
        ([[1, 0], [0, 0]], 0.5),
    ],
)
def test_inter_channel_correlation(channels, expected):
    teacher = np.eye(2).reshape(1, 2, 1, 2)  # the identity's matrix is the identity
    student = np.transpose(np.array(channels, "float64")).reshape(1, 2, 1, 2)
    assert_allclose(value("inter_channel_correlation", teacher, student), expected, rtol=1e-9, atol=1e-12)


def test_hint_and_mean_squared_error():
    # (1 + 4 + 9 + 16)/4 and (1 + 1 + 1 + 1)/4, their mean over two images.
    teacher = np.array([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    student = np.array([[0.0, 0.0, 0.0, 0.0], [1.0, -1.0, 1.0, -1.0]])
    assert_allclose(value("hint", teacher.reshape(2, 2, 1, 2), student.reshape(2, 2, 1, 2)), 4.25, rtol=1e-12)
    assert_allclose(value("mean_squared_error", teacher, student), 4.25, rtol=1e-12)


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        # The teacher's one channel (1, 0) has k = 1. Of (1, 0) and (0, 1): mean k(s, s) = 1/2, mean k(s, t) = 1/2.
        ([[1, 0], [0, 1]], 1 + 1 / 2 - 2 * 1 / 2),
        # (3, 4)/5: k(s, s) = 1, k(s, t) = 9/25.
        ([[3, 4]], 2 - 18 / 25),
        # (2, 0) and a dead one, which has k = 0: k(s, s) = 1/4, k(s, t) = 1/2.
        ([[2, 0], [0, 0]], 1 + 1 / 4 - 1),
    ],
)
def test_neuron_selectivity(channels, expected):
    teacher = np.array([5.0, 0.0]).reshape(1, 2, 1, 1)
    student = np.transpose(np.array(channels, "float64")).reshape(1, 2, 1, -1)
    assert_allclose(value("neuron_selectivity", [teacher], [student]), expected, rtol=1e-9)
    assert_allclose(value("neuron_selectivity", [teacher] * 2, [student] * 2), 2 * expected, rtol=1e-9)


def test_variational_information():
    # Two channels: mean 1 for 3 with variance 4, (1 + log 4)/2; mean -1 for -1 with variance 1, 0. Their mean.
    teacher = np.array([3.0, -1.0]).reshape(1, 1, 1, 2)
    student = np.array([1.0, -1.0, 4.0, 1.0]).reshape(1, 1, 1, 4)
    assert_allclose(value("variational_information", teacher, student), (1 + LOG(4)) / 4, rtol=1e-9)


@pytest.mark.parametrize(
    ("student", "expected"),
    # cosine 24/25; opposite; orthogonal; dead, whose cosine is 0.
    [((8, 6), 1 / 25), ((-3, -4), 2), ((-4, 3), 1), ((0, 0), 1)],
)
def test_projection(student, expected):
    assert_allclose(value("projection", np.array([[3.0, 4.0]]), np.array([student], "float64")), expected, rtol=1e-9)
