"""What changes nothing in the losses on embeddings and activations, as their papers claim, and what does."""

import numpy as np
import pytest
from keras import tree
from loss_references import CASES
from numpy.testing import assert_allclose
from test_losses_reference import built, gradient

from spkd_keras.losses import LOSSES, CorrelationCongruence

FIRST = {case.key: case for case in reversed(CASES)}
RANDOM = np.random.default_rng(17)
ROTATIONS = {size: np.linalg.qr(RANDOM.normal(size=(size, size)))[0] for size in (4, 5)}
ROWS = RANDOM.uniform(0.1, 10, size=(6,))  # one factor for each image


def rotated(x):
    return x @ ROTATIONS[x.shape[-1]]


def each_image(x):
    return x * ROWS.reshape(-1, *[1] * (x.ndim - 1))


def each_channel(x):
    return x * np.linspace(0.5, 3, x.shape[-1])


def one_channel_negated(x):
    return x * np.where(np.arange(x.shape[-1]) == 0, -1, 1)


def other_positions(x):
    """The same permutation of the positions, or of blocks of them, for all maps of an even height."""
    return x[:, ::-1]


def other_channels(x):
    return x[..., ::-1]


# What each does to the student's tensors alone.
CHANGES = {
    "scale": lambda x: 7.5 * x,
    "small scale": lambda x: 1e-3 * x,
    "scale of each image": each_image,
    "scale of each channel": each_channel,
    "sign": lambda x: -x,
    "sign of a channel": one_channel_negated,
    "translation": lambda x: x + np.linspace(1, 2, x.shape[-1]),
    "rotation": rotated,
    "positions": other_positions,
    "channels": other_channels,
}
EMBEDDINGS = {"scale", "small scale", "scale of each image", "sign", "translation", "rotation", "channels"}
ACTIVATIONS = set(CHANGES) - {"rotation"}
INVARIANT = {
    # Distances in units of their mean.
    "relational_distance": (EMBEDDINGS, {"scale", "small scale", "sign", "translation", "rotation", "channels"}),
    # Angles.
    "relational_angle": (EMBEDDINGS, {"scale", "small scale", "sign", "translation", "rotation", "channels"}),
    # Cosines.
    "pkt": (EMBEDDINGS, EMBEDDINGS - {"translation"}),
    "correlation_congruence": (EMBEDDINGS, EMBEDDINGS - {"translation"}),
    "projection": (EMBEDDINGS, {"scale", "small scale", "scale of each image"}),
    # Where an image's energy is, whatever the channel and its sign.
    "attention_transfer": (
        ACTIVATIONS,
        {"scale", "small scale", "scale of each image", "sign", "sign of a channel", "channels"},
    ),
    # The set of the channels' directions: each has length one, and the kernel is even.
    "neuron_selectivity": (ACTIVATIONS, ACTIVATIONS - {"translation", "positions"}),
    # Which channels go together, wherever.
    "inter_channel_correlation": (
        ACTIVATIONS,
        {"scale", "small scale", "scale of each image", "sign", "positions"},
    ),
    "hint": (ACTIVATIONS, set()),
}


@pytest.mark.parametrize(
    ("key", "change"), [(key, change) for key, (tried, _) in INVARIANT.items() for change in sorted(tried)]
)
def test_what_changes_nothing(key, change):
    case = FIRST[key]
    teacher, student = case.inputs()
    loss = built(case, dtype="float64")
    changed = tree.map_structure(CHANGES[change], student)
    assert not np.allclose(tree.flatten(changed)[0], tree.flatten(student)[0])
    difference = abs(loss(teacher, changed) - loss(teacher, student))
    same = change in INVARIANT[key][1]
    assert difference < 1e-9 if same else difference > 1e-4


@pytest.mark.parametrize("key", ["attention_transfer", "neuron_selectivity", "hint", "variational_information"])
def test_one_permutation_of_the_positions_of_both_changes_nothing(key):
    case = FIRST[key]
    teacher, student = case.inputs()
    loss = built(case, dtype="float64")
    both = tree.map_structure(other_positions, (teacher, student))
    assert_allclose(loss(*both), loss(teacher, student), rtol=1e-9)
    assert abs(loss(teacher, both[1]) - loss(teacher, student)) > 1e-4


def test_one_permutation_of_the_channels_of_both_keeps_their_correlation():
    case = FIRST["inter_channel_correlation"]
    teacher, student = case.inputs()
    loss = built(case, dtype="float64")
    assert_allclose(loss(other_channels(teacher), other_channels(student)), loss(teacher, student), rtol=1e-9)


def test_the_correlation_of_channels_needs_no_equal_positions():
    case = FIRST["inter_channel_correlation"]
    teacher, _ = case.inputs()
    # Every position four times: F F^T is four times what it was.
    larger = np.repeat(np.repeat(teacher, 2, axis=1), 2, axis=2)
    assert_allclose(built(case, dtype="float64")(teacher, larger), 0, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.4, 1.5])
def test_a_long_series_is_the_gaussian_kernel(gamma):
    # Peng et al.: the series is that of exp(-gamma |f_i - f_j|^2) for unit vectors.
    embeddings = FIRST["correlation_congruence"].inputs()
    kernels = []
    for rows in embeddings:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        kernels.append(np.exp(-gamma * ((rows[:, None] - rows[None]) ** 2).sum(-1)))
    expected = np.mean((kernels[0] - kernels[1]) ** 2)
    assert_allclose(CorrelationCongruence(gamma, order=25, dtype="float64")(*embeddings), expected, rtol=1e-9)
    assert abs(CorrelationCongruence(gamma, order=1, dtype="float64")(*embeddings) - expected) > 1e-3


@pytest.mark.parametrize("key", ["relational_distance", "relational_angle"])
@pytest.mark.parametrize("distance", [1e-9, 1e-6])
def test_small_distances_are_not_lost(key, distance):
    # In a Gram matrix, |x|^2 + |y|^2 - 2 x . y, distances below 1e-8 are rounding.
    teacher, student = FIRST[key].inputs()
    student[1] = student[0]
    student[1, 0] += distance
    loss = LOSSES[key](dtype="float64")
    assert_allclose(loss(teacher, student), FIRST[key].expected(teacher, student), rtol=1e-5)
    (slope,) = gradient(loss, teacher, student)
    assert np.all(np.isfinite(slope))
