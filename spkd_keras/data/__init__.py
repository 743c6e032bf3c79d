"""Data sets: uint8 images and integer labels, split and batched in an order that can be repeated."""

from spkd_keras.data.augmentation import Augmentation
from spkd_keras.data.catalog import DATASETS, load
from spkd_keras.data.digits import digits
from spkd_keras.data.pipeline import (
    EpochClock,
    batch_places,
    check_augmentation,
    evaluation_batches,
    training_batches,
    view_batches,
)
from spkd_keras.data.splits import AnyImages, Images, Photos, Splits, check_images, held_out
from spkd_keras.prefetching import prefetched

__all__ = [
    "DATASETS",
    "AnyImages",
    "Augmentation",
    "EpochClock",
    "Images",
    "Photos",
    "Splits",
    "batch_places",
    "check_augmentation",
    "check_images",
    "digits",
    "evaluation_batches",
    "held_out",
    "load",
    "prefetched",
    "training_batches",
    "view_batches",
]
