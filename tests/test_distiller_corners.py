"""Corners in which a Distiller once went wrong, or could."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from networks import IMAGE_SHAPE, NeedsAdapter, cross_entropy, images, small_network
from test_distiller import KD, SP, distiller
from test_taps import softmax_network

from spkd_keras import Distiller, Term, losses, models
from spkd_keras.distiller import taps


def test_steps_per_execution_beyond_the_epoch_is_no_batch_of_one() -> None:
    model = distiller(small_network(8), small_network(), [Term(SP())], {"steps_per_execution": 4})
    assert np.isfinite(model.fit(*images(4), batch_size=2, verbose=0).history["loss"]).all()


def test_a_saved_distiller_loads_in_a_new_process(tmp_path: Path) -> None:
    model = distiller(small_network(8), small_network(), [Term(SP())])  # compiled with our optimizer
    model.save(tmp_path / "distiller.keras")
    program = (
        f"import keras, spkd_keras; keras.saving.load_model({str(tmp_path / 'distiller.keras')!r}); print('loaded')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "loaded", done.stderr


def test_a_float64_loss_is_a_term_like_any_other() -> None:
    model = distiller(small_network(8), small_network(), [Term(SP(dtype="float64"), 10.0)])
    assert np.isfinite(model.fit(*images(8), verbose=0).history["loss"]).all()


@pytest.mark.parametrize("structure", ["dict", "two"])
def test_a_student_with_several_outputs_distils_at_a_tap(structure: str) -> None:
    inner = small_network()
    logits = inner.output
    outputs = {"logits": logits} if structure == "dict" else [logits, layers.Dense(2, name="more")(logits)]
    student = keras.Model(inner.input, outputs)
    x, y = images(8)
    labels = {"logits": y} if structure == "dict" else [y, y % 2]
    loss = {"logits": cross_entropy()} if structure == "dict" else [cross_entropy(), cross_entropy()]
    model = distiller(small_network(8), student, [Term(SP())], {"loss": loss})
    assert np.isfinite(model.fit(x, labels, verbose=0).history["similarity_preserving"]).all()
    if structure == "two":
        with pytest.raises(ValueError, match=r"The output of .* must be one tensor to be compared"):
            Distiller(small_network(8), student, [Term(KD())])


def test_a_callback_list_is_taken() -> None:
    model = distiller(small_network(8), small_network(), [Term(SP())])
    callbacks = keras.callbacks.CallbackList([], add_history=True, model=model)
    before = list(callbacks.callbacks)
    assert model.fit(*images(8), verbose=0, callbacks=callbacks).history["loss"]
    assert callbacks.callbacks == before
    model.student.get_layer("conv1").kernel.assign(np.nan * model.student.get_layer("conv1").kernel)
    with pytest.raises(FloatingPointError):
        model.fit(*images(8), verbose=0, callbacks=callbacks)
    assert callbacks.callbacks == before


def test_one_layer_in_a_tuple_is_one_layer() -> None:
    kinds: list[Any] = [losses.RelationalDistance, losses.RelationalAngle, losses.PKT, losses.CorrelationCongruence]
    kinds += [losses.InterChannelCorrelation, losses.Hint, SP, losses.AttentionTransfer, losses.NeuronSelectivity]
    kinds += [keras.losses.MeanAbsoluteError]
    by_name = [Term(kind(), 1.0, "stage2", "stage2", f"name{index}") for index, kind in enumerate(kinds)]
    in_a_tuple = [Term(kind(), 1.0, ("stage2",), ["stage2"], f"tuple{index}") for index, kind in enumerate(kinds)]
    model = distiller(small_network(8), small_network(8), [*by_name, *in_a_tuple], evaluate_terms=True)
    logs = model.evaluate(*images(10), verbose=0, return_dict=True)
    for index, kind in enumerate(kinds):
        assert logs[f"name{index}"] > 0, kind
        assert logs[f"tuple{index}"] == pytest.approx(logs[f"name{index}"], rel=1e-6), kind
    projected = Distiller(small_network(8), small_network(), [Term(losses.Projection(1), 1, ["pooling"], ["pooling"])])
    assert projected.adapters["projection"].weights[0].shape == (4, 8)


def test_all_of_fits_positions() -> None:
    model = distiller(small_network(8), small_network(), [Term(SP())])
    history = model.fit(*images(10), 5, 1, 0, None, 0.2).history
    assert "val_loss" in history


def test_weights_shared_with_the_teacher_are_refused_where_they_are_trained() -> None:
    teacher = small_network(8, name="teacher")
    pooled = layers.GlobalAveragePooling2D()(teacher.get_layer("stage2").output)
    student = keras.Model(teacher.input, layers.Dense(4)(pooled))
    with pytest.raises(ValueError, match=r"must not share what training changes. Received: 12 such"):
        Distiller(teacher, student, [Term(KD())])
    for layer in teacher.layers:
        layer.trainable = False
    Distiller(teacher, student, [Term(KD())])


def test_the_flatten_behind_a_global_pooling_is_not_the_last_stage() -> None:
    image = keras.Input(IMAGE_SHAPE)
    x = layers.GlobalAveragePooling2D(keepdims=True, name="pool")(layers.Conv2D(5, 3)(image))
    model = keras.Model(image, layers.Dense(4)(layers.Flatten(name="flat")(x)))
    assert str(taps.resolve(model, None, "last_stage", "teacher")[0]) == "input of pool"


@pytest.mark.parametrize(
    "behind", [layers.Identity(), layers.Activation("linear"), layers.Reshape((4,))], ids=lambda layer: layer.name
)
def test_probabilities_behind_layers_that_change_nothing(behind: layers.Layer) -> None:
    probable = softmax_network("layer")
    hidden = keras.Model(probable.input, behind(probable.output))
    with pytest.raises(ValueError, match="ends in a softmax"):
        Distiller(hidden, small_network(), [Term(KD())])


def test_probabilities_of_a_named_layer() -> None:
    probable = softmax_network("layer")
    name = next(layer.name for layer in probable.layers if isinstance(layer, layers.Softmax))
    with pytest.raises(ValueError, match="ends in a softmax"):
        Distiller(probable, small_network(), [Term(KD(), teacher=name)])
    Distiller(probable, small_network(), [Term(KD(), teacher=probable.layers[-2].name)])


def test_an_adapter_given_to_two_distillers_is_trained_in_each_alone() -> None:
    term = Term(NeedsAdapter(), adapter=layers.Conv2D(8, 1))
    one, other = (distiller(small_network(8), small_network(), [term]) for _ in range(2))
    before = other.adapters["needs_adapter"].kernel.numpy()
    one.fit(*images(8), verbose=0)
    np.testing.assert_array_equal(other.adapters["needs_adapter"].kernel.numpy(), before)


def test_a_built_adapter_gives_its_weights_to_the_copy_and_stays_as_it_is() -> None:
    adapter = keras.Sequential([keras.Input((4, 4, 4)), layers.Conv2D(8, 1), layers.BatchNormalization()])
    given = [np.full(weight.shape, 2.0 + index) for index, weight in enumerate(adapter.weights)]
    adapter.set_weights(given)
    model = distiller(small_network(8), small_network(), [Term(NeedsAdapter(), adapter=adapter)])
    for value, weight in zip(given, model.adapters["needs_adapter"].weights, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)
    model.fit(*images(8), verbose=0)
    assert not np.array_equal(model.adapters["needs_adapter"].weights[0].numpy(), given[0])
    for value, weight in zip(given, adapter.weights, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)
    wide = layers.Conv2D(8, 1)
    wide.build((None, 4, 4, 5))
    with pytest.raises(ValueError, match=r"The term 'needs_adapter' .* \(None, 4, 4, 4\): .*shape"):
        Distiller(small_network(8), small_network(), [Term(NeedsAdapter(), adapter=wide)])


def test_a_term_may_not_have_the_name_of_a_metric() -> None:
    metrics = [keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")]
    model = distiller(small_network(8), small_network(), [Term(SP(), name="top2")], {"metrics": metrics})
    with pytest.raises(ValueError, match=r"must have different names. Received: top2 for both"):
        model.fit(*images(8), verbose=0)


def test_a_float16_adapter_switches_loss_scaling_on() -> None:
    adapter = layers.Conv2D(8, 1, dtype="mixed_float16")
    model = distiller(small_network(8), small_network(), [Term(NeedsAdapter(), adapter=adapter)])
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)


def test_evaluate_without_the_teacher_is_the_students_own(tmp_path: Path) -> None:
    model = distiller(small_network(8), small_network(), [Term(SP())], evaluate_terms=True)
    model.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert set(loaded.evaluate(*images(8), verbose=0, return_dict=True)) == {"loss"}
    # The steps are compiled by now, and follow the teacher all the same.
    loaded.teacher = model.teacher
    assert "similarity_preserving" in loaded.evaluate(*images(8), verbose=0, return_dict=True)
    loaded.fit(*images(8), verbose=0)
    loaded.teacher = None
    assert set(loaded.evaluate(*images(8), verbose=0, return_dict=True)) == {"loss"}
    with pytest.raises(ValueError, match="need the teacher"):
        loaded.fit(*images(8), verbose=0)


def test_labels_outside_the_classes_are_told_in_evaluate_too() -> None:
    x, y = images(8)
    with pytest.raises(ValueError, match=r"Labels must be integers from 0 to .* 3"):
        distiller(small_network(8), small_network(), [Term(SP())]).evaluate(x, y + 4, verbose=0)


def test_a_frozen_student_is_warned_of() -> None:
    student = small_network()
    student.trainable = False
    model = distiller(small_network(8), student, [Term(SP())])
    with pytest.warns(UserWarning, match="no trainable weights"):
        model.fit(*images(8), verbose=0)


def test_a_subclass_that_computes_something_else_is_not_looked_into() -> None:
    class Doubled(keras.Model):
        def call(self, x: Any, training: bool | None = None) -> Any:
            return 2 * super().call(x, training=training)

    plain = small_network(8)
    doubled = Doubled(plain.input, plain.output)
    x, _ = images(4)
    model = distiller(doubled, small_network(), [Term(KD())])
    np.testing.assert_allclose(model._wiring.run_teacher(x)[0], 2 * plain(x), rtol=1e-5)


def test_a_nested_model_called_by_keyword() -> None:
    image = keras.Input(IMAGE_SHAPE)
    nested = keras.Sequential([keras.Input(IMAGE_SHAPE), layers.Conv2D(2, 3, name="inner")], name="nested")
    model = keras.Model(image, layers.Flatten()(nested(inputs=image)))
    x, _ = images(2)
    (value,) = taps.tapped(model, [taps.Tap("nested/inner")])(x)["taps"]
    np.testing.assert_array_equal(value, nested(x))
    assert models.multiply_adds(model) == 6 * 6 * 9 * 2


def test_the_copy_in_another_dtype_gives_float32_of_a_nested_head() -> None:
    image = keras.Input((5,))
    head = keras.Sequential([keras.Input((5,)), layers.Dense(4)], name="head")
    copy = models.in_precision(keras.Model(image, head(layers.Dense(5)(image))), "bfloat16")
    assert copy(np.ones((1, 5), "float32")).dtype == "float32"


@pytest.mark.parametrize("change", [{"activation": "tanh"}, {"strides": 2}, {"padding": "valid"}])
def test_networks_with_the_same_weights_and_other_settings_differ(change: dict[str, Any]) -> None:
    def build(**settings: Any) -> keras.Model:
        return keras.Sequential(
            [
                keras.Input(IMAGE_SHAPE),
                layers.Conv2D(2, 3, **{"activation": "relu", "padding": "same", **settings}),
                layers.GlobalAveragePooling2D(),
            ]
        )

    one, other = build(), build(**change)
    other.set_weights(one.get_weights())
    assert models.fingerprint(one) != models.fingerprint(other)


def test_a_loss_that_does_not_fit_its_taps_is_refused_when_constructing() -> None:
    class SameShape(losses.DistillationLoss):
        default_tap = "last_stage"

        def call(self, y_true: Any, y_pred: Any) -> Any:
            return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=(1, 2, 3))

    with pytest.raises(
        ValueError, match=r"'same_shape' cannot compare the teacher's tap of shape \(4, 4, 8\) with .* \(4, 4, 4\)"
    ):
        Distiller(small_network(8), small_network(4), [Term(SameShape())])
    Distiller(small_network(8), small_network(4), [Term(SameShape(), adapter=layers.Conv2D(8, 1))])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda t, s: Distiller(t, s, Term(SP())), r"`terms` must be a list of Term"),
        (lambda t, s: Distiller(t, s, [Term(SP())], student_loss_weight="1"), r"finite and at least 0. Received: '1'"),
        (
            lambda t, s: Distiller(t, s, [Term(SP())], student_loss_weight=np.inf),
            r"finite and at least 0. Received: inf",
        ),
    ],
)
def test_more_errors_of_construction(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(small_network(8), small_network())


def test_a_numpy_number_is_a_weight() -> None:
    model = Distiller(small_network(8), small_network(), [Term(SP(), np.float32(3))])
    assert float(model.term_weights["similarity_preserving"].numpy()) == 3.0
    assert Term.from_config(model.terms[0].get_config()).weight == 3.0


def test_a_term_may_not_have_the_name_of_a_validation_metric() -> None:
    class ValAccuracy(SP):
        """Whose default name would be that of an accuracy on held-out images."""

    for term, name in ((Term(SP(), name="val_accuracy"), "val_accuracy"), (Term(ValAccuracy()), "val_accuracy")):
        with pytest.raises(ValueError, match=rf"must not begin with val_, .* Received: name='{name}'\. Give the term"):
            distiller(small_network(8), small_network(), [term])
    distiller(small_network(8), small_network(), [Term(SP(), name="valid")])


@pytest.mark.parametrize(
    "kinds",
    [
        [lambda: layers.Normalization(mean=0.0, variance=1.0), lambda: layers.Normalization(mean=9.0, variance=1.0)],
        [lambda: layers.Normalization(mean=0.0, variance=1.0), lambda: layers.Normalization(mean=0.0, variance=4.0)],
        [lambda: layers.ReLU(), lambda: layers.ReLU(6.0)],
        [lambda: layers.BatchNormalization(epsilon=1e-3), lambda: layers.BatchNormalization(epsilon=1e-5)],
        [lambda: layers.AveragePooling2D(2, 1, "same"), lambda: layers.AveragePooling2D(3, 1, "same")],
        [lambda: layers.Resizing(4, 4), lambda: layers.Resizing(16, 16)],
        [lambda: layers.Resizing(4, 4), lambda: layers.Resizing(4, 4, crop_to_aspect_ratio=True)],
        [lambda: layers.Cropping2D(1), lambda: layers.Cropping2D(2)],
        [lambda: layers.CenterCrop(4, 4), lambda: layers.CenterCrop(6, 6)],
    ],
)
def test_layers_of_one_kind_and_other_settings_are_other_networks(kinds: Any) -> None:
    one, other = (keras.Sequential([keras.Input(IMAGE_SHAPE), kind(), layers.Flatten()]) for kind in kinds)
    assert models.fingerprint(one) != models.fingerprint(other)


def test_the_copy_of_an_adapted_normalization_computes_with_its_statistics() -> None:
    values = np.random.default_rng(0).normal(5, 3, (20, 4, 4, 8)).astype("float32")
    adapted = layers.Normalization()
    adapted.adapt(values)
    expected = np.asarray(adapted(values))
    for adapter in (adapted, keras.Sequential([keras.Input((4, 4, 8)), adapted])):
        model = distiller(small_network(8), small_network(8), [Term(NeedsAdapter(), adapter=adapter)])
        np.testing.assert_allclose(model.adapters["needs_adapter"](values), expected, rtol=1e-5, atol=1e-5)
