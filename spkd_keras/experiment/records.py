"""The records that runs leave behind them. Imports no TensorFlow."""

import json
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


def damaged(file: Path, reason: object, cure: str = ANEW) -> ExperimentError:
    """Returns the error for a file that is there and does not hold what it should."""
    return ExperimentError(f"{file} is damaged ({reason}). {cure}")
