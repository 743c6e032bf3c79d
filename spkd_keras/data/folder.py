"""A user's own photos: a folder for each split, in it one for each class."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import tensorflow as tf

from spkd_keras.data.augmentation import decode
from spkd_keras.data.splits import Photos
from spkd_keras.experiment import walk
from spkd_keras.prefetching import prefetched

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp")
NOT_READ = (".avif", ".heic", ".jfif", ".jp2", ".tif", ".tiff", ".webp")  # to pass over them would be to lose images
SHOWN = 10  # unreadable files that a message names


def image_folder(path: str | Path, size: int) -> tuple[Sequence[str], Callable[[str], Photos]]:
    """Photos in `<path>/<split>/<class>/*.jpg`, or .jpeg, .png, .gif, .bmp.

    Args:
        path: the folder with `train`, `test` and, if there is one, `validation`.
        size: side of the square that is cut out of each photo.

    Returns:
        The names of the splits, and a function that lists the photos of one, after it has decoded each of them once.

    Raises:
        ValueError: if there is no such folder, or one may not be looked into; the function, if the splits' classes
            differ, a class' folder is empty, or photos cannot be read.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise ValueError(f"`path`: the folder does not exist: {root}. A path is relative to where spkd runs.")
    splits = sorted(folder.name for folder in _inside(root) if folder.is_dir()) if root.is_dir() else []
    if "train" not in splits:
        raise ValueError(f"{root} must have the folders train/<class>/ and test/<class>/ with photos in them.")
    class_names = tuple(sorted(_classes(root / "train")))
    if len(class_names) < 2:
        raise ValueError(f"{root / 'train'} must have a folder for each of at least two classes.")

    def photos(split: str) -> Photos:
        files, labels = _files(root / split, class_names)
        _check_readable(files)
        names = tf.constant([os.fsencode(file) for file in files])
        return Photos(
            lambda number: tf.io.read_file(names[number]),
            np.arange(len(files)),
            np.array(labels),
            class_names,
            size,
            _listing(root, files),
        )

    return splits, photos


def printable(file: str | Path) -> str:
    """Returns a file's name as text that can be printed, whatever bytes it is of."""
    return os.fsencode(file).decode("utf-8", "backslashreplace")


def _classes(folder: Path) -> dict[str, Path]:
    """Returns the folders of the classes; hidden ones are other programs'."""
    return {inner.name: inner for inner in _inside(folder) if inner.is_dir() and not inner.name.startswith(".")}


def _inside(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        _refuse(error)


def _refuse(error: OSError) -> NoReturn:
    """Says which folder may not be looked into."""
    raise ValueError(f"The folder {error.filename} cannot be read: {error.strerror}. Make it readable.") from error


def _files(folder: Path, class_names: Sequence[str]) -> tuple[list[Path], list[int]]:
    found = _classes(folder)
    if unknown := sorted(set(found) - set(class_names)):
        raise ValueError(f"{folder} has classes that train has not: {', '.join(unknown)}.")
    files, labels = [], []
    for label, name in enumerate(class_names):
        inside = within(found[name]) if name in found else []
        photos = [file for file in inside if file.suffix.lower() in SUFFIXES and file.is_file()]
        others = [file.name for file in inside if file.suffix.lower() in NOT_READ]
        if others:
            raise ValueError(
                f"{folder / name} has {len(others)} photos in formats that are not read, as {printable(others[0])}. "
                f"Make them {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, or remove them."
            )
        if not photos:
            raise ValueError(f"{folder / name} must have photos ({', '.join(SUFFIXES)}). Received: none.")
        files += photos
        labels += [label] * len(photos)
    return files, labels


def within(folder: Path, refuse: Callable[[OSError], None] | None = None) -> list[Path]:
    """Lists the files in and under a folder, through links.

    Hidden files and folders are other programs'. `refuse` gets the error of one that may not be looked into; without it
    that is an error.
    """
    found = walk(folder, refuse or _refuse, hidden=False)
    return sorted(root / name for root, names in found for name in names if not name.startswith("."))


def _listing(root: Path, files: Sequence[Path]) -> str:
    """Returns a digest of the files' names and sizes."""
    listed = [f"{printable(file.relative_to(root))} {file.stat().st_size}" for file in files]
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()[:32]


def _check_readable(files: Sequence[Path]) -> None:
    """Decodes every file, which takes about as long as an epoch of reading them."""

    def is_readable(name: Any) -> Any:
        return tf.numpy_function(_is_readable, [name], tf.bool, stateful=False)

    names = tf.data.Dataset.from_tensor_slices([os.fsencode(file) for file in files])
    readable = prefetched(names.map(is_readable, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True))
    broken = [printable(file) for file, good in zip(files, readable.as_numpy_iterator(), strict=True) if not good]
    if broken:
        more = f" and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        raise ValueError(
            f"{len(broken)} of {len(files)} photos cannot be read: {', '.join(broken[:SHOWN])}{more}. "
            "Remove or replace them."
        )


def _is_readable(name: bytes) -> bool:
    try:
        decode(tf.io.read_file(name))
    except tf.errors.OpError:
        return False
    return True
