"""Giving an export its name: it is at its path whole and compared, with the text that belongs to it, or not at all."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from spkd_keras.storage import PARTIAL, alone, bring_to_disk, partial_of, storing, write_json

BRIEFLY = 2.0  # seconds; nothing that waits for a name takes longer


class Place:
    """The path of an export, and what is beside it while it is written.

    A link stays what it is: what it points at is replaced.

    Args:
        path: of the file or the SavedModel's folder.

    Attributes:
        path: the same.
        target: where that is, behind links.
        partial: where it is written until it is whole; no reader takes it for a model.
        aside: where a folder waits while the new one takes its name.
        beside: the JSON file for people and programs.
        beside_aside: where the one before waits until the model that it tells of is replaced.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.target = path, Path(os.path.realpath(path))
        self.partial = partial_of(self.target)
        self.aside = self.target.with_name(f"{PARTIAL}old-{self.target.name}")
        absolute = path.absolute()  # a path may be "."
        self.beside = absolute.with_name(f"{absolute.name}.json")
        self.beside_aside = self.beside.with_name(f"{PARTIAL}old-{self.beside.name}")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes from writing here, and clears what a kill left before and what is left after.

        Raises:
            BusyError: if another process writes here.
            StorageError: if the folder cannot be written to.
        """
        with storing(self.path):
            for parent in (self.path.parent, self.target.parent):
                parent.mkdir(parents=True, exist_ok=True)
        busy = f"{self.path} is being written by another process. Wait for it, or choose another."
        with alone(lock_of(self.target), 0, busy):
            try:
                with storing(self.path):
                    self._put_back()
                    remove(self.partial)
                    remove(self.beside_aside)
                    if self.aside.is_dir():
                        os.rename(self.aside, self.partial)
                        remove(self.partial)
                yield
            finally:
                remove(self.partial)

    def give_name(self, text: dict[str, Any]) -> None:
        """Puts what is whole in its place, and its text beside it.

        The old text goes first and the new one comes last. A kill in between leaves a model that has its metadata only
        inside, and never a text beside a model that it does not tell of.

        Args:
            text: for the JSON file.

        Raises:
            StorageError: if that fails; what was at the path before is still there.
        """
        with storing(self.path):
            for file in [self.partial, *self.partial.rglob("*")] if self.partial.is_dir() else [self.partial]:
                bring_to_disk(file)
        prepared = partial_of(self.beside)
        try:
            write_json(prepared, text)
            with storing(self.path):
                with self._without_text():
                    self._swap()
                os.replace(prepared, self.beside)
                for folder in {self.path.parent, self.target.parent}:
                    bring_to_disk(folder)
        finally:
            prepared.unlink(missing_ok=True)

    @contextmanager
    def _without_text(self) -> Iterator[None]:
        """Takes the old text away, and puts it back if the model that it tells of stays."""
        if self.beside.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self.beside))
        if not os.path.lexists(self.beside):
            yield
            return
        os.replace(self.beside, self.beside_aside)
        try:
            yield
        except OSError:
            os.replace(self.beside_aside, self.beside)
            raise
        self.beside_aside.unlink()

    def _swap(self) -> None:
        if not self.target.is_dir():
            os.replace(self.partial, self.target)
            return
        # A folder with files in it is not replaced in one step: there is none for a moment. Whoever comes after a kill
        # in that moment puts the old one back.
        os.rename(self.target, self.aside)
        try:
            os.rename(self.partial, self.target)
        except OSError:
            os.rename(self.aside, self.target)
            raise
        with suppress(OSError):  # the new one has its name, and the next export clears this away
            os.rename(self.aside, self.partial)  # from here on it is rubbish, which nobody puts back

    def _put_back(self) -> None:
        if self.aside.is_dir() and not self.target.exists():
            os.rename(self.aside, self.target)
            if self.beside_aside.is_file() and not self.beside.exists():
                os.rename(self.beside_aside, self.beside)


def put_back(path: Path) -> None:
    """Puts back a SavedModel whose replacement was killed between the two names, for those who want to read it.

    Raises:
        StorageError: if the folder cannot be written to.
    """
    if path.exists():
        return
    place = Place(path)
    if place.aside.is_dir():
        # Another process may be in that very moment, and then is done within the wait.
        busy = f"{path} is being replaced by another process. Try again."
        with storing(path), alone(lock_of(place.target), BRIEFLY, busy):
            place._put_back()


def lock_of(path: Path) -> Path:
    """Returns the file, beside what is at a path, that keeps others from it while it is there."""
    return path.with_name(f"{PARTIAL}{path.name}.lock")


def is_partial(path: Path) -> bool:
    """Whether a file is one that is still being written, or that a kill left so."""
    return path.name.startswith(PARTIAL)


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file, or of a folder's files in the order of their names."""
    found = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file()):
        found.update(file.read_bytes())
    return found.hexdigest()


def remove(path: Path) -> None:
    """Removes a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
