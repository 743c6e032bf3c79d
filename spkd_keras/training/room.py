"""Whether a folder can have what is to be written to it."""

import os
import shutil
from pathlib import Path

from spkd_keras.training.findings import Finding


def not_writable(folder: Path) -> str | None:
    """Returns why no files can be written to a folder, which may have to be made; None if they can."""
    place = _existing(folder)
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return None
    return f"{place} is {'not writable' if place.is_dir() else 'a file'}"


def room(needed: int, out: Path) -> list[Finding]:
    """Returns what is to be said of the free space on the disk of a folder, of which so many bytes are needed."""
    place = _existing(out)
    free = shutil.disk_usage(place).free
    if needed <= free:
        return []
    found = f"the runs need {needed / 1e6:,.0f} MB and {place} has {free / 1e6:,.0f} MB free."
    return [Finding("stop", "disk", found, "Make room, or choose another folder with --out.")]


def _existing(path: Path) -> Path:
    """Returns the nearest parent that exists, or the path itself."""
    return next(folder for folder in [path.absolute(), *path.absolute().parents] if folder.exists())
