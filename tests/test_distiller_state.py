"""Saving, loading, resuming; precisions; and what is refused."""

import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import CLASSES, IMAGE_SHAPE, assert_same_weights, cross_entropy, images, small_network, weights
from test_distiller import KD, SP, NeedsAdapter, distiller, similarity

from spkd_keras import Distiller, Term, losses, models, optimizers


def full_distiller(teacher: keras.Model, **compiled: Any) -> Distiller:
    """Everything that has a state: dropout, BatchNormalization, momentum, an adapter, two terms."""
    optimizer = optimizers.CoupledSGD(0.1, nesterov=True, weight_decay=5e-4, use_ema=True)
    settings = {"optimizer": optimizer, "metrics": ["accuracy"], **compiled}
    terms = [Term(SP(), 30.0), Term(KD(), 0.5), Term(NeedsAdapter(), 0.1)]
    return distiller(teacher, small_network(dropout=0.3), terms, settings)


def test_a_saved_distiller_goes_on_exactly_where_it_stopped(tmp_path: Path) -> None:
    x, y = images(20)
    teacher = small_network(8, name="teacher_network")
    model = full_distiller(teacher)
    model.fit(x, y, batch_size=5, epochs=2, verbose=0)
    model.term_weights["similarity_preserving"].assign(7.0)
    model.save(tmp_path / "distiller.keras")

    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert loaded.teacher is None
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    logs = [m.evaluate(x, y, verbose=0, return_dict=True) for m in (loaded, model)]
    assert logs[0] == logs[1]
    assert loaded.term_weights["similarity_preserving"].numpy() == 7.0
    with pytest.raises(ValueError, match=r"need the teacher, which is not saved .* distiller.teacher = teacher"):
        loaded.fit(x, y, verbose=0)

    loaded.teacher = teacher
    for each in (model, loaded):
        each.fit(x, y, batch_size=5, epochs=2, verbose=0, shuffle=False)
    assert_same_weights(model, loaded)
    assert_same_weights(model.adapters["needs_adapter"], loaded.adapters["needs_adapter"])
    for one, other in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=one.path)


def test_a_loaded_distiller_exports_at_once(tmp_path: Path) -> None:
    x, _ = images(4)
    model = full_distiller(small_network(8))
    model.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    loaded.export(tmp_path / "exported", verbose=False)
    served = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_allclose(
        served.serve(tf.constant(x, "float32")), model.predict(x, verbose=0), rtol=1e-5, atol=1e-5
    )
    exported = tf.train.load_checkpoint(str(tmp_path / "exported" / "variables" / "variables"))
    sizes = {name: int(np.prod(shape)) for name, shape in exported.get_variable_to_shape_map().items()}
    own = sum(int(np.prod(weight.shape)) for weight in model.student.weights)
    # Keras 3.15 writes each variable twice; the dropout's random state and the object graph are a few numbers more.
    assert sum(size for name, size in sizes.items() if "OBJECT_GRAPH" not in name) <= 2 * own + 16


def test_no_file_holds_the_teacher(tmp_path: Path) -> None:
    teacher = small_network(64)
    model = distiller(teacher, small_network(4), [Term(SP())])
    model.fit(*images(8), verbose=0)
    model.save(tmp_path / "distiller.keras")
    model.save_weights(tmp_path / "distiller.weights.h5")
    teacher_bytes = 4 * teacher.count_params()
    with zipfile.ZipFile(tmp_path / "distiller.keras") as archive:
        archive.extract("model.weights.h5", tmp_path)
        assert "teacher_fingerprint" in archive.read("config.json").decode()
        assert '"filters": 64' not in archive.read("config.json").decode()
    for file in (tmp_path / "model.weights.h5", tmp_path / "distiller.weights.h5"):
        shapes: dict[str, tuple[int, ...]] = {}

        def note(name: str, node: Any, shapes: dict[str, tuple[int, ...]] = shapes) -> None:
            if isinstance(node, h5py.Dataset):
                shapes[name] = node.shape

        with h5py.File(file) as content:
            content.visititems(note)
        assert not [name for name in shapes if "teacher" in name]
        assert not [shape for shape in shapes.values() if 64 in shape]
        assert file.stat().st_size < teacher_bytes
    assert {id(v) for v in model.variables}.isdisjoint(id(v) for v in teacher.variables)


