"""Train, validation and test."""

import dataclasses
from typing import NamedTuple

import numpy as np

# Of the held-out part and of the used fraction. Fixed, so that no run's validation images were another's (or the
# teacher's) training images.
SPLIT_SEED = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Labelled images.

    Attributes:
        pixels: shape (n, height, width, channels), uint8.
        labels: shape (n,), integers from 0 to classes - 1.
        class_names: one for each class.
    """

    pixels: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "Images":
        """Returns some of the images."""
        return Images(self.pixels[indices], self.labels[indices], self.class_names)


class Splits(NamedTuple):
    """The parts of a data set.

    Attributes:
        train: to train on.
        validation: to choose hyper-parameters by; None if nothing is held out.
        test: to report, read once.
    """

    train: Images
    validation: Images | None
    test: Images


def check_images(images: Images, name: str) -> None:
    """Checks what a loader gives.

    Raises:
        ValueError: if there are no images, pixels are not uint8 of four dimensions, or labels are out of range.
    """
    if len(images) == 0:
        raise ValueError(f"{name} has no images.")
    pixels, labels = images.pixels, images.labels
    if pixels.ndim != 4 or pixels.dtype != np.uint8 or labels.shape != (len(pixels),):
        raise ValueError(
            f"{name} must have uint8 pixels of shape (n, height, width, channels) and labels of shape (n,). Received: "
            f"{pixels.dtype} pixels of shape {pixels.shape} and labels of shape {labels.shape}."
        )
    classes = len(images.class_names)
    if not np.issubdtype(images.labels.dtype, np.integer):
        raise ValueError(f"{name} must have integer labels. Received: {images.labels.dtype}.")
    low, high = images.labels.min(), images.labels.max()
    if low < 0 or high >= classes:
        raise ValueError(
            f"{name} must have labels from 0 to {classes - 1}, one for each of its {classes} classes. "
            f"Received: labels from {low} to {high}."
        )


def split(train: Images, test: Images, validation: float, train_fraction: float) -> Splits:
    """Holds out a part of the training images and takes a fraction of the others, both stratified by class.

    Args:
        train: all training images.
        test: all test images, left as they are.
        validation: fraction of `train` to hold out, 0 for none.
        train_fraction: fraction of the others to use.

    Raises:
        ValueError: if a part would have fewer images than classes.
    """
    held_out = None
    if validation > 0:
        train, held_out = _stratified(train, validation, "validation")
    if train_fraction < 1:
        _, train = _stratified(train, train_fraction, "train_fraction")
    return Splits(train, held_out, test)


def _stratified(images: Images, fraction: float, name: str) -> tuple[Images, Images]:
    """Returns the rest and the fraction."""
    from sklearn.model_selection import train_test_split

    try:
        rest, part = train_test_split(
            np.arange(len(images)), test_size=fraction, stratify=images.labels, random_state=SPLIT_SEED
        )
        classes = [len(np.unique(images.labels[indices])) for indices in (rest, part)]
        if min(classes) < len(np.unique(images.labels)):
            raise ValueError(f"The parts would have images of {classes[0]} and {classes[1]} classes.")
    except ValueError as error:
        raise ValueError(
            f"`{name}` must leave an image of each of the {len(images.class_names)} classes on both sides "
            f"of the split of {len(images)} images. Received: {name}={fraction}. {error}"
        ) from error
    return images.take(rest), images.take(part)
