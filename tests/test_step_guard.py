"""A step that is not finite is not applied, nor is any after it; and it is told which it was, and what."""

import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import CLASSES, IMAGE_SHAPE, cross_entropy, images, small_network, weights

from spkd_keras import Distiller, Term, losses
from spkd_keras.distiller import NotFiniteError, loss_parts
from spkd_keras.distiller.objective import term_values

STEPS, SIZE = 8, 4


@keras.saving.register_keras_serializable("spkd_keras_tests")
class Spoiled(losses.DistillationLoss):
    """A loss that is not finite, or whose gradient is not, where an image of the batch is all 255."""

    default_tap = "logits"

    def __init__(self, how="value", **kwargs):
        super().__init__(**kwargs)
        self.how = how

    def call(self, y_true, y_pred):
        bad = keras.ops.any(y_true > 1e5)
        loss = keras.ops.mean(keras.ops.square(y_pred), axis=-1)
        if self.how == "value":
            return loss + keras.ops.where(bad, np.nan, 0.0)
        # The root's slope at zero is infinite, and its value is finite.
        return loss + keras.ops.sqrt(keras.ops.where(bad, 0.0, 1.0) * keras.ops.mean(y_pred**2, axis=-1))


def marking_teacher():
    """Gives values above 1e5 for an image that is all 255, and only for that."""
    image = keras.Input(IMAGE_SHAPE, name="image")
    x = keras.layers.Rescaling(1e6, -254e6, dtype="float32")(image)  # whatever the policy
    x = keras.layers.ReLU(dtype="float32")(keras.layers.GlobalAveragePooling2D(dtype="float32")(x))
    return keras.Model(image, keras.layers.Concatenate(dtype="float32")([x] * CLASSES))


def batches(bad=()):
    """Batches in a fixed order, some of them with an image that is all 255."""
    x, y = images(STEPS * SIZE)
    for batch in bad:
        x[batch * SIZE] = 255
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(SIZE)


def trained(student, data, how="value", optimizer="sgd", look_every=50, **compiled):
    distiller = Distiller(marking_teacher(), student, [Term(Spoiled(how), name="spoiled")])
    distiller.look_every = look_every
    distiller.compile(optimizer, cross_entropy(), **compiled)
    distiller.fit(data, verbose=0, shuffle=False)
    return distiller


def twin(network):
    copy = keras.models.clone_model(network)
    copy.set_weights(network.get_weights())
    return copy


@pytest.mark.parametrize("compiled", [{}, {"run_eagerly": True}, {"jit_compile": True}], ids=str)
@pytest.mark.parametrize(("how", "parts"), [("value", {"spoiled", "loss"}), ("gradient", {"gradient"})])
def test_the_state_is_that_before_the_bad_step(how, parts, compiled):
    student = small_network(dropout=0.3)
    other = twin(student)
    for layer in (student, other):
        layer.get_layer("dropout").seed_generator.state.assign([3, 4])
    momentum = keras.optimizers.SGD(0.1, momentum=0.9)
    with pytest.raises(NotFiniteError) as caught:
        trained(student, batches(bad=[3, 5]), how, momentum, **compiled)
    assert (caught.value.epoch, caught.value.batch) == (0, 3)
    assert set(caught.value.parts) == parts
    assert "epoch 1, batch 4" in str(caught.value)
    # Moving statistics, the random state of Dropout and the optimizer's slots too are as if there had been no fourth.
    reference = keras.optimizers.SGD(0.1, momentum=0.9)
    trained(other, batches().take(3), how, reference, **compiled)
    tolerance = 1e-6 if compiled.get("jit_compile") else 0
    for ours, theirs in zip(
        [*student.variables, *momentum.variables], [*other.variables, *reference.variables], strict=True
    ):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=tolerance, rtol=tolerance, err_msg=ours.path)


