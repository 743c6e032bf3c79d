"""Data sets: uint8 images and integer labels, split and batched in an order that can be repeated."""

from collections.abc import Callable

from spkd_keras.data.digits import digits
from spkd_keras.data.pipeline import EpochClock, evaluation_batches, training_batches
from spkd_keras.data.splits import Images, Splits, check_images, split

DATASETS: dict[str, Callable[[], tuple[Images, Images]]] = {"digits": digits}

__all__ = [
    "DATASETS",
    "EpochClock",
    "Images",
    "Splits",
    "check_images",
    "digits",
    "evaluation_batches",
    "split",
    "training_batches",
]
