"""Mixed precision, loss scaling, and a teacher in another dtype."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from networks import CLASSES, IMAGE_SHAPE, assert_same_weights, cross_entropy, images, small_network, weights
from test_distiller import KD, SP, distiller

from spkd_keras import Distiller, Term, losses, models
from spkd_keras.distiller import NotFiniteError


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains_and_scales_the_loss_where_needed(policy: str, tmp_path: Path) -> None:
    x, y = images(16)
    teacher = small_network(8)  # float32
    keras.config.set_dtype_policy(policy)
    student = small_network()
    keras.config.set_dtype_policy("float32")
    model = distiller(teacher, student, [Term(SP(), 30.0), Term(KD(), 0.9)])
    before = weights(student)
    history = model.fit(x, y, batch_size=8, epochs=3, verbose=0).history
    assert all(np.isfinite(values).all() for values in history.values())
    assert not np.array_equal(before[0], weights(student)[0])
    scaled = policy == "mixed_float16"
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == scaled
    model.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert isinstance(loaded.optimizer, keras.optimizers.LossScaleOptimizer) == scaled
    loaded.teacher = teacher
    for each in (model, loaded):
        each.fit(x, y, batch_size=8, verbose=0, shuffle=False)
    assert_same_weights(model, loaded)


def test_loss_scaling_can_be_declined(tmp_path: Path) -> None:
    keras.config.set_dtype_policy("mixed_float16")
    model = Distiller(None, small_network())
    model.compile("sgd", cross_entropy(), auto_scale_loss=False)
    assert not isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    model.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert not isinstance(loaded.optimizer, keras.optimizers.LossScaleOptimizer)


class ClampedSimilarity(losses.DistillationLoss):
    """What others do: the norm is kept away from zero instead of the row being masked."""

    default_tap = "last_stage"

    def call(self, y_true: Any, y_pred: Any) -> Any:
        def matrix(activations: Any) -> Any:
            features = keras.ops.reshape(activations, (-1, np.prod(activations.shape[1:])))
            gram = keras.ops.matmul(features, keras.ops.transpose(features))
            squared = keras.ops.sum(keras.ops.square(gram), axis=1, keepdims=True)
            return gram * keras.ops.rsqrt(keras.ops.maximum(squared, 1e-24))

        return keras.ops.mean(keras.ops.square(matrix(y_true) - matrix(y_pred)), axis=1)


@pytest.mark.parametrize(("loss", "keeps_stepping"), [(SP, True), (ClampedSimilarity, False)])
def test_a_dead_row_does_not_stop_float16_training(loss: Any, keeps_stepping: bool) -> None:
    """A student that is all zero on an image where the teacher is not."""
    x, y = images(8)
    x[0] = 0
    teacher = small_network(8)
    keras.config.set_dtype_policy("mixed_float16")
    image = keras.Input(IMAGE_SHAPE)
    scaled = keras.layers.Rescaling(1 / 255, dtype="float32")(image)
    hidden = keras.layers.Conv2D(4, 3, padding="same", use_bias=False, activation="relu", name="stage1")(scaled)
    pooled = keras.layers.GlobalAveragePooling2D()(hidden)
    student = keras.Model(image, keras.layers.Dense(CLASSES, dtype="float32")(pooled))
    assert not np.any(keras.Model(image, hidden)(x[:1]))
    assert np.any(keras.Model(teacher.input, teacher.get_layer("stage2").output)(x[:1]))

    model = distiller(teacher, student, [Term(loss())], {"optimizer": keras.optimizers.SGD(1e-3)})
    before, scale = weights(student), float(model.optimizer.dynamic_scale)
    if keeps_stepping:
        logs = model.fit(x, y, batch_size=8, epochs=30, verbose=0).history
        assert np.isfinite(logs["loss"]).all()
        assert int(model.optimizer.iterations) == 30
        assert not np.array_equal(before[0], weights(student)[0])
        assert float(model.optimizer.dynamic_scale) == scale
    else:
        # Halved from 2^15 to below 1 without a step: that is no overflow any more, and it is told.
        with pytest.raises(NotFiniteError, match="epoch 17, batch 1: gradient"):
            model.fit(x, y, batch_size=8, epochs=30, verbose=0)
        np.testing.assert_array_equal(before[0], weights(student)[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_copy_of_the_teacher_runs_in_another_dtype(dtype: str) -> None:
    teacher = models.wide_resnet(10, 1, image_shape=IMAGE_SHAPE, num_classes=CLASSES)
    x, y = images(16)
    before = weights(teacher)
    values = []
    for teacher_dtype in (None, dtype):
        keras.utils.set_random_seed(1)
        terms = [Term(SP()), Term(KD())]
        model = distiller(teacher, small_network(), terms, teacher_dtype=teacher_dtype, evaluate_terms=True)
        tapped = model._wiring.run_teacher(x)
        assert tapped[0].dtype == (teacher_dtype or "float32")
        assert tapped[1].dtype == "float32"  # logits
        values.append(float(model.evaluate(x, y, verbose=0, return_dict=True)["similarity_preserving"]))
        model.fit(x, y, verbose=0)
        assert model.teacher is teacher
    assert {layer.compute_dtype for layer in teacher.layers} == {"float32"}
    for old, new in zip(before, weights(teacher), strict=True):
        np.testing.assert_array_equal(old, new)
    assert values[1] == pytest.approx(values[0], rel=0.05)
    assert values[1] != values[0]


def test_the_copy_keeps_preprocessing_in_float32_and_takes_nested_models() -> None:
    inner = small_network(name="inner")
    model = keras.Sequential([keras.Input(IMAGE_SHAPE), inner])
    copy = models.in_precision(model, "float16")
    layers = {layer.name: layer for layer in copy.get_layer("inner").layers}
    assert layers["preprocessing"].compute_dtype == "float32"
    assert layers["conv1"].compute_dtype == "float16"
    assert layers["conv1"].variable_dtype == "float32"
    x, _ = images(3)
    np.testing.assert_allclose(copy(x), model(x), atol=0.02)
    with pytest.raises(ValueError, match=r"must be one of float32, bfloat16, float16. Received: 'int8'"):
        models.in_precision(model, "int8")


@pytest.mark.parametrize("behind", [keras.layers.Activation("linear"), keras.layers.Identity(), keras.layers.Softmax()])
def test_the_layer_that_makes_the_logits_stays_in_float32(behind: keras.layers.Layer) -> None:
    inner = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4), behind])
    x = np.random.default_rng(0).normal(size=(3, 5)).astype("float32")
    for model in (inner, keras.Sequential([keras.Input((5,)), inner, keras.layers.Identity()])):
        np.testing.assert_array_equal(models.in_precision(model, "bfloat16")(x), model(x))
