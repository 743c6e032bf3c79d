"""What a Distiller refuses, when constructed and when trained."""

import contextlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import CLASSES, IMAGE_SHAPE, cross_entropy, images, small_network
from test_distiller import KD, SP, distiller, similarity

from spkd_keras import Distiller, Term, losses
from spkd_keras.distiller import strategy_checks


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda t, s: Distiller(None, s, [Term(SP())]), r"`teacher` must be a model, since there are terms"),
        (lambda t, s: Distiller(s, s, [Term(SP())]), r"must be two models"),
        (
            lambda t, s: Distiller("teacher.keras", s, [Term(SP())]),
            r"`teacher` must be a built keras.Model. Received: 'te",
        ),
        (lambda t, s: Distiller(t, keras.Sequential([keras.layers.Dense(2)])), r"`student` must be a built"),
        (lambda t, s: Distiller(t, s, [Term(SP())], student_loss_weight=-1), r"at least 0. Received: -1"),
        (lambda t, s: Distiller(t, s, student_loss_weight=0), r"nothing to train on"),
        (lambda t, s: Distiller(t, s, [Term(SP())], teacher_dtype="int8"), r"`teacher_dtype` must be one of"),
        (
            lambda t, s: Distiller(t, s, [Term(SP())]).compile("sgd"),
            r"needs the student's loss on the labels.*loss=None",
        ),
    ],
)
def test_errors_of_construction(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(small_network(8), small_network())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x, y: m.fit(x, y, batch_size=1), r"`batch_size` must be at least 2.*similarity_preserving"),
        (lambda m, x, y: m.fit(x[:1], y[:1]), r"at least two images.*similarity_preserving"),
        (lambda m, x, y: m.fit(batches(x, y, 1), shuffle=False), r"at least two images.*Received: batches of one"),
        (lambda m, x, y: m.fit(x), r"`fit` needs labels y for the student's loss. Received: images only"),
        (lambda m, x, y: m.fit(x, y + 2), r"Labels must be integers from 0 to .* 3. Received a label value of 5"),
        (lambda m, x, y: m.fit(batches(x, y, 4).take(0), shuffle=False), r"at least one batch. Received: none"),
        (lambda m, x, y: m.evaluate(x), r"`evaluate` needs labels"),
        (lambda m, x, y: m.train_on_batch(x, y + 2), r"^Labels must be integers .* 3. Received a label value of 5"),
        (lambda m, x, y: m.test_on_batch(x, y + 2), r"^Labels must be integers .* 3. Received a label value of 5"),
        (lambda m, x, y: m.fit(x, y.astype(str), class_weight={0: 2.0}), r"^Labels must be numbers.*Received: text"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*input ran out of data")
def test_errors_of_training(call: Any, message: str) -> None:
    model = distiller(small_network(8), small_network(), [Term(SP())])
    x, y = images(8)
    y[0] = 3
    with pytest.raises(ValueError, match=message):
        call(model, x, y)


def test_labels_of_several_outputs_for_a_term_are_refused() -> None:
    def network() -> keras.Model:
        image = keras.Input(IMAGE_SHAPE)
        x = keras.layers.Flatten()(image)
        return keras.Model(image, {name: keras.layers.Dense(CLASSES, name=name)(x) for name in ("one", "other")})

    term = Term(losses.DecoupledDistillation(), teacher="one", student="one")
    model, (x, y) = Distiller(network(), network(), [term]), images(8)
    model.compile("sgd", {"one": cross_entropy(), "other": cross_entropy()})
    message = (
        r"'decoupled_distillation' needs one array of labels. Received: 2, for several outputs. Leave the term out"
    )
    with pytest.raises(ValueError, match=message):
        model.fit(x, {"one": y, "other": y}, verbose=0)


@pytest.mark.parametrize("layers", [("stage1", "stage2"), ["pooling", "pooling"], None])
@pytest.mark.parametrize("loss", [losses.RelationalDistance, losses.Hint, losses.Projection, KD])
def test_several_layers_for_a_loss_over_one_are_refused(loss: Any, layers: Any, monkeypatch: Any) -> None:
    if layers is None:
        monkeypatch.setattr(loss, "default_tap", "all_stages")
    names = ", ".join(layers or ("stage1", "stage2"))
    message = (
        rf"The term 'mine' compares one layer .* {loss.__name__} .* Received: {names} .* {names} .*a term for each"
    )
    with pytest.raises(ValueError, match=message) as caught:
        Distiller(small_network(8), small_network(4), [Term(loss(), 1.0, layers, layers, "mine")])
    assert "\n" not in str(caught.value)


def batches(x: np.ndarray, y: np.ndarray, size: int) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(size)


def test_a_last_batch_of_one_is_no_error() -> None:
    model = distiller(small_network(8), small_network(), [Term(SP())])
    assert np.isfinite(model.fit(*images(9), batch_size=4, verbose=0).history["loss"]).all()


@pytest.mark.parametrize("terms", [[], [Term(SP())]], ids=["labels", "similarity"])
def test_a_loss_that_is_not_finite_stops_and_keeps_what_was_saved(terms: list[Term], tmp_path: Path) -> None:
    student = small_network()
    model = distiller(small_network(8), student, terms)
    x, y = images(8)
    saved = tmp_path / "last.weights.h5"
    save = keras.callbacks.ModelCheckpoint(saved, save_weights_only=True)
    model.fit(x, y, verbose=0, callbacks=save)
    good = saved.read_bytes()
    kernel = student.get_layer("conv1").kernel
    kernel.assign(kernel * np.nan)
    with pytest.raises(
        FloatingPointError, match=r"not finite in epoch 1, batch 1: .*student_loss, .*loss, gradient\. .*Lower"
    ):
        model.fit(x, y, verbose=0, callbacks=[save])
    assert saved.read_bytes() == good


@pytest.mark.parametrize("replicas", [1, 2])
def test_masked_labels_are_refused_with_several_replicas(replicas: int) -> None:
    """Keras divides by the labels that count, of which each replica has a number of its own."""
    devices = SimpleNamespace(worker_devices=[f"CPU:{index}" for index in range(replicas)])
    strategy: Any = SimpleNamespace(num_replicas_in_sync=replicas, extended=devices)
    optimizer = keras.optimizers.SGD()
    optimizer._distribution_strategy = strategy
    masked = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    check = partial(strategy_checks.check_compiled, strategy, optimizer, jit_compile=False, steps_per_execution=1)
    check([("`loss`", keras.losses.SparseCategoricalCrossentropy()), ("`loss`", "mse")])
    message = r"With several replicas, `loss` must count every label.*Received: ignore_class=-1\. Leave"
    with contextlib.nullcontext() if replicas == 1 else pytest.raises(ValueError, match=message):
        check([("`loss`", masked)])


def test_nothing_to_train_before_the_taps_is_told() -> None:
    student = small_network()
    for layer in student.layers:
        layer.trainable = layer.name == "logits"
    model = distiller(small_network(8), student, [Term(SP())], student_loss_weight=0)
    with pytest.raises(
        ValueError, match=r"student_loss_weight=0 .* weight before a layer .* none, for similarity_preser"
    ):
        model.fit(*images(8), verbose=0)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (
            Term(losses.VariationalInformation(), 1.0, "pooling", "pooling"),
            r"'variational_information' .* \(None, 4\): .*needs",
        ),
        (Term(losses.Hint(), 1.0, "rows", "rows", "mine"), r"'mine' .* \(None, 16, 4\): .*features.*None, 16, 4"),
        (
            Term(losses.Hint(), 1.0, "stage2", "stage2", adapter=keras.layers.Conv2D(8, 9)),
            r"'hint' .* \(None, 4, 4, 4\): ",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_told_with_its_term(term: Term, message: str) -> None:
    def with_rows(channels: int) -> keras.Model:
        network = small_network(channels)
        rows = keras.layers.Reshape((16, channels), name="rows")(network.get_layer("stage2").output)
        return keras.Model(network.input, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling1D()(rows)))

    build = with_rows if term.teacher == "rows" else small_network
    with pytest.raises(ValueError, match=r"^The term " + message) as caught:
        Distiller(build(8), build(4), [term])
    assert "\n" not in str(caught.value)


def test_similarity_of_the_tests_is_the_losses() -> None:
    one, other = np.random.default_rng(0).normal(size=(2, 5, 7))
    assert float(losses.SimilarityPreserving(dtype="float64")(one, other)) == pytest.approx(similarity(one, other))


def test_one_replica_of_a_strategy_trains_as_without() -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    assert strategy.num_replicas_in_sync == 1
    with strategy.scope():
        model = distiller(small_network(8), small_network(), [Term(SP())])
    assert np.isfinite(model.fit(*images(8), verbose=0).history["loss"]).all()
    assert np.isfinite(model.train_on_batch(*images(8), return_dict=True)["loss"])


@pytest.mark.filterwarnings("ignore:The student has no trainable weights")
def test_a_loss_that_is_not_finite_where_no_step_is_applied_is_told_at_the_epoch_s_end() -> None:
    student = small_network()
    student.trainable = False
    nothing = lambda y, y_pred: keras.ops.mean(y_pred, -1) * float("nan")  # noqa: E731
    model = distiller(small_network(8), student, [Term(SP())], {"loss": nothing})
    with pytest.raises(FloatingPointError, match=r"not finite in epoch 1: student_loss=nan, loss=nan\."):
        model.fit(*images(8), verbose=0)