@pytest.mark.parametrize(("look_every", "begun"), [(2, 6), (50, STEPS)])
def test_the_host_looks_now_and_then(look_every, begun):
    seen = []

    class Steps(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            seen.append(batch)

    distiller = Distiller(marking_teacher(), small_network(), [Term(Spoiled(), name="spoiled")])
    distiller.look_every = look_every
    distiller.compile("sgd", cross_entropy())
    with pytest.raises(NotFiniteError):
        distiller.fit(batches(bad=[4]), verbose=0, shuffle=False, callbacks=Steps())
    assert len(seen) == begun  # of eight; at the sixth it looks at what five have done
    assert Distiller.look_every == 50


def test_a_later_fit_starts_afresh():
    student = small_network()
    distiller = Distiller(marking_teacher(), student, [Term(Spoiled(), name="spoiled")])
    distiller.compile("sgd", cross_entropy())
    with pytest.raises(NotFiniteError):
        distiller.fit(batches(bad=[0]), verbose=0, shuffle=False)
    before = weights(student)
    distiller.fit(batches(), verbose=0, shuffle=False)
    assert any(np.any(one != two) for one, two in zip(before, weights(student), strict=True))


def test_a_batch_trained_alone_is_told_of_and_does_not_stop_those_after_it():
    student = small_network()
    distiller = Distiller(marking_teacher(), student, [Term(Spoiled(), name="spoiled")])
    distiller.compile("sgd", cross_entropy())
    x, y = images(SIZE)
    before = weights(student)
    with pytest.raises(NotFiniteError, match="spoiled, loss"):
        distiller.train_on_batch(np.full_like(x, 255), y)
    for one, two in zip(before, weights(student), strict=True):
        np.testing.assert_array_equal(one, two)
    assert np.isfinite(distiller.train_on_batch(x, y, return_dict=True)["loss"])
    assert not np.array_equal(before[0], weights(student)[0])
    with pytest.raises(NotFiniteError):
        distiller.fit(batches(bad=[0]), verbose=0, shuffle=False)
    before = weights(student)
    distiller.train_on_batch(x, y)
    assert not np.array_equal(before[0], weights(student)[0])


def test_the_skips_of_a_loss_scale_are_not_taken_for_it():
    keras.config.set_dtype_policy("mixed_float16")
    student = small_network()
    # So large a scale that the gradients overflow float16 at first; it is halved until they do not.
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01), initial_scale=2.0**40)
    distiller = Distiller(None, student)
    distiller.compile(optimizer, cross_entropy())
    before = weights(student)
    history = distiller.fit(*images(4), batch_size=4, epochs=3, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert float(optimizer.dynamic_scale) == 2.0**37
    for name, one, two in zip([w.path for w in student.weights], before, weights(student), strict=True):
        assert "moving" in name or np.array_equal(one, two), name


def test_a_loss_that_is_not_finite_is_found_with_a_loss_scale_too():
    keras.config.set_dtype_policy("mixed_float16")
    with pytest.raises(NotFiniteError, match="batch 3: spoiled, loss"):
        trained(small_network(), batches(bad=[2]))


def test_a_gradient_that_no_loss_scale_makes_finite_is_found():
    keras.config.set_dtype_policy("mixed_float16")
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01), initial_scale=4.0)
    # Three steps are skipped as ordinary overflows would be; then the scale is below 1.
    with pytest.raises(NotFiniteError, match="batch 4: gradient"):
        trained(small_network(), batches(bad=range(STEPS)), "gradient", scaled)


def test_the_size_of_batches_is_that_of_the_training():
    distiller = Distiller(small_network(8), small_network(), [Term(losses.SimilarityPreserving())])
    distiller.compile("sgd", cross_entropy())
    x, y = images(6)
    distiller.fit(x, y, batch_size=3, validation_data=(x, y), validation_batch_size=1, verbose=0)
    ones = tf.data.Dataset.from_tensor_slices((x, y)).batch(1)
    with pytest.raises(ValueError, match="Received: batches of one"):
        distiller.fit(ones, validation_data=(x, y), verbose=0, shuffle=False)


