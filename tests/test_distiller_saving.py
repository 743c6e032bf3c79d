"""Saving, loading, handing the teacher back, and resuming."""

import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import CLASSES, IMAGE_SHAPE, NeedsAdapter, assert_same_weights, cross_entropy, images, small_network
from test_distiller import KD, SP, distiller

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


@keras.saving.register_keras_serializable("test_distiller_saving")
class Composite(keras.layers.Layer):
    """A layer made of another one, without a `build` of its own."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.dense = keras.layers.Dense(8)

    def call(self, x: Any) -> Any:
        return self.dense(x)


def test_an_adapter_that_is_made_of_layers_goes_on_exactly_where_it_stopped(tmp_path: Path) -> None:
    teacher, (x, y) = small_network(8), images(8)
    term = Term(losses.Hint(), teacher="stage1", student="stage1", adapter=Composite())
    distiller = Distiller(teacher, small_network(4), [term])
    distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9), cross_entropy())
    distiller.fit(x, y, verbose=0)
    distiller.save(tmp_path / "run.keras")
    loaded = keras.saving.load_model(tmp_path / "run.keras")
    assert len(loaded.adapters["hint"].weights) == 2
    loaded.teacher = teacher
    for one in (distiller, loaded):
        one.fit(x, y, shuffle=False, verbose=0)
    assert_same_weights(distiller, loaded)
    for one, other in zip(distiller.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=one.path)


def test_what_is_excluded_from_weight_decay_stays_so_in_a_file(tmp_path: Path) -> None:
    distiller, (x, y) = Distiller(None, small_network(4)), images(8)
    optimizer = optimizers.CoupledSGD(0.1, momentum=0.9, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "bias"])
    distiller.compile(optimizer, cross_entropy())
    distiller.fit(x, y, verbose=0)
    distiller.save(tmp_path / "run.keras")
    loaded = keras.saving.load_model(tmp_path / "run.keras")
    decayed = [loaded.optimizer._use_weight_decay(variable) for variable in loaded.trainable_variables]
    names = [variable.name for variable in loaded.trainable_variables]
    assert decayed == [name not in ("gamma", "bias") for name in names]
    assert not all(decayed)
    for one in (distiller, loaded):
        one.fit(x, y, shuffle=False, verbose=0)
    assert_same_weights(distiller, loaded)


def test_variables_that_are_excluded_from_weight_decay_one_by_one_are_not_saved_and_it_is_told() -> None:
    optimizer = optimizers.CoupledSGD(weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=[keras.Variable([1.0])])
    with pytest.warns(UserWarning, match="Exclude it by `var_names`"):
        optimizer.get_config()


def test_a_file_keeps_the_dtype_of_a_loss_of_keras() -> None:
    term = Term(keras.losses.MeanSquaredError(dtype="float64"))
    assert Term.from_config(term.get_config()).loss.dtype == "float64"


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


def test_a_file_keeps_where_the_terms_look_and_how_the_teacher_runs(tmp_path: Path) -> None:
    terms = [Term(SP(), 3.0, "stage1", "stage2", "mine"), Term(SP(), 1.0, "stage2", "pooling")]
    model = distiller(small_network(8), small_network(), terms, teacher_dtype="bfloat16", evaluate_terms=True)
    model.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    kept = [[(term.name, term.weight, term.teacher, term.student) for term in each.terms] for each in (model, loaded)]
    assert kept[0] == kept[1]
    assert (loaded.teacher_dtype, loaded.evaluate_terms) == ("bfloat16", True)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_teacher_gets_its_weights_after_the_distiller_was_made(dtype: str | None, tmp_path: Path) -> None:
    """It teaches with them, even a copy of it, and is the one that is handed back."""
    x, y = images(8)
    teacher, late = small_network(8, name="teacher"), small_network(8, name="teacher")
    trained = [weight + 0.1 for weight in teacher.get_weights()]
    values = {}
    for when in ("before", "after", "between"):
        network = teacher if when == "before" else late
        if when == "before":
            network.set_weights(trained)
        keras.utils.set_random_seed(5)
        model = Distiller(network, small_network(), [Term(SP(), 30.0)], teacher_dtype=dtype)
        model.compile(keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        if when == "between":
            model.fit(x, y, batch_size=8, shuffle=False, verbose=0)  # its step is compiled with the copy of before
            network.set_weights([weight - 0.1 for weight in trained])
            model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        network.set_weights(trained)
        values[when] = model.fit(x, y, batch_size=8, shuffle=False, verbose=0).history["similarity_preserving"]
        assert model.teacher_fingerprint == models.fingerprint(network)
    assert values["before"] == values["after"] == values["between"]
    model.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    loaded.teacher = late


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


def test_a_fingerprint_is_of_constants_between_the_layers_too(tmp_path: Path) -> None:
    def scaled(by: Any) -> keras.Model:
        image = keras.Input(IMAGE_SHAPE)
        return keras.Model(image, small_network()(by(image)))

    changes = (
        lambda x: x / 127.5,
        lambda x: x / 255.0,
        lambda x: x / np.float32([1, 2, 4]),
        lambda x: keras.ops.clip(x, 0.0, 1.0),
        lambda x: keras.ops.clip(x, 0.0, 2.0),
    )
    networks = [scaled(by) for by in changes]
    for network in networks:
        network.set_weights(networks[0].get_weights())
    digests = [models.fingerprint(network) for network in networks]
    assert len(set(digests)) == len(changes)
    for network, digest in zip(networks, digests, strict=True):
        network.save(tmp_path / "network.keras")
        assert models.fingerprint(keras.saving.load_model(tmp_path / "network.keras")) == digest


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
        model.fit(x, y, batch_size=5, epochs=4, verbose=0, callbacks=callbacks)
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


def test_keras_still_tracks_models_before_property_setters() -> None:
    """When this fails, `StudentKeeper.__setattr__` can go."""

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