def test_another_teacher_is_refused_and_the_same_one_from_a_file_is_taken(tmp_path: Path) -> None:
    teacher = small_network(8, name="right")
    model = distiller(teacher, small_network(), [Term(SP())])
    model.save(tmp_path / "distiller.keras")
    teacher.save(tmp_path / "teacher.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    with pytest.raises(ValueError, match=r"must be the one that this student was distilled from.*Received: 'wrong'"):
        loaded.teacher = small_network(8, name="wrong")
    assert loaded.teacher is None
    loaded.teacher = keras.saving.load_model(tmp_path / "teacher.keras")
    loaded.fit(*images(8), verbose=0)
    loaded.teacher = None
    with pytest.raises(ValueError, match="need the teacher"):
        loaded.train_on_batch(*images(8))


def test_fingerprints() -> None:
    model = small_network(8)
    digest = models.fingerprint(model)
    assert len(digest) == 32
    model.trainable = False
    assert models.fingerprint(model) == digest
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    assert models.fingerprint(copy) == digest
    kernel = model.get_layer("conv1").kernel
    kernel.assign(kernel + np.eye(3)[:, :, None, None] * 1e-6)
    assert models.fingerprint(model) != digest

    # Two networks with the same weights and other preprocessing compute something else.
    shape = {"image_shape": IMAGE_SHAPE, "num_classes": CLASSES}
    one, other = models.wide_resnet(10, 1, **shape), models.wide_resnet(10, 1, mean=100.0, std=50.0, **shape)
    other.set_weights(one.get_weights())
    assert models.fingerprint(one) != models.fingerprint(other)


class KilledError(Exception):
    """Stands for the end of the process."""


class KillAfter(keras.callbacks.Callback):
    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == self.epoch:
            raise KilledError


@pytest.mark.slow
def test_resuming_with_keras_backup_is_exact(tmp_path: Path) -> None:
    x, y = images(20)
    keras.utils.set_random_seed(1)
    teacher = small_network(8)

    def train(kill: bool, backup: Path) -> Distiller:
        keras.utils.set_random_seed(2)
        model = full_distiller(teacher)
        callbacks = [keras.callbacks.BackupAndRestore(backup)] + [KillAfter(2)] * kill
        model.fit(x, y, batch_size=5, epochs=4, verbose=0, shuffle=False, callbacks=callbacks)
        return model

    uninterrupted = train(False, tmp_path / "one")
    with pytest.raises(KilledError):
        train(True, tmp_path / "two")
    resumed = train(False, tmp_path / "two")
    assert_same_weights(uninterrupted, resumed)
    for one, other in zip(uninterrupted.optimizer.variables, resumed.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=one.path)


def test_weights_of_another_distiller_are_refused(tmp_path: Path) -> None:
    teacher = small_network(8)
    distiller(teacher, small_network(), [Term(SP())]).save_weights(tmp_path / "one.weights.h5")
    other = distiller(teacher, small_network(), [Term(SP()), Term(KD())])
    with pytest.raises(ValueError, match=r"holds 1 variables of a Distiller and this one has 2.*with the same terms"):
        other.load_weights(tmp_path / "one.weights.h5")


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


def test_loss_scaling_can_be_declined() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    model = Distiller(None, small_network())
    model.compile("sgd", cross_entropy(), auto_scale_loss=False)
    assert not isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)


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
    logs = model.fit(x, y, batch_size=8, epochs=30, verbose=0).history
    assert np.isfinite(logs["loss"]).all()
    if keeps_stepping:
        assert int(model.optimizer.iterations) == 30
        assert not np.array_equal(before[0], weights(student)[0])
    assert (float(model.optimizer.dynamic_scale) == scale) == keeps_stepping


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
    ],
)
@pytest.mark.filterwarnings("ignore:.*input ran out of data")
def test_errors_of_training(call: Any, message: str) -> None:
    model = distiller(small_network(8), small_network(), [Term(SP())])
    x, y = images(8)
    y[0] = 3
    with pytest.raises(ValueError, match=message):
        call(model, x, y)


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
    with pytest.raises(FloatingPointError, match=r"not finite in epoch 1: .*student_loss=nan, loss=nan. Lower the"):
        model.fit(x, y, verbose=0, callbacks=[save])
    assert saved.read_bytes() == good


def test_keras_still_tracks_models_before_property_setters() -> None:
    """When this fails, `StudentKeeper` need not keep the teacher out of sight."""

    class Holder(keras.Model):
        @property
        def teacher(self) -> Any:
            return self.__dict__.get("_held")

        @teacher.setter
        def teacher(self, value: Any) -> None:
            self.__dict__["_held"] = value

    holder = Holder()
    holder.teacher = small_network()
    assert holder.weights


def test_random_state_is_still_left_out_by_keras(tmp_path: Path) -> None:
    """When this fails, `StudentKeeper` need not save it."""
    model = small_network(dropout=0.5)
    (state,) = {id(v): v for v in model.variables if id(v) not in {id(w) for w in model.weights}}.values()
    state.assign(state + 5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    (loaded_state,) = [v for v in loaded.variables if id(v) not in {id(w) for w in loaded.weights}]
    assert not np.array_equal(loaded_state.numpy(), state.numpy())


def test_similarity_of_the_tests_is_the_losses() -> None:
    one, other = np.random.default_rng(0).normal(size=(2, 5, 7))
    assert float(losses.SimilarityPreserving(dtype="float64")(one, other)) == pytest.approx(similarity(one, other))


def test_several_replicas_are_refused_rather_than_given_another_objective() -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    assert strategy.num_replicas_in_sync == 1
    with strategy.scope():
        model = distiller(small_network(8), small_network(), [Term(SP())])
    x, y = images(8)
    assert np.isfinite(model.fit(x, y, verbose=0).history["loss"]).all()

    class TwoReplicas:
        num_replicas_in_sync = 2

    original, tf.distribute.get_strategy = tf.distribute.get_strategy, TwoReplicas
    try:
        with pytest.raises(NotImplementedError, match=r"trains on one replica. Received: a strategy with several"):
            model.train_step((x, y))
    finally:
        tf.distribute.get_strategy = original
