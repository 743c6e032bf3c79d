"""CoupledSGD by hand, against PyTorch's published rule in NumPy, and within what Keras wraps around it."""

import keras
import numpy as np
import pytest
from numpy.testing import assert_allclose

from spkd_keras.optimizers import CoupledSGD

WEIGHTS = np.array([1.0, -2.0, 0.5])
GRADIENTS = np.random.default_rng(0).normal(size=(10, 3))


def published_rule(weights, gradients, rates, momentum=0.9, nesterov=False, weight_decay=0.0):
    """The algorithm box of `torch.optim.SGD`'s documentation, dampening 0, in float64."""
    weights, velocity = np.array(weights, "float64"), None
    for gradient, rate in zip(np.asarray(gradients, "float64"), rates, strict=True):
        decayed = gradient + weight_decay * weights
        if momentum:
            velocity = decayed if velocity is None else momentum * velocity + decayed
            decayed = decayed + momentum * velocity if nesterov else velocity
        weights = weights - rate * decayed
    return weights


def run(optimizer, gradients, weights=WEIGHTS, rates=None):
    """Applies the optimizer to a variable and returns what became of it."""
    variable = keras.Variable(np.asarray(weights, "float32"))
    for step, gradient in enumerate(gradients):
        if rates is not None:
            optimizer.learning_rate = rates[step]
        optimizer.apply([keras.ops.convert_to_tensor(gradient, "float32")], [variable])
    return variable.numpy()


def regression():
    """A small compiled-to-be model and its data, the same on each call."""
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(1)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dense(2),
        ]
    )
    return model, rng.normal(size=(16, 4)).astype("float32"), rng.normal(size=(16, 2)).astype("float32")


def fit(model, x, y, epochs):
    model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)


# Two steps from w = 1 with gradient 0.5 each and learning rate 0.1.
@pytest.mark.parametrize(
    ("arguments", "first", "second"),
    [
        # w1 = 1 - 0.1 * 0.5; w2 = 0.95 - 0.1 * 0.5.
        ({"momentum": 0.0}, 0.95, 0.9),
        # g1 = 0.5 + 0.2 * 1 = 0.7, w1 = 1 - 0.07; g2 = 0.5 + 0.2 * 0.93 = 0.686, w2 = 0.93 - 0.0686.
        ({"momentum": 0.0, "weight_decay": 0.2}, 0.93, 0.8614),
        # m1 = 0.5, w1 = 1 - 0.05; m2 = 0.9 * 0.5 + 0.5 = 0.95, w2 = 0.95 - 0.095.
        ({}, 0.95, 0.855),
        # m1 = 0.7, w1 = 1 - 0.07; g2 = 0.686, m2 = 0.9 * 0.7 + 0.686 = 1.316, w2 = 0.93 - 0.1316.
        ({"weight_decay": 0.2}, 0.93, 0.7984),
        # m1 = 0.7, w1 = 1 - 0.1 * (0.7 + 0.9 * 0.7) = 0.867; g2 = 0.5 + 0.2 * 0.867 = 0.6734,
        # m2 = 0.63 + 0.6734 = 1.3034, w2 = 0.867 - 0.1 * (0.6734 + 0.9 * 1.3034) = 0.867 - 0.184646.
        ({"weight_decay": 0.2, "nesterov": True}, 0.867, 0.682354),
    ],
)
def test_two_steps_by_hand(arguments, first, second):
    assert_allclose(run(CoupledSGD(0.1, **arguments), [[0.5]], weights=[1.0]), [first], rtol=1e-6)
    assert_allclose(run(CoupledSGD(0.1, **arguments), [[0.5], [0.5]], weights=[1.0]), [second], rtol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_ten_steps_with_a_drop_of_the_rate(momentum, nesterov, weight_decay):
    arguments = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    rates = [0.1] * 5 + [0.02] * 5
    expected = published_rule(WEIGHTS, GRADIENTS, rates, **arguments)
    assert_allclose(run(CoupledSGD(**arguments), GRADIENTS, rates=rates), expected, rtol=1e-5)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([4], [0.1, 0.02])
    assert_allclose(run(CoupledSGD(schedule, **arguments), GRADIENTS), expected, rtol=1e-5)


def test_the_rate_multiplies_the_velocity_and_is_not_stored_in_it():
    # m1 = 1, w1 = -0.1; at a rate of 0 afterwards nothing moves. Keras' SGD stores -0.1 and coasts on.
    rates = [0.1, 0.0]
    assert_allclose(run(CoupledSGD(), [[1.0], [1.0]], weights=[0.0], rates=rates), [-0.1], rtol=1e-6)
    coasting = run(keras.optimizers.SGD(momentum=0.9), [[1.0], [1.0]], weights=[0.0], rates=rates)
    assert_allclose(coasting, [-0.19], rtol=1e-6)


def test_decay_is_coupled_unlike_that_of_keras():
    # Without a gradient: m1 = 0.5, m2 = 0.45 + 0.5 * 0.95 = 0.925, w = 0.95 - 0.0925; Keras: 0.95^2.
    zeros = np.zeros((2, 1))
    coupled = run(CoupledSGD(0.1, weight_decay=0.5), zeros, weights=[1.0])
    decoupled = run(keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.5), zeros, weights=[1.0])
    assert_allclose(coupled, [0.8575], rtol=1e-6)
    assert_allclose(decoupled, [0.9025], rtol=1e-6)
    # Without decay both are the same rule at a constant rate.
    plain = run(CoupledSGD(0.1), GRADIENTS)
    assert_allclose(plain, run(keras.optimizers.SGD(0.1, momentum=0.9), GRADIENTS), rtol=1e-5)


