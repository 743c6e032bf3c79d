"""What the losses keep, and what they refuse."""

import inspect

import keras
import numpy as np
import pytest
from keras import tree
from loss_references import CASES
from numpy.testing import assert_allclose
from test_losses_reference import built

from spkd_keras.losses import LOSSES

ARGUMENTS = {
    "soft_targets": {"temperature": 7.5, "standardize": True},
    "decoupled_distillation": {"alpha": 2.0, "beta": 3.0, "temperature": 2.0},
    "dist": {"beta": 2.0, "gamma": 3.0, "temperature": 4.0},
    "attention_transfer": {"power": 3.0},
    "correlation_congruence": {"gamma": 0.7, "order": 3},
    "variational_information": {"initial_variance": 2.0, "epsilon": 1e-3},
    "projection": {"projectors": 5},
}
DEFAULTS = {
    "soft_targets": {"temperature": 4.0, "standardize": False},
    "decoupled_distillation": {"alpha": 1.0, "beta": 8.0, "temperature": 4.0},
    "dist": {"beta": 1.0, "gamma": 1.0, "temperature": 1.0},
    "attention_transfer": {"power": 2.0},
    "correlation_congruence": {"gamma": 0.4, "order": 2},
    "variational_information": {"initial_variance": 5.0, "epsilon": 1e-5},
    "projection": {"projectors": 3},
}
FIRST_CASES = list({case.key: case for case in reversed(CASES)}.values())
INFINITE = (float("nan"), float("inf"))


@pytest.mark.parametrize("case", FIRST_CASES, ids=lambda case: case.key)
def test_configuration_round_trips(case):
    arguments = ARGUMENTS.get(case.key, {})
    loss = LOSSES[case.key](**arguments, dtype="float64", reduction="sum", name="mine")
    inputs = case.inputs()
    for copy in (
        type(loss).from_config(loss.get_config()),
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss)),
    ):
        assert type(copy) is type(loss)
        assert copy.get_config() == loss.get_config()
        assert {name: copy.get_config()[name] for name in arguments} == arguments
        assert (copy.dtype, copy.reduction, copy.name) == ("float64", "sum", "mine")
        assert_allclose(copy(*inputs), loss(*inputs), rtol=0)


@pytest.mark.parametrize("case", FIRST_CASES, ids=lambda case: case.key)
def test_defaults_are_the_published_ones(case):
    config = LOSSES[case.key]().get_config()
    taken = set(inspect.signature(LOSSES[case.key].__init__).parameters) - {"self", "kwargs"}
    assert taken - {"reduction", "name", "dtype"} == set(DEFAULTS.get(case.key, {}))
    assert {name: config[name] for name in DEFAULTS.get(case.key, {})} == DEFAULTS.get(case.key, {})


@pytest.mark.parametrize(
    ("key", "name", "values"),
    [
        ("soft_targets", "temperature", (0, -4.0, "4", *INFINITE)),
        ("decoupled_distillation", "temperature", (0, -4.0, "4", *INFINITE)),
        ("decoupled_distillation", "alpha", (-1.0, *INFINITE)),
        ("decoupled_distillation", "beta", (-8.0, *INFINITE)),
        ("dist", "temperature", (0, -1.0, "1", *INFINITE)),
        ("dist", "beta", (-1.0, *INFINITE)),
        ("dist", "gamma", (-1.0, *INFINITE)),
        ("attention_transfer", "power", (0, 0.5, -2.0, "2", *INFINITE)),
        ("correlation_congruence", "gamma", (-0.4, *INFINITE)),
        ("correlation_congruence", "order", (-1, 0, 1.5)),
        ("variational_information", "initial_variance", (0, -5.0, 1e-6, 1e-5, *INFINITE)),  # 1e-5 is epsilon
        ("variational_information", "epsilon", (-1e-5, *INFINITE)),
        ("projection", "projectors", (0, -3, 2.5)),
    ],
)
def test_arguments_out_of_range_are_refused(key, name, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"`{name}`.*Received: ") as caught:
            LOSSES[key](**{name: value})
        assert "\n" not in str(caught.value)


def zeros(*shapes):
    return [np.zeros(shape) for shape in shapes]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_batches_of_two_sizes_are_refused(case):
    teacher, student = case.inputs()
    with pytest.raises(ValueError, match=r"\b6\b.*\b5\b|\b5\b.*\b6\b") as caught:
        built(case)(teacher, tree.map_structure(lambda x: x[:5], student))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "teacher", "student"),
    [
        ("soft_targets", *zeros((4, 3), (4, 5))),
        ("dist", *zeros((4, 3), (4, 5))),
        ("decoupled_distillation", (np.zeros((4, 3)), np.zeros(4, int)), np.zeros((4, 5))),
        ("decoupled_distillation", (np.zeros((4, 3)), np.zeros(5, int)), np.zeros((4, 3))),  # labels
        ("decoupled_distillation", (np.zeros((4, 3)), np.zeros((4, 5))), np.zeros((4, 3))),  # one-hot labels
        ("attention_transfer", zeros((4, 4, 4, 2)), zeros((4, 3, 3, 2))),  # 4 / 3 is no whole ratio
        ("attention_transfer", zeros((4, 4, 4, 2), (4, 2, 2, 2)), zeros((4, 4, 4, 2))),  # two stages and one
        ("similarity_preserving", zeros((4, 4, 4, 2), (4, 2, 2, 2)), zeros((4, 4, 4, 2))),
        ("neuron_selectivity", zeros((4, 4, 4, 2)), zeros((4, 3, 3, 2))),
        ("neuron_selectivity", zeros((4, 4, 4, 2), (4, 2, 2, 2)), zeros((4, 4, 4, 2))),
        ("inter_channel_correlation", *zeros((4, 2, 2, 3), (4, 2, 2, 5))),
        ("hint", *zeros((4, 2, 2, 3), (4, 2, 2, 5))),
        ("hint", *zeros((4, 2, 2, 3), (4, 2, 2, 1))),  # would broadcast
        ("hint", *zeros((4, 2, 2, 3), (4, 4, 4, 3))),
        ("hint", *zeros((4, 2, 2, 3), (4, 1, 1, 3))),  # would broadcast
        ("variational_information", *zeros((4, 2, 2, 3), (4, 2, 2, 3))),  # no variances
        ("variational_information", *zeros((4, 2, 2, 4), (4, 2, 2, 4))),
        ("variational_information", *zeros((4, 2, 2, 3), (4, 2, 2, 2))),  # would broadcast
        ("variational_information", *zeros((4, 3, 3, 3), (4, 2, 2, 6))),
        ("projection", *zeros((4, 3), (4, 5))),
        ("projection", *zeros((4, 3), (4, 1))),  # would broadcast
    ],
)
def test_sizes_that_do_not_fit_are_refused(key, teacher, student):
    with pytest.raises(ValueError, match=r"(must|needs) .*Received: ") as caught:
        LOSSES[key]()(teacher, student)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [49, 98, 103])  # 1 / (1 / 49) is not 49
def test_any_whole_ratio_of_sides_fits(side):
    small, large = zeros((2, 1, 1, 2), (2, side, side, 2))
    for teacher, student in ((small, large), (large, small)):
        assert LOSSES["attention_transfer"]()([teacher], [student]) == 0


@pytest.mark.parametrize("images", [2, 3])
def test_decoupled_distillation_without_labels_is_refused(images):
    # Two images of two classes could be taken for a pair of logits and labels.
    with pytest.raises(ValueError, match=r"label") as caught:
        LOSSES["decoupled_distillation"]()(*zeros((images, 2), (images, 2)))
    assert "\n" not in str(caught.value)
