"""One experiment: its teacher once, then every method with every seed."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from spkd_keras import data, models
from spkd_keras.cache import TeacherCache
from spkd_keras.experiment import TEACHER, ClearError, Experiment, ExperimentError
from spkd_keras.messages import named
from spkd_keras.observer import Observer
from spkd_keras.storage import BusyError, check_writable, not_left_empty
from spkd_keras.training import build, cached_teacher
from spkd_keras.training.check import check_before_running
from spkd_keras.training.devices import Devices
from spkd_keras.training.findings import Finding
from spkd_keras.training.folder import RunFolder, run_folders, teacher_folder
from spkd_keras.training.interruption import Interruption
from spkd_keras.training.parallel import run_in_processes
from spkd_keras.training.teacher_run import check_fingerprint, load_teacher, train_teacher
from spkd_keras.training.train import train


class RunsFailedError(ClearError, RuntimeError):
    """Some runs ended with an error, and the others are done.

    Attributes:
        root: folder of the experiment's runs.
        reasons: by the runs' names.
    """

    def __init__(self, root: Path, reasons: dict[str, str]) -> None:
        self.root, self.reasons = root, reasons
        super().__init__("\n".join(f"{name} failed: {reason}" for name, reason in reasons.items()))

    def __reduce__(self) -> tuple[type, tuple[Path, dict[str, str]]]:
        """How it is pickled: by its own arguments."""
        return type(self), (self.root, self.reasons)


def run_experiment(
    experiment: Experiment,
    out: str | Path = "runs",
    observer: Observer | None = None,
    *,
    jobs: int = 1,
    check: bool = False,
    force: bool = False,
    devices: Devices | None = None,
) -> Path:
    """Runs what is not finished of an experiment.

    The teacher is trained once and shared. Everything is built before anything is trained. A finished run is skipped,
    an interrupted one continues where its last checkpoint is. A run that fails does not stop the others. Sets the
    global seed for each run, and makes TensorFlow's operations deterministic for the rest of the process.

    Args:
        experiment: what to run.
        out: folder under which the folder `<experiment.name>` is made.
        observer: is told how it goes.
        jobs: how many runs to do side by side, each in a process of its own; 1 does them in this process.
        check: whether to try the methods that have no run yet on real batches first (`check_experiment`).
        force: whether to run although the check finds what should stop it.
        devices: that share every batch, as `devices_for` finds them; None for one. Where there are several processes,
            all call this at the same time, and the first writes the runs.

    Returns:
        The folder with the runs.

    Raises:
        ExperimentError: if the experiment cannot be run as it is, before any training.
        Interrupted: a KeyboardInterrupt, if SIGINT or SIGTERM came; the same call goes on.
        RunsFailedError: if some runs failed, after all others are done.
        StorageError: if a file cannot be written.
    """
    if jobs < 1:
        raise ExperimentError(f"`jobs` must be at least 1. Received: {jobs}.")
    devices = devices or Devices()
    if jobs > 1 and devices.strategy:
        raise ExperimentError(f"`jobs` must be 1 where devices share every run. Received: {jobs}.")
    observer = observer if observer and devices.chief else Observer()
    with devices.folder(out) as folder, devices.together(), not_left_empty(folder / experiment.name):
        return _run_into(folder, experiment, observer, devices, jobs, check and devices.chief, force)


def _run_into(
    out: Path, experiment: Experiment, observer: Observer, devices: Devices, jobs: int, check: bool, force: bool
) -> Path:
    interruption = Interruption()
    root = out / experiment.name
    teacher_run = teacher_folder(root, experiment) if experiment.asks_teacher else None
    runs = run_folders(root, experiment)
    every = [teacher_run, *runs] if teacher_run else runs
    for folder in every:
        folder.check_owner()
        devices.share(folder.summary)
    left = [folder for folder in every if not folder.finished]
    if left:
        check_writable(root)
        cached_teacher.check_place(experiment, root)
        for folder in left:
            folder.check_free()
    for folder in every:
        if folder.finished:
            folder.tidy()
    if not left:
        names = [folder.path.name for folder in every]
        observer.planned(names, names)
        return root
    with interruption.listening():
        splits = build.load_data(experiment.data)
        devices.check(experiment.data, len(splits.train))
        digest = splits.digest()
        for folder in every:
            folder.check_data(digest)
        build.check(experiment, splits)
        observer.planned([folder.path.name for folder in every], [f.path.name for f in every if f.finished])
        tf.config.experimental.enable_op_determinism()
        # Methods that have a run were tried when it began. With another they are tried again: all takes time.
        begun = {folder.method for folder in runs if folder.path.exists()}
        to_do = Counter(folder.method for folder in left if folder.method != TEACHER)
        new = to_do if check and set(to_do) - begun else {}
        options: dict[str, Any] = {"runs": new, "jobs": jobs, "out": out, "replicas": devices.replicas}
        try_out = partial(check_before_running, experiment, splits, observer, force, **options)
        untrained = teacher_run if teacher_run and not teacher_run.finished else None
        told: list[Finding] = []
        if untrained:
            told = try_out() if new else []
            train_teacher(untrained, splits, observer, interruption, devices)
        if teacher_run:
            devices.share(teacher_run.student)
        with devices.scope():
            teacher = load_teacher(experiment, teacher_run, splits) if experiment.asks_teacher else None
        if new:
            # The first process alone tries, and running a teacher of the strategy would wait for all of them.
            its_teacher = load_teacher(experiment, teacher_run, splits) if teacher and devices.strategy else teacher
            trained = untrained.path if untrained else None
            try_out(teacher=its_teacher, cost=not untrained, told=told, trained=trained)
        reasons = _run_all(experiment, runs, splits, teacher, teacher_run, jobs, observer, interruption, devices)
        if reasons:
            raise RunsFailedError(root, reasons)
    return root


def cache_teacher(experiment: Experiment, out: str | Path = "runs", observer: Observer | None = None) -> TeacherCache:
    """Computes the cache that the experiment's methods are trained from, unless it is there.

    A teacher that has to be trained is trained first, as `run_experiment` does.

    Args:
        experiment: with `teacher.cache`.
        out: folder under which the folder `<experiment.name>` is made.
        observer: is told how it goes.

    Returns:
        The cache.

    Raises:
        ExperimentError: if there is nothing to compute, or what is there was computed for something else.
    """
    spec = experiment.teacher_cache
    if spec is None:  # said before a teacher is trained for nothing
        asked = experiment.teacher is not None and experiment.teacher.cache is not None
        raise ExperimentError(
            "There is nothing to cache: it takes `teacher.cache` and a method with terms. Received: "
            f"{'the methods ' + ', '.join(experiment.methods) if asked else 'no `teacher.cache`'}."
        )
    observer, interruption = observer or Observer(), Interruption()
    root = Path(out) / experiment.name
    teacher_run = teacher_folder(root, experiment)
    if teacher_run:
        teacher_run.check_owner()
    check_writable(root)
    cached_teacher.check_place(experiment, root)
    with interruption.listening():
        splits = build.load_data(experiment.data)
        build.check(experiment, splits)
        if teacher_run:
            teacher_run.check_data(splits.digest())
        tf.config.experimental.enable_op_determinism()
        names = [teacher_run.path.name] if teacher_run else []
        observer.planned(names, names if teacher_run and teacher_run.finished else [])
        if teacher_run and not teacher_run.finished:
            train_teacher(teacher_run, splits, observer, interruption)
        teacher = load_teacher(experiment, teacher_run, splits)
        return cached_teacher.computed(experiment, spec, root, splits, teacher, observer)


def _run_all(
    experiment: Experiment,
    runs: Sequence[RunFolder],
    splits: data.Splits,
    teacher: keras.Model | None,
    teacher_run: RunFolder | None,
    jobs: int,
    observer: Observer,
    interruption: Interruption,
    devices: Devices,
) -> dict[str, str]:
    """Does the runs that are left; returns why those that failed did."""
    fingerprint = None if teacher is None else models.fingerprint(teacher)
    if fingerprint is not None:
        check_fingerprint(fingerprint, runs)
    left = [folder for folder in runs if not folder.finished]
    if left and (spec := experiment.teacher_cache):
        # Each process of several computes its own.
        cached_teacher.computed(experiment, spec, left[0].path.parent, splits, teacher, observer)
    if jobs > 1 and len(left) > 1:
        alone = partial(_run_alone, teacher_run, teacher is not None)
        return run_in_processes(left, alone, jobs, observer, interruption)
    return _run_here(left, splits, observer, interruption, teacher, fingerprint, devices)


def _run_here(
    runs: Sequence[RunFolder],
    splits: data.Splits,
    observer: Observer,
    interruption: Interruption,
    teacher: keras.Model | None,
    fingerprint: str | None,
    devices: Devices,
) -> dict[str, str]:
    """Does one run after the other; returns why those that failed did.

    Raises:
        BusyError: after all others, if another process is at one.
    """
    reasons, busy = {}, []
    for folder in runs:
        try:
            train(folder, splits, observer, interruption, teacher, fingerprint, devices)
        except BusyError as error:
            if devices.workers > 1:  # the others are at this run
                raise
            busy.append(error)
        except (ExperimentError, ClearError):  # what the next run would meet too
            raise
        except Exception as error:
            reasons[folder.path.name] = named(error)
            observer.failed(folder.path.name, reasons[folder.path.name])
    if busy:
        raise busy[0]
    return reasons


def _run_alone(
    teacher_run: RunFolder | None,
    with_teacher: bool,
    folder: RunFolder,
    observer: Observer,
    interruption: Interruption,
) -> None:
    """Does one run in a process that has nothing yet."""
    tf.config.experimental.enable_op_determinism()
    splits = build.load_data(folder.experiment.data)
    teacher = load_teacher(folder.experiment, teacher_run, splits) if with_teacher else None
    fingerprint = None if teacher is None else models.fingerprint(teacher)
    train(folder, splits, observer, interruption, teacher, fingerprint)
