"""A run's folder: what is in it, and whether it is this run's."""

import functools
import os
import shutil
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import keras

from spkd_keras import models
from spkd_keras.experiment import Experiment, ExperimentError, Network, differences, load_experiment, read_record
from spkd_keras.storage import PARTIAL, check_writable, locked, replace, sha256, write_text
from spkd_keras.training import build

MOVED = "teacher.path:"  # of the lines that say what differs
DATA_DIGEST = "data_digest"  # in what a run, or a search, records
START_DIGEST = "start_digest"  # the same
LAYERS = "compared_layers"  # in what a run records


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
        """Whether the run is done: the summary is written last. What cannot be looked into is not."""
        return os.path.exists(self.summary)

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a state to go on from."""
        return any(self.backup.glob("epoch-*"))

    @property
    def has_state(self) -> bool:
        """Whether something of the run is done, which what is recorded beside it belongs to."""
        return self.finished or self.has_checkpoint

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
        if not os.path.exists(self.path):
            return
        if self.path.is_dir() and all(_is_partial(file) for file in self.path.iterdir()):
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
        if not self.has_state:
            return
        record = {}
        with suppress(ExperimentError):  # damaged: it is written anew, or told where it matters
            record = read_record(self.environment) or {}
        check_same_data(self.path, record.get(DATA_DIGEST), digest)
        check_same_start(self.path, record.get(START_DIGEST), self.experiment.student)

    def locked(self) -> AbstractContextManager[None]:
        """Keeps other processes out of the folder; the lock dies with this process.

        Raises:
            BusyError: on entering, if another process is at this run.
        """
        return locked(self.path)

    def check_free(self) -> None:
        """Checks that no other process is at this run.

        Raises:
            BusyError: if one is.
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


def teacher_folder(root: Path, experiment: Experiment) -> RunFolder | None:
    """Returns the folder of the run that trains an experiment's teacher; None if there is none to train."""
    training = experiment.teacher_training()
    return None if training is None else RunFolder(root, training)


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
            "Nothing was changed. Bring the images back as they were, or train anew into another folder (`spkd run "
            "--out`)."
        )


def start_digest(student: Network) -> str | None:
    """Returns the digest of the file whose weights a student starts from; None if there is none."""
    weights = student.arguments.get("weights")
    if not isinstance(weights, str) or not Path(weights).is_file():
        return None
    return sha256(Path(weights))[:32]


def check_same_start(folder: Path, recorded: str | None, student: Network) -> None:
    """Checks that what is in a folder started from the weights that the student's file has now.

    Args:
        folder: for the message.
        recorded: digest of the file of then; None if there was none, or it is not known.
        student: with the file of now.

    Raises:
        ExperimentError: if it did not.
    """
    if recorded is not None and recorded != (start := start_digest(student)):
        raise ExperimentError(
            f"{folder} started from other weights than {student.arguments.get('weights')} has now (digest {recorded}). "
            f"Received: {start}. Nothing was changed. Bring the file back, or choose another folder with --out."
        )


def images_of(network: Path) -> str | None:
    """Returns the digest of the data that a run's network was trained on, from the record beside it; None without."""
    return (read_record(network.with_name("environment.json")) or {}).get(DATA_DIGEST)


def save_network(path: Path, network: keras.Model) -> None:
    """Saves a network whole or not at all."""
    replace(path, network.save)


def _is_partial(file: Path) -> bool:
    """Whether this is what a kill left of a file that was being written, or a lock."""
    return file.name.startswith(PARTIAL) or file.name == ".lock"
