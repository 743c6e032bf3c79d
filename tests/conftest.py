"""What every test starts from and leaves behind."""

import gc
from collections.abc import Iterator

import keras
import pytest

# `clear_session` collects garbage: what importing TensorFlow leaves for ever need not be searched each time.
gc.freeze()


@pytest.fixture(autouse=True)
def _seed_and_policy() -> Iterator[None]:
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(autouse=True, scope="module")
def _clean_up() -> Iterator[None]:
    """Once a file: the search through all that is alive takes longer than most tests."""
    yield
    keras.backend.clear_session()
