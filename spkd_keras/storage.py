"""Files that are there whole or not at all, folders that can be written to, and one process at a time in them."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from spkd_keras.experiment import ClearError, ExperimentError
from spkd_keras.messages import one_line

PARTIAL = ".partial-"  # before the name of what is being written


class StorageError(ClearError, OSError):
    """A file cannot be written. The message is one clear line; what was there before is intact."""


class BusyError(ExperimentError):
    """Another process is at a folder or a file. The next one may be free."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder, which is made if need be; the lock dies with this process.

    Raises:
        ExperimentError: if the folder cannot be written to.
        BusyError: if another process is at it.
    """
    check_writable(folder)
    busy = f"{folder} is being run by another process. Wait for it, or stop it and give the same command again."
    with alone(folder / ".lock", 0, busy):
        yield


@contextmanager
def alone(file: Path, seconds: float, refusal: str) -> Iterator[None]:
    """Keeps other processes, and other threads, from what a file stands for; the lock dies with this process.

    Args:
        file: of the lock; it is there for as long as the body takes.
        seconds: to wait for it.
        refusal: what to say if it is not free by then.

    Raises:
        BusyError: if it is not.
        StorageError: if the file cannot be written.
    """
    lock = filelock.FileLock(file)
    with storing(file):
        try:
            lock.acquire(timeout=seconds)
        except filelock.Timeout:  # an OSError
            raise BusyError(refusal) from None
    try:
        yield
    finally:
        with suppress(OSError):  # the folder may no longer be writable, which what ended the body tells
            file.unlink()
        lock.release()


def check_writable(folder: Path, name: str = "The output folder", cure: str = "Choose another with --out.") -> None:
    """Makes a folder and checks that files can be written to it.

    Args:
        folder: where.
        name: what it is to the user.
        cure: what to do if it cannot be.

    Raises:
        ExperimentError: if not.
    """
    probe = folder / f"{PARTIAL}probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may try the same
    except OSError as error:
        raise ExperimentError(f"{name} cannot be written to: {folder} ({error.strerror}). {cure}") from error


@contextmanager
def not_left_empty(folder: Path) -> Iterator[None]:
    """Removes a folder that nothing came into, after a refusal."""
    try:
        yield
    finally:
        with suppress(OSError):  # it is not empty, or was not made
            folder.rmdir()


def sha256(path: Path) -> str:
    """Returns the checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def partial_of(path: Path) -> Path:
    """Returns where a file or a folder is until it is whole, beside its own name."""
    return path.with_name(f"{PARTIAL}{path.name}")


def replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes a file so that it is there whole or not at all: on the disk under another name before it gets its own.

    Raises:
        StorageError: if it cannot be written, for example to a full disk; what was at `path` is still there.
    """
    partial = partial_of(path)
    try:
        with storing(path):
            write(partial)
            bring_to_disk(partial)
            os.replace(partial, path)
            bring_to_disk(path.parent)  # the name
    except StorageError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Says in one line what cannot be written, and that nothing is lost by it.

    Args:
        path: of what is written, which the body replaces in one step at its end.

    Raises:
        StorageError: if the body raises an OSError.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise StorageError(
            f"{path} cannot be written ({reason}). What was there before is intact. Make room or make the folder "
            "writable, then give the same command again."
        ) from error


def bring_to_disk(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    replace(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")