def test_decay_acts_on_all_variables_but_the_excluded():
    model, _, _ = regression()
    variables = model.trainable_variables
    assert len(variables) == 6  # kernel, bias, gamma, beta, kernel, bias
    optimizer = CoupledSGD(1.0, momentum=0.0, weight_decay=0.25)
    optimizer.exclude_from_weight_decay(var_list=[variables[0]], var_names=["beta"])
    for variable in variables:
        variable.assign(keras.ops.ones_like(variable))
    optimizer.apply([keras.ops.zeros_like(variable) for variable in variables], variables)
    expected = [1.0, 0.75, 0.75, 1.0, 0.75, 0.75]
    for variable, value in zip(variables, expected, strict=True):
        assert_allclose(variable.numpy(), np.full(variable.shape, value), err_msg=variable.path)


def test_variables_are_made_only_where_they_are_needed():
    variable = keras.Variable([1.0])
    with_momentum, without = CoupledSGD(), CoupledSGD(momentum=0.0)
    for optimizer in (with_momentum, without):
        optimizer.build([variable])
        optimizer.build([variable])  # a second time is nothing
    assert len(with_momentum.variables) == len(without.variables) + 1


@pytest.mark.parametrize(
    "optimizer",
    [
        CoupledSGD(0.3, momentum=0.8, nesterov=True, weight_decay=1e-3, global_clipnorm=2.0, name="recipe"),
        CoupledSGD(momentum=0.0, use_ema=True, ema_momentum=0.9, gradient_accumulation_steps=2),
        CoupledSGD(keras.optimizers.schedules.CosineDecay(0.1, 100)),
    ],
)
def test_configuration_round_trips(optimizer):
    for copy in (
        CoupledSGD.from_config(optimizer.get_config()),
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer)),
    ):
        assert type(copy) is CoupledSGD
        assert copy.get_config() == optimizer.get_config()
        for name in ("momentum", "nesterov", "weight_decay", "name", "use_ema"):
            assert getattr(copy, name) == getattr(optimizer, name)