def test_parts_of_the_loss_by_hand():
    """Two parts whose gradients are known: of a dense layer on fixed features, by NumPy in float64."""
    image = keras.Input(IMAGE_SHAPE, name="image")
    dense = keras.layers.Dense(CLASSES, use_bias=False, name="logits")
    student = keras.Model(image, dense(keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(image))))
    distiller = Distiller(marking_teacher(), student, [Term(keras.losses.MeanSquaredError(), 3.0, name="mse")], 0.5)
    distiller.compile("sgd", cross_entropy())
    x, y = images(6)
    parts = loss_parts(distiller, x, y)
    features, kernel = x.reshape(6, -1) / 255.0, dense.kernel.numpy().astype("float64")
    logits = features @ kernel
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponents / exponents.sum(axis=1, keepdims=True)
    one_hot = np.eye(CLASSES)[y]
    assert parts["student_loss"].value == pytest.approx(-np.log(probabilities[one_hot == 1]).mean(), rel=1e-4)
    assert parts["student_loss"].weight == 0.5
    by_labels = features.T @ (probabilities - one_hot) / 6
    assert parts["student_loss"].gradient_norm == pytest.approx(0.5 * np.linalg.norm(by_labels), rel=1e-4)
    assert parts["mse"].value == pytest.approx((logits**2).mean(), rel=1e-4)
    by_mse = features.T @ (2 * logits / logits.size)
    assert parts["mse"].gradient_norm == pytest.approx(3 * np.linalg.norm(by_mse), rel=1e-4)


def test_looking_at_the_parts_changes_nothing():
    student = small_network(dropout=0.3)
    distiller = Distiller(small_network(8), student, [Term(losses.SimilarityPreserving())])
    distiller.compile("sgd", cross_entropy())
    before = [variable.numpy() for variable in student.variables]
    loss_parts(distiller, *images(6))
    for variable, value in zip(student.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_the_host_looks_in_later_epochs_too():
    seen = []
    distiller = Distiller(marking_teacher(), small_network(), [Term(Spoiled(), name="spoiled")])
    distiller.look_every = 2
    distiller.compile("sgd", cross_entropy())
    count = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda batch, logs: seen.append(batch))
    data = batches().concatenate(batches(bad=[4]))
    with pytest.raises(NotFiniteError, match="epoch 2, batch 5"):
        distiller.fit(data, epochs=2, steps_per_epoch=STEPS, shuffle=False, verbose=0, callbacks=count)
    assert len(seen) == STEPS + 6


def test_the_statistics_of_an_adapter_are_put_back_too():
    distiller = Distiller(small_network(8), small_network(4), [Term(losses.Hint())])
    distiller.compile("sgd", cross_entropy())
    (x, y), before = images(SIZE), weights(distiller.adapters["hint"])
    loss_parts(distiller, x, y)
    with pytest.raises(NotFiniteError):
        distiller.train_on_batch(x * np.float32("nan"), y)
    for one, two in zip(before, weights(distiller.adapters["hint"]), strict=True):
        np.testing.assert_array_equal(one, two)


def test_the_scale_of_the_loss_is_not_in_its_parts():
    distiller, norms = Distiller(None, small_network()), []
    for optimizer in (keras.optimizers.SGD(), keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), 1024.0)):
        distiller.compile(optimizer, cross_entropy())
        norms.append(loss_parts(distiller, *images(6))["student_loss"].gradient_norm)
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)


def test_the_parts_of_the_students_gradient_are_weighted_and_the_adapters_is_not_among_them():
    distiller = Distiller(small_network(8), small_network(), [Term(losses.Hint(), 3.0)], student_loss_weight=0.5)
    distiller.compile("sgd", cross_entropy())
    x, y = images(6)
    parts = loss_parts(distiller, x, y)
    with tf.GradientTape() as tape:
        _, student_taps = distiller._wiring.run_student(x, training=True, with_taps=True)
        teacher_taps = distiller._wiring.run_teacher(x)
        sides = teacher_taps, student_taps
        value = term_values(distiller._wiring, distiller.adapters, sides, y, training=True)["hint"]
    gradients = tape.gradient(value, distiller.student.trainable_variables)
    own = tf.linalg.global_norm([gradient for gradient in gradients if gradient is not None])
    assert parts["hint"].gradient_norm == pytest.approx(3 * float(own), rel=1e-4)
    assert (parts["hint"].weight, parts["student_loss"].weight) == (3.0, 0.5)


def test_the_error_comes_whole_from_another_process():
    error = pickle.loads(pickle.dumps(NotFiniteError(2, 5, ["loss", "gradient"])))
    assert (error.epoch, error.batch, error.parts) == (2, 5, ("loss", "gradient"))
    assert str(error) == str(NotFiniteError(2, 5, ["loss", "gradient"]))
