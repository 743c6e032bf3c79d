"""Data sets that TFDS does not have, as TFDS builders; importing them registers them."""

from spkd_keras.data.builders.cinic10 import Cinic10
from spkd_keras.data.builders.dtd_folds import DtdFolds

__all__ = ["Cinic10", "DtdFolds"]
