"""Picture files to classify: which are meant, and reading them one by one."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from spkd_keras.data.augmentation import decode
from spkd_keras.data.folder import NOT_READ, SUFFIXES, within
from spkd_keras.experiment import ExperimentError
from spkd_keras.export.serving import DECODED_CHANNELS, read_picture

KINDS = {1: "grey", 2: "grey with transparency", 3: "colour", 4: "colour with transparency"}
NO_PICTURE = "is not a JPEG, PNG, GIF or BMP that can be read"


class UnreadablePicture(ValueError):  # noqa: N818  (it says what is the matter with a file)
    """A file that is no picture, or not one for the network."""


def find_pictures(patterns: Sequence[str | Path]) -> tuple[list[Path], list[dict[str, str]]]:
    """Lists files: those that are named, those that fit a pattern with `*`, and the pictures in and under a folder.

    Returns:
        The files, and what is wrong with names, patterns and folders that give none.

    Raises:
        ExperimentError: if none gives any.
    """
    found: dict[Path, None] = {}
    problems: list[dict[str, str]] = []
    for pattern in map(str, patterns):
        try:
            files, wrong = _files(pattern)
        except OSError as error:  # a name that is too long
            files, wrong = [], {pattern: f"cannot be read: {error.strerror}"}
        problems += [{"file": file, "problem": problem} for file, problem in wrong.items()]
        found |= dict.fromkeys(files)
    if not found:
        said = "\n".join(f"{problem['file']} {problem['problem']}." for problem in problems)
        raise ExperimentError(said or "Give at least one picture, a folder or a pattern.")
    return list(found), problems


def _files(pattern: str) -> tuple[list[Path], dict[str, str]]:
    """Returns the files that one name or pattern means, and what is wrong: with it, or with folders below it."""
    path = Path(pattern)
    if path.is_dir():
        refused: list[OSError] = []  # what `rglob` would pass over
        inside = within(path, refused.append)
        files = [file for file in inside if file.suffix.lower() in SUFFIXES]
        wrong = {error.filename: f"cannot be read: {error.strerror}" for error in refused}
        wrong |= {str(file): NO_PICTURE for file in inside if file.suffix.lower() in NOT_READ}
        return files, wrong if files or wrong else {pattern: f"has no pictures ({', '.join(SUFFIXES)})"}
    if path.exists():
        return [path], {}
    fitting = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    files = [file for file in fitting if not os.path.isdir(file)]
    if files:
        return files, {}
    problem = "fits folders alone: give one of them, or a pattern for files" if fitting else "does not exist"
    return [], {pattern: problem}


def read_file(path: Path, image_shape: tuple[int, int, int], resize: str | None) -> np.ndarray:
    """Reads one picture.

    A grey or partly transparent picture is taken by a network for colour, as training takes it.

    Args:
        path: of a JPEG, PNG, GIF or BMP.
        image_shape: (height, width, channels) that the network takes.
        resize: "crop" or "stretch", as in `Metadata`; None takes pictures of the very size alone.

    Returns:
        Shape `image_shape`, uint8.

    Raises:
        UnreadablePicture: if it cannot be read, or has another size, or colours for a network that takes grey.
    """
    height, width, channels = image_shape
    try:
        encoded = path.read_bytes()
        pixels = decode(encoded, channels=0)
        shape = tuple(pixels.shape)
    except OSError as error:
        raise UnreadablePicture(f"cannot be read: {error.strerror}") from error
    except tf.errors.OpError as error:
        raise UnreadablePicture(NO_PICTURE) from error
    if channels not in DECODED_CHANNELS:
        raise ExperimentError(f"Pictures have 1 or 3 channels. Received: a network for {channels}.")
    if shape[2] > channels and channels == 1:
        raise UnreadablePicture(f"is {KINDS[shape[2]]}, {shape[2]} channels; the network takes grey, 1 channel")
    if resize is None and shape[:2] != (height, width):
        raise UnreadablePicture(
            f"has {shape[0]}x{shape[1]} pixels; the network takes {height}x{width}: give --resize crop or stretch"
        )
    if channels == shape[2] == 1:  # which TensorFlow refuses of a BMP where it is asked for
        encoded = tf.io.encode_png(pixels).numpy()
    try:
        return np.asarray(read_picture(encoded, image_shape, resize or "stretch"))
    except tf.errors.OpError as error:  # a BMP that TensorFlow decodes in its own number of channels alone
        raise UnreadablePicture(f"is {KINDS[shape[2]]} and cannot be read in {channels} channels") from error
