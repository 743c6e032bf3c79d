"""What every test starts from and leaves behind."""

import gc
from collections.abc import Iterator

import keras
import pytest

# `clear_session` collects garbage: what importing TensorFlow leaves for ever need not be searched each time.
gc.freeze()


@pytest.fixture(autouse=True)
def _seed_and_clean_up() -> Iterator[None]:
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    keras.backend.clear_session()
