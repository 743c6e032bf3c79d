"""What Keras and others do that the package works round. Where one of these fails, what is named there can go."""

import contextlib
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import images, small_network
from packaging.requirements import Requirement

from spkd_keras.prefetching import prefetched


def test_a_loss_of_keras_still_forgets_its_dtype() -> None:
    """`DistillationLoss.get_config` adds it."""
    loss = keras.losses.MeanSquaredError(dtype="float64")
    assert "dtype" not in keras.losses.Loss.get_config(loss)


def test_keras_still_saves_variables_twice(tmp_path: Path) -> None:
    """`write_saved_model` calls `tf.saved_model.save` itself."""
    model = small_network()
    model.export(tmp_path / "exported", verbose=False)
    saved = tf.train.load_checkpoint(str(tmp_path / "exported" / "variables" / "variables"))
    sizes = {name: int(np.prod(shape)) for name, shape in saved.get_variable_to_shape_map().items()}
    own = sum(int(np.prod(weight.shape)) for weight in model.weights)
    assert sum(size for name, size in sizes.items() if "OBJECT_GRAPH" not in name) >= 2 * own


def test_a_loss_scale_still_begins_anew_when_it_is_built_again() -> None:
    """`Distiller._compile` builds an optimizer once."""
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), initial_scale=8.0)
    optimizer.build([keras.Variable(1.0)])
    optimizer.dynamic_scale.assign(2.0)
    before = optimizer.dynamic_scale
    optimizer.build([keras.Variable(1.0)])
    assert optimizer.dynamic_scale is not before or float(optimizer.dynamic_scale.value) == 8.0


def test_a_variable_is_still_rounded_before_a_mixed_layer_sees_it() -> None:
    """`FoldedConvolution` reads it past its `value`."""
    seen = []

    class Seeing(keras.layers.Dense):
        def call(self, x: tf.Tensor) -> tf.Tensor:
            seen.append(tf.convert_to_tensor(self.kernel.value).dtype)
            return super().call(x)

    Seeing(2, dtype="mixed_bfloat16")(np.zeros((1, 3)))
    assert seen == [tf.bfloat16]


def test_normalization_still_keeps_constants_of_its_weights() -> None:
    """`settle` calls `finalize_state`."""
    layer = keras.layers.Normalization(mean=None)
    layer.build((None, 2))
    layer.finalize_state()
    layer.set_weights([np.full(2, 5.0), np.ones(2), np.array(1)])
    assert np.abs(layer(np.full((1, 2), 5.0))).max() > 1


def test_an_efficientnet_v2_still_takes_no_name() -> None:
    """`keras_application` names it afterwards."""
    with pytest.raises(KeyError):
        keras.applications.EfficientNetV2B0(weights=None, input_shape=(32, 32, 3), include_top=False, name="backbone")


def test_saving_a_variable_still_warns(tmp_path: Path) -> None:
    """The filter in setup.cfg."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        small_network().save_weights(tmp_path / "network.weights.h5")
    assert any("__array__ implementation doesn't accept a copy keyword" in str(warning.message) for warning in caught)


@pytest.mark.parametrize(
    ("package", "needed"), [("tensorflow-datasets", "importlib_resources"), ("keras-tuner", "tensorboard")]
)
def test_what_is_needed_is_still_not_declared(package: str, needed: str) -> None:
    """The requirement in setup.cfg."""
    declared = [Requirement(line) for line in metadata.requires(package) or []]
    always = [each for each in declared if each.marker is None or each.marker.evaluate({"extra": ""})]
    assert needed not in [each.name.replace("-", "_") for each in always]


def test_keras_still_saves_what_dir_finds(tmp_path: Path) -> None:
    """`StudentKeeper.__dir__` hides the teacher, which its `__setattr__` has kept from being tracked."""

    class Holder(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.student = small_network()
            self.built = True

        @property
        def teacher(self) -> keras.Model:
            return self.__dict__["_held"]

        def __setattr__(self, name: str, value: object) -> None:
            (object if name == "_held" else super()).__setattr__(name, value)  # type: ignore[misc]

        def call(self, x: object) -> object:
            return self.student(x)

    holder, teacher = Holder(), small_network(64)
    object.__setattr__(holder, "_held", teacher)
    assert len(holder.weights) == len(holder.student.weights)
    holder(images(2)[0])
    holder.save_weights(tmp_path / "holder.weights.h5")
    assert (tmp_path / "holder.weights.h5").stat().st_size > 4 * teacher.count_params()


@pytest.fixture
def one_core() -> Iterator[None]:
    """All threads of this process on one core, where whoever is woken finds it taken."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("needs Linux, to choose the cores")
    cores = os.sched_getaffinity(0)
    threads = Path("/proc/self/task")

    def keep_to(those: set[int]) -> None:
        for thread in threads.iterdir():
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.sched_setaffinity(int(thread.name), those)

    try:
        keep_to({min(cores)})
        yield
    finally:
        keep_to(cores)


def waits(batches: tf.data.Dataset, tries: int) -> bool:
    """Whether deleting an iterator that was used for 0.7 s takes long, in one of so many tries."""

    def seconds_to_end() -> float:
        iterator = iter(batches.repeat())
        start = time.perf_counter()
        while time.perf_counter() < start + 0.7:
            next(iterator)
        start = time.perf_counter()
        del iterator
        return time.perf_counter() - start

    return any(seconds_to_end() > 0.3 for _ in range(tries))


@pytest.mark.usefixtures("one_core")
def test_the_end_of_an_iterator_still_waits_until_autotuning_wakes_up() -> None:
    """`prefetched` turns it off. Here it sleeps from 0.63 s to 1.27 s, and misses most of its calls."""
    numbers = tf.data.Dataset.range(100).map(lambda number: number + 1, tf.data.AUTOTUNE)
    assert waits(numbers.prefetch(tf.data.AUTOTUNE), tries=10)
    assert not waits(prefetched(numbers), tries=3)


@pytest.mark.slow
def test_no_pipeline_loses_its_threads_where_operations_must_be_deterministic(tmp_path: Path) -> None:
    """Where the control keeps them, `EpochClock.read` and `stateful=False` can go."""
    script = Path(__file__).with_name("deterministic_pipelines.py")
    said = {"TF_CPP_MIN_LOG_LEVEL": "0", "TF_CPP_VMODULE": "make_deterministic=2"}
    said = {**os.environ, **said, "TFDS_DATA_DIR": str(tmp_path / "prepared")}
    done = subprocess.run([sys.executable, script, tmp_path], env=said, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    _, *parts = done.stderr.split("--- ")
    lose = {part.partition("\n")[0]: "introduces nondeterminism through" in part for part in parts}
    assert [name for name in lose if lose[name]] == ["control"]
    assert len(lose) == 15
