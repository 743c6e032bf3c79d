"""The run that trains the teacher, and the network that is loaded from it."""

from collections.abc import Sequence
from pathlib import Path

import keras

from spkd_keras import data
from spkd_keras.experiment import TEACHER, Experiment, ExperimentError, Network, Teacher, read_record
from spkd_keras.observer import Observer
from spkd_keras.training import build
from spkd_keras.training.devices import Devices
from spkd_keras.training.folder import RunFolder, teacher_folder
from spkd_keras.training.interruption import Interruption
from spkd_keras.training.train import train


def train_teacher(
    folder: RunFolder,
    splits: data.Splits,
    observer: Observer,
    interruption: Interruption,
    devices: Devices | None = None,
) -> None:
    """Trains the teacher into its folder, as `train` does.

    Raises:
        FloatingPointError: if a step is not finite, with the name of the run; others cannot go on without it.
    """
    try:
        train(folder, splits, observer, interruption, devices=devices)
    except FloatingPointError as error:
        raise FloatingPointError(f"{folder.path.name} failed: {error}") from error


def prepared_teacher(
    experiment: Experiment, out: str | Path, splits: data.Splits, observer: Observer, interruption: Interruption
) -> keras.Model | None:
    """Returns the teacher; one that has to be trained is trained first, as `run_experiment` does.

    Raises:
        ExperimentError: if its folder holds another experiment's, or one of other images, or its file cannot be loaded.
    """
    folder = teacher_folder(Path(out) / experiment.name, experiment)
    if folder is not None:
        folder.check_owner()
        folder.check_data(splits.digest())
        if not folder.finished:
            train_teacher(folder, splits, observer, interruption)
    return load_teacher(experiment, folder, splits)


def with_trained_teacher(experiment: Experiment, root: Path) -> Experiment:
    """Returns an experiment whose teacher is the file that another one's run of the teacher left.

    Args:
        experiment: whose teacher is to be trained; else it is returned as it is.
        root: folder of the other one's runs.
    """
    folder, teacher = teacher_folder(root, experiment), experiment.teacher
    if folder is None or teacher is None:
        return experiment
    update = {"teacher": Teacher(path=str(folder.student), dtype=teacher.dtype, cache=teacher.cache)}
    return experiment.model_copy(update=update)


def trained_teacher(experiment: Experiment, out: str | Path) -> keras.Model | None:
    """Returns the teacher that an earlier `run_experiment` trained for this very experiment; None if there is none."""
    folder = teacher_folder(Path(out) / experiment.name, experiment)
    if folder is None:
        return None
    folder.check_owner()
    return _load_trained(folder) if folder.finished else None


def load_teacher(experiment: Experiment, teacher_run: RunFolder | None, splits: data.Splits) -> keras.Model | None:
    """Returns the teacher: the one that a run trained, or the one from the experiment's file; None if there is none."""
    if teacher_run:
        return _load_trained(teacher_run)
    return experiment.teacher and build.build_network(experiment.teacher, splits.train, "teacher")


def _load_trained(teacher_run: RunFolder) -> keras.Model:
    try:
        return build.construct(Network(path=str(teacher_run.student)), TEACHER)
    except ExperimentError as error:
        raise ExperimentError(
            f"{str(error).removesuffix('.')}. Delete {teacher_run.summary}, and `spkd run` trains it again."
        ) from error


def check_fingerprint(fingerprint: str, runs: Sequence[RunFolder]) -> None:
    """Checks that the runs so far were distilled from this teacher, whose file may have been replaced.

    Raises:
        ExperimentError: if one was not, or its record is damaged.
    """
    for folder in runs:
        if not folder.experiment.methods[folder.method].terms or not folder.has_state:  # it asked no teacher
            continue
        cure = f"Delete {folder.path}, and `spkd run` does it again: nobody knows which teacher that run had."
        record = read_record(folder.environment, cure)
        if record is not None and record.get("teacher_fingerprint") != fingerprint:
            raise ExperimentError(
                f"{folder.path} was distilled from another teacher, fingerprint {record.get('teacher_fingerprint')}. "
                f"Received: one with {fingerprint}. Choose another folder with --out."
            )
