"""What every test starts from and leaves behind."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import pytest
from tensorflow.python.framework import config

from spkd_keras.experiment import Experiment, load_experiment

# `clear_session` collects garbage: what importing TensorFlow leaves for ever need not be searched each time.
gc.freeze()


@pytest.fixture(autouse=True)
def _seed_and_policy() -> Iterator[None]:
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(autouse=True)
def _determinism() -> Iterator[None]:
    """A run makes the process deterministic, and Keras then drops XLA; TensorFlow 2.21 has no public way back."""
    yield
    config.disable_op_determinism()


@pytest.fixture(autouse=True, scope="module")
def _clean_up() -> Iterator[None]:
    """Once a file: the search through all that is alive takes longer than most tests."""
    yield
    keras.backend.clear_session()


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Experiment]:
    """Loads text as the experiment file `tried.yaml`."""

    def load_text(text: str, *overrides: str) -> Experiment:
        file = tmp_path / "tried.yaml"
        file.write_text(text, encoding="utf-8")
        return load_experiment(file, overrides)

    return load_text


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing names other processes of a training."""
    for name in [name for name in os.environ if name == "TF_CONFIG" or name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    return monkeypatch
