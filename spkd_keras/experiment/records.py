"""The records that runs leave behind them, and how files are found. Imports no TensorFlow."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from spkd_keras.experiment.problems import ExperimentError

ANEW = "Delete it, and `spkd run` does that run again."


def read_record(file: Path, cure: str = ANEW) -> dict[str, Any] | None:
    """Reads a record, a JSON object.

    Args:
        file: where it is.
        cure: a sentence that says what to do about one that is damaged.

    Returns:
        The record; None if there is no such file.

    Raises:
        ExperimentError: if the file cannot be read, or something else is in it.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ExperimentError(
            f"{file} cannot be read ({error.strerror}). Make it readable, or {cure[0].lower()}{cure[1:]}"
        ) from error
    except ValueError as error:
        raise damaged(file, error, cure) from error
    if not isinstance(content, dict):
        raise damaged(file, f"it is a {type(content).__name__}", cure)
    return content


def walk(folder: Path, refuse: Callable[[OSError], None], hidden: bool = True) -> Iterator[tuple[Path, list[str]]]:
    """Goes through a folder and those in it, also behind links. `Path.rglob` leaves out what it cannot look into.

    Args:
        folder: where to begin.
        refuse: gets the error of a folder that may not be looked into.
        hidden: whether to go into folders whose names begin with a dot.

    Yields:
        Each folder, with the names of the files in it.
    """
    seen = {os.path.realpath(folder)}
    for root, inner, files in os.walk(folder, onerror=refuse, followlinks=True):
        places = {name: os.path.realpath(Path(root, name)) for name in inner if hidden or not name.startswith(".")}
        inner[:] = [name for name, place in places.items() if place not in seen]  # else a link may go round for ever
        seen.update(places.values())
        yield Path(root), files


def damaged(file: Path, reason: object, cure: str = ANEW) -> ExperimentError:
    """Returns the error for a file that is there and does not hold what it should."""
    return ExperimentError(f"{file} is damaged ({reason}). {cure}")
