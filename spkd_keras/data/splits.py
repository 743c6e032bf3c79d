"""Train, validation and test."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


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

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        height, width, channels = self.pixels.shape[1:]
        return height, width, channels

    def take(self, indices: np.ndarray) -> "Images":
        """Returns some of the images."""
        return Images(self.pixels[indices], self.labels[indices], self.class_names)


@dataclasses.dataclass(frozen=True, eq=False)
class Photos:
    """Labelled photos of different sizes, encoded as JPEG, PNG, GIF or BMP, and read one by one when they are needed.

    Attributes:
        read: gives the bytes of a photo for a tensor with its number.
        numbers: shape (n,), of the photos among those that `read` knows.
        labels: shape (n,), integers from 0 to classes - 1.
        class_names: one for each class.
        size: side of the square that is cut out of each, in pixels.
        listing: digest of the files' names and sizes, where they are the user's own and may change.
    """

    read: Callable[[Any], Any]
    numbers: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    size: int
    listing: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.size, self.size, 3

    def take(self, indices: np.ndarray) -> "Photos":
        """Returns some of the photos."""
        return dataclasses.replace(self, numbers=self.numbers[indices], labels=self.labels[indices])


AnyImages = Images | Photos


class Splits(NamedTuple):
    """The parts of a data set.

    Attributes:
        train: to train on.
        validation: to choose hyper-parameters by; None if nothing is held out.
        test: to report, read once.
        origin: where each part comes from, in words.
    """

    train: AnyImages
    validation: AnyImages | None
    test: AnyImages
    origin: dict[str, str | None]

    def digest(self) -> str:
        """Returns a digest by which runs know each other's images: labels and pixels; of photos, what their files say.

        Photos are not read for it: those of TFDS are those of their version, a user's are known by name and size.
        """
        digest = hashlib.sha256()
        for images in (self.train, self.validation, self.test):
            if images is None:
                continue
            known = images.pixels if isinstance(images, Images) else images.numbers
            digest.update(f"{images.image_shape} {getattr(images, 'listing', '')} {images.class_names}".encode())
            digest.update(np.ascontiguousarray(images.labels, np.int64).data)
            digest.update(np.ascontiguousarray(known).data)
        return digest.hexdigest()[:32]


def check_images(images: AnyImages, name: str) -> None:
    """Checks what a loader gives.

    Raises:
        ValueError: if there are no images, pixels are not uint8 of four dimensions, or labels are out of range.
    """
    if len(images) == 0:
        raise ValueError(f"{name} has no images.")
    if isinstance(images, Images):
        pixels, labels = images.pixels, images.labels
        if pixels.ndim != 4 or pixels.dtype != np.uint8 or labels.shape != (len(pixels),):
            raise ValueError(
                f"{name} must have uint8 pixels of shape (n, height, width, channels) and labels of shape (n,). "
                f"Received: {pixels.dtype} pixels of shape {pixels.shape} and labels of shape {labels.shape}."
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


def held_out(images: AnyImages, fraction: float, name: str, seed: int = 0) -> tuple[AnyImages, AnyImages]:
    """Divides images into a rest and a fraction, stratified by class.

    Args:
        images: to divide.
        fraction: between 0 and 1.
        name: of the fraction, for the message.
        seed: of the choice. The same for all runs that are compared, and for their teacher, so that no run's held-out
            images are another's training images.

    Returns:
        The rest and the fraction.

    Raises:
        ValueError: if one of them would lack a class that the images have.
    """
    from sklearn.model_selection import train_test_split

    try:
        rest, part = train_test_split(
            np.arange(len(images)), test_size=fraction, stratify=images.labels, random_state=seed
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
