"""What the README's table says of Keras' own Distiller; a row whose test fails can go."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import distillation
from networks import Counter, cross_entropy, images, small_network, weights


def keras_distiller(student: keras.Model, loss: Any, teacher: keras.Model | None = None, weight: float = 0.5) -> Any:
    model = distillation.Distiller(teacher or small_network(8), student, [loss], student_loss_weight=weight)
    model.compile("sgd", cross_entropy())
    return model


def of_logits() -> Any:
    return distillation.LogitsDistillation(loss=keras.losses.KLDivergence())


def of_features() -> Any:
    return distillation.FeatureDistillation(loss="mse", teacher_layer_name="stage2", student_layer_name="stage2")


def statistics(model: keras.Model) -> list[np.ndarray]:
    return [variable.numpy() for variable in model.non_trainable_variables]


def test_raw_logits_for_the_divergence() -> None:
    logits = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
    for loss, changes in [(distillation.LogitsDistillation(), True), (of_logits(), False)]:
        values = [float(loss.compute_loss(shift + logits, shift + logits[::-1].copy())) for shift in (0.0, 3.0)]
        assert (values[0] != pytest.approx(values[1], rel=1e-4)) == changes  # softmax takes no notice of a shift


@pytest.mark.parametrize(("loss", "passes"), [(of_logits, 1), (of_features, 2)])
def test_the_student_runs_twice_as_soon_as_a_layer_is_named(loss: Any, passes: int) -> None:
    counter = Counter()
    model = keras_distiller(small_network(8, before=[counter]), loss())
    before = counter.passes.numpy()
    model.fit(*images(20), batch_size=5, verbose=0)
    assert counter.passes.numpy() - before == 4 * passes


@pytest.mark.parametrize(("loss", "trains"), [(of_logits, False), (of_features, True)])
def test_evaluate_trains_batch_normalization_as_soon_as_a_layer_is_named(loss: Any, trains: bool) -> None:
    student = small_network(8)
    model = keras_distiller(student, loss())
    before = statistics(student)
    model.evaluate(*images(20), verbose=0)
    moved = any((one != other).any() for one, other in zip(before, statistics(student), strict=True))
    assert moved == trains


def test_the_terms_are_multiplied_by_what_is_left_of_one() -> None:
    logs = keras_distiller(small_network(8), of_features(), weight=0.2).fit(*images(20), verbose=0).history
    expected = 0.2 * logs["student_loss"][0] + 0.8 * logs["distillation_loss"][0]
    assert logs["total_loss"][0] == pytest.approx(expected, rel=1e-4)


def test_sample_weights_and_regularisers_are_ignored() -> None:
    trained = []
    for options in ({}, {"sample_weight": np.zeros(20)}, {"regularizer": keras.regularizers.L2(100.0)}):
        keras.utils.set_random_seed(1)
        student = small_network(8, regularizer=options.get("regularizer"))
        fitted = {name: value for name, value in options.items() if name != "regularizer"}
        keras_distiller(student, of_logits()).fit(*images(20), shuffle=False, verbose=0, **fitted)
        trained.append(weights(student))
    for others in trained[1:]:
        for one, other in zip(trained[0], others, strict=True):
            np.testing.assert_array_equal(one, other)


def test_nested_layers_are_out_of_reach() -> None:
    nested = keras.Sequential([keras.Input((8, 8, 1)), small_network(8, name="backbone")])
    loss = distillation.FeatureDistillation("mse", "backbone/stage2", "stage2")
    with pytest.raises(ValueError, match="backbone/stage2"):
        keras_distiller(small_network(8), loss, nested)


def test_the_teacher_is_in_every_checkpoint_and_left_frozen() -> None:
    teacher = small_network(8)
    model = keras_distiller(small_network(8), of_logits(), teacher)
    assert {id(variable) for variable in teacher.variables} <= {id(variable) for variable in model.variables}
    assert teacher.trainable is False