def test_a_saved_model_goes_on_exactly(tmp_path):
    model, x, y = regression()
    model.compile(CoupledSGD(0.05, nesterov=True, weight_decay=1e-2), "mse")
    fit(model, x, y, epochs=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is CoupledSGD
    for saved, variable in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(saved.numpy(), variable.numpy(), err_msg=saved.path)
    assert np.abs(loaded.optimizer.variables[-1].numpy()).max() > 0
    fit(model, x, y, epochs=2)
    fit(loaded, x, y, epochs=2)
    for went_on, restarted in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(went_on.numpy(), restarted.numpy(), err_msg=went_on.path)


@pytest.mark.parametrize("way", [{"jit_compile": True}, {"run_eagerly": True}], ids=["jit", "eager"])
def test_compiled_ways_agree_with_the_graph(way):
    trained = []
    for arguments in ({"jit_compile": False}, way):
        model, x, y = regression()
        model.compile(CoupledSGD(0.05, nesterov=True, weight_decay=1e-2), "mse", **arguments)
        fit(model, x, y, epochs=3)
        trained.append(model.get_weights())
    for expected, weights in zip(*trained, strict=True):
        assert_allclose(weights, expected, rtol=1e-4, atol=1e-6)


def test_gradient_accumulation_decays_once_an_update():
    optimizer = CoupledSGD(0.1, nesterov=True, weight_decay=0.05, gradient_accumulation_steps=2)
    means = GRADIENTS.reshape(5, 2, 3).mean(axis=1)
    expected = published_rule(WEIGHTS, means, [0.1] * 5, nesterov=True, weight_decay=0.05)
    assert_allclose(run(optimizer, GRADIENTS), expected, rtol=1e-5)


def test_clipping_sees_the_gradient_without_the_decay():
    # Each gradient is scaled to length 0.5; the decay, of length 0.23 at first, is added to it unclipped.
    clipped = 0.5 * GRADIENTS / np.linalg.norm(GRADIENTS, axis=1, keepdims=True)
    clipped[np.linalg.norm(GRADIENTS, axis=1) < 0.5] = GRADIENTS[np.linalg.norm(GRADIENTS, axis=1) < 0.5]
    expected = published_rule(WEIGHTS, clipped, [0.1] * 10, weight_decay=0.1)
    assert_allclose(run(CoupledSGD(0.1, weight_decay=0.1, clipnorm=0.5), GRADIENTS), expected, rtol=1e-5)


def test_moving_average_of_the_weights():
    optimizer = CoupledSGD(0.1, weight_decay=0.05, use_ema=True, ema_momentum=0.7)
    variable = keras.Variable(WEIGHTS.astype("float32"))
    average = None
    for step, gradient in enumerate(GRADIENTS, start=1):
        optimizer.apply([keras.ops.convert_to_tensor(gradient, "float32")], [variable])
        weights = published_rule(WEIGHTS, GRADIENTS[:step], [0.1] * step, weight_decay=0.05)
        assert_allclose(variable.numpy(), weights, rtol=1e-5)
        average = weights if average is None else 0.7 * average + 0.3 * weights
    optimizer.finalize_variable_values([variable])
    assert_allclose(variable.numpy(), average, rtol=1e-5)


def test_inside_a_loss_scale_optimizer():
    inner = CoupledSGD(0.1, nesterov=True, weight_decay=0.05)
    # A power of two, so that scaling loses no bit; it doubles after every second finite step.
    optimizer = keras.mixed_precision.LossScaleOptimizer(inner, initial_scale=8.0, dynamic_growth_steps=2)
    variable = keras.Variable(WEIGHTS.astype("float32"))
    optimizer.build([variable])
    for gradient in GRADIENTS:
        before, velocity = variable.numpy(), inner.variables[-1].numpy()
        optimizer.apply([keras.ops.full((3,), np.inf)], [variable])  # skipped, and halves the scale
        np.testing.assert_array_equal(variable.numpy(), before)
        np.testing.assert_array_equal(inner.variables[-1].numpy(), velocity)
        scaled = optimizer.scale_loss(keras.ops.convert_to_tensor(gradient, "float32"))
        optimizer.apply([scaled], [variable])
    expected = published_rule(WEIGHTS, GRADIENTS, [0.1] * 10, nesterov=True, weight_decay=0.05)
    assert_allclose(variable.numpy(), expected, rtol=1e-5)
    assert int(inner.iterations) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": 1.0}, r"`momentum` must be in \[0, 1\).*Received: momentum=1.0"),
        ({"momentum": -0.1}, r"`momentum` must be in \[0, 1\).*Received: momentum=-0.1"),
        ({"momentum": float("nan")}, r"`momentum` must be in \[0, 1\).*Received: momentum=nan"),
        ({"momentum": "a"}, r"`momentum` must be in \[0, 1\).*Received: momentum='a'"),
        ({"momentum": False}, r"`momentum` must be in \[0, 1\).*Received: momentum=False"),
        ({"weight_decay": -1e-4}, r"`weight_decay` must be finite and at least 0.*Received: weight_decay=-0.0001"),
        ({"weight_decay": float("nan")}, r"`weight_decay` must be finite and .*Received: weight_decay=nan"),
        ({"weight_decay": float("inf")}, r"`weight_decay` must be finite and .*Received: weight_decay=inf"),
        ({"weight_decay": "5e-4"}, r"`weight_decay` must be finite and .*Received: weight_decay='5e-4'"),
        ({"nesterov": "no"}, r"`nesterov` must be True or False\. Received: nesterov='no'"),
        ({"nesterov": True, "momentum": 0.0}, r"`nesterov=True` needs a momentum above 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        CoupledSGD(**arguments)
