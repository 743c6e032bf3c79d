"""A run's folder: what is in it, and whether it is this run's."""

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import keras

from spkd_keras import models
from spkd_keras.experiment import (
    ClearError,
    Experiment,
    ExperimentError,
    Network,
    differences,
    load_experiment,
    read_record,
)
from spkd_keras.training import build

PARTIAL = ".partial-"
MOVED = "teacher.path:"  # of the lines that say what differs
DATA_DIGEST = "data_digest"  # in what a run, or a search, records
START_DIGEST = "start_digest"  # in what a run records


class StorageError(ClearError, OSError):
    """A file cannot be written. The message is one clear line; what was there before is intact."""


class RunFolder:
    """The folder of one run, `<method>-seed<k>`.

    Args:
        root: folder of the experiment's runs.
        experiment: with the one method and the one seed of this run.
        path: another folder than `<method>-seed<k>`.
    """

    def __init__(self, root: Path, experiment: Experiment, path: Path | None = None) -> None:
        self.experiment = experiment
        (self.method,) = experiment.methods
        (self.seed,) = experiment.seeds
        self.path = path or root / f"{self.method}-seed{self.seed}"
        self.backup = self.path / "backup"
        self.best = self.path / "best.keras"
        self.history = self.path / "history.csv"
        self.similarity = self.path / "similarity.npz"
        self.student = self.path / "student.keras"
        self.summary = self.path / "summary.json"
        self.environment = self.path / "environment.json"
        self.failure = self.path / "failure.json"

    @property
    def finished(self) -> bool:
        """Whether the run is done: the summary is written last."""
        return self.summary.exists()

    def tidy(self) -> None:
        """Removes what a kill left of a finished run: checkpoints and files that were being written."""
        shutil.rmtree(self.backup, ignore_errors=True)
        for file in self.path.glob(f"{PARTIAL}*"):
            file.unlink(missing_ok=True)

    def check_owner(self) -> None:
        """Checks that the folder, if it exists, holds this very run.

        Raises:
            ExperimentError: naming the fields that differ.
        """
        if not self.path.exists() or (self.path.is_dir() and all(_is_partial(file) for file in self.path.iterdir())):
            return
        recorded = self.path / "experiment.yaml"
        if not recorded.is_file():
            raise ExperimentError(
                f"{self.path} exists and is not a run's folder (it has no experiment.yaml). "
                "Choose another folder with --out."
            )
        fields = differences(load_experiment(recorded), self.experiment)
        if any(field.startswith(MOVED) for field in fields) and self._has_same_teacher():
            fields = [field for field in fields if not field.startswith(MOVED)]
        if fields:
            raise ExperimentError(
                f"{self.path} holds a run of another experiment ({'; '.join(fields)}). Nothing was changed. "
                "Choose another folder with --out, or another `name`."
            )

    def _has_same_teacher(self) -> bool:
        """Whether the teacher's file, which has another name than then, is the one of then."""
        recorded = (read_record(self.environment) or {}).get("teacher_fingerprint")
        teacher = self.experiment.teacher
        if recorded is None or teacher is None or teacher.path is None:
            return False
        file = Path(teacher.path)
        return recorded == _fingerprint(teacher.path, file.stat().st_mtime_ns if file.exists() else None)

    def check_data(self, digest: str) -> None:
        """Checks that what is done of the run was done on these images, from the weights that there are now.

        Args:
            digest: of the `Splits`.

        Raises:
            ExperimentError: if it was not.
        """
        if self.finished or any(self.backup.glob("epoch-*")):
            record = None
            with suppress(ExperimentError):  # damaged: it is written anew, or told where it matters
                record = read_record(self.environment)
            check_same_data(self.path, (record or {}).get(DATA_DIGEST), digest)
            started = (record or {}).get(START_DIGEST)
            if started is not None and started != (start := self.start_digest()):
                file = self.experiment.student.arguments.get("weights")
                raise ExperimentError(
                    f"{self.path} started from other weights than {file} has now (digest {started}). Received: "
                    f"{start}. Nothing was changed. Bring the file back, or choose another folder with --out."
                )

    def start_digest(self) -> str | None:
        """Returns the digest of the file whose weights the network starts from; None if there is none."""
        weights = self.experiment.student.arguments.get("weights")
        if not isinstance(weights, str) or not Path(weights).is_file():
            return None
        with Path(weights).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out of the folder; the lock dies with this process.

        Raises:
            ExperimentError: if another process is at this run.
        """
        with locked(self.path):
            yield

    def check_free(self) -> None:
        """Checks that no other process is at this run.

        Raises:
            ExperimentError: if one is.
        """
        if self.path.exists():
            with self.locked():
                pass

    def create(self) -> None:
        """Makes the folder, with one for checkpoints, and records the experiment in it.

        Raises:
            ExperimentError: if it cannot be made.
            StorageError: if a file in it cannot be written.
        """
        check_writable(self.path)
        # First what says whose the folder is: a kill may come at any time.
        write_text(self.path / "experiment.yaml", self.experiment.to_yaml())
        check_writable(self.backup)


def run_folders(root: Path, experiment: Experiment) -> list[RunFolder]:
    """Returns the folders of an experiment's runs, in the order in which they are done; without the teacher's."""
    return [
        RunFolder(root, experiment.single(method, seed)) for seed in experiment.seeds for method in experiment.methods
    ]


@functools.cache  # all runs of an experiment ask for the same one
def _fingerprint(path: str, modified: int | None) -> str:
    del modified  # another file has another fingerprint
    return models.fingerprint(build.construct(Network(path=path), "teacher"))


def check_same_data(folder: Path, recorded: str | None, digest: str) -> None:
    """Checks that a folder's results are of the images that there are now.

    Args:
        folder: for the message.
        recorded: digest of the images of then; None if it is not known.
        digest: of the `Splits` of now.

    Raises:
        ExperimentError: if they are not.
    """
    if recorded not in (None, digest):
        raise ExperimentError(
            f"{folder} was trained on other images than the data have now (digest {recorded}). Received: {digest}. "
            "Nothing was changed. Bring the images back as they were, or choose another folder with --out."
        )


class BusyError(ExperimentError):
    """Another process is at a folder. The next one may be free."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder, which is made if need be; the lock dies with this process.

    Raises:
        BusyError: if another process is at it.
    """
    check_writable(folder)
    try:
        # TimeoutError is an OSError, which the body may raise too: it is told apart by where it arises.
        lock = filelock.FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise BusyError(
            f"{folder} is being run by another process. Wait for it, or stop it and give the same command again."
        ) from None
    try:
        yield
    finally:
        (folder / ".lock").unlink(missing_ok=True)
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


def replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes a file so that it is there whole or not at all: on the disk under another name before it gets its own.

    Raises:
        StorageError: if it cannot be written, for example to a full disk; what was at `path` is still there.
    """
    partial = path.with_name(f"{PARTIAL}{path.name}")
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
        reason = error.strerror or " ".join(str(error).split())
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


def _is_partial(file: Path) -> bool:
    """Whether this is what a kill left of a file that was being written, or a lock."""
    return file.name.startswith(PARTIAL) or file.name == ".lock"


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    replace(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def save_network(path: Path, network: keras.Model) -> None:
    """Saves a network whole or not at all."""
    replace(path, network.save)
