"""Training, exporting and measuring many students of one teacher under one budget."""

import itertools
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from spkd_keras import data
from spkd_keras.experiment import BASELINE, Experiment, ExperimentError, StudentSpec, Teacher, read_record
from spkd_keras.export import Exporter, load_runner
from spkd_keras.export.formats import file_name
from spkd_keras.export.latency import machine, measure
from spkd_keras.export.packages import check_export_packages
from spkd_keras.export.run import FinishedRun, resize_of, some
from spkd_keras.frontier.decision import Candidate, titled
from spkd_keras.messages import named, one_line
from spkd_keras.observer import Observer, Renamed
from spkd_keras.storage import locked, sha256, write_json
from spkd_keras.training import build, cached_teacher
from spkd_keras.training.folder import RunFolder, images_of, teacher_folder
from spkd_keras.training.interruption import Interruption
from spkd_keras.training.results import error_of
from spkd_keras.training.run import RunsFailedError, run_experiment
from spkd_keras.training.teacher_run import prepared_teacher, with_trained_teacher

COMPARED_IMAGES = 1000
LATENCY_IMAGES = 32
EXPORTS = "frontier"  # in a run's folder; `export` there is the user's own, with a card that tells of it
RUNNERS = {"litert": "ai-edge-litert", "onnx": "onnxruntime"}  # packages that run an export; else TensorFlow


class Students(NamedTuple):
    """What all students came to.

    Attributes:
        folder: with a folder of runs for each student.
        teacher_error: on the held-out images, a fraction.
        candidates: each student with each method, of the seeds that did not fail.
        failures: why runs or exports failed, by their names.
        lost: titles of the students with a method of which all seeds failed.
    """

    folder: Path
    teacher_error: float
    candidates: list[Candidate]
    failures: dict[str, str]
    lost: list[str]


def train_students(
    experiment: Experiment,
    students: Sequence[StudentSpec],
    out: str | Path = "runs",
    observer: Observer | None = None,
    *,
    format: str = "litert",  # noqa: A002  (the word of the command line, and of Keras' own `model.export`)
    jobs: int = 1,
    quiet: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Students:
    """Runs each student with each method and seed, then exports and measures them one after the other.

    What is finished is not repeated: the runs are those of `run_experiment`, under `<out>/<experiment.name>-frontier`,
    with the teacher of `<out>/<experiment.name>`.

    Args:
        experiment: names the teacher.
        students: of `load_students`.
        out: folder of the runs.
        observer: is told how it goes.
        format: of the exports.
        jobs: how many runs to do side by side.
        quiet: is put around each conversion, in which libraries print what is for their developers.

    Raises:
        ExperimentError: if it cannot be run as it is, before any training.
        Interrupted: a KeyboardInterrupt, if a signal came; the same call goes on.
        StorageError: if a file cannot be written.
    """
    check_export_packages(format)
    observer, interruption = observer or Observer(), Interruption()
    root = Path(out) / experiment.name
    folder = Path(out) / f"{experiment.name}-frontier"
    with interruption.listening(), locked(folder):
        splits = build.load_data(experiment.data)
        data_digest = splits.digest()
        for student in students:
            try:
                build.check(student.experiment, splits)
            except ValueError as error:
                raise ExperimentError(f"{student.name}: {one_line(error)}") from error
        _plan(experiment, students, root, folder, observer)
        tf.config.experimental.enable_op_determinism()
        teacher = prepared_teacher(experiment, out, splits, observer, interruption)
        teacher_error = error_of(_known(teacher), _known(splits.validation))
        if experiment.teacher and not _was_held_out(experiment.teacher, data_digest):
            observer.noticed(
                f"Whether {experiment.teacher.path} was trained on the images that are held out here is not known. If "
                "it was, its error on them, and so the limit for students, is too low."
            )
        failures: dict[str, str] = {}
        for student in students:
            failures |= _run(student, root, folder, observer, jobs)
        measure_one = partial(_measured, splits=splits, format=format, quiet=quiet)
        measured = _measure_all(students, folder, measure_one, observer, interruption, failures, data_digest)
    found = {
        titled(student.name, method): _candidate(student, method, measured)
        for student in students
        for method in student.experiment.methods
    }
    candidates = [candidate for candidate in found.values() if candidate is not None]
    lost = [title for title, candidate in found.items() if candidate is None]
    return Students(folder, teacher_error, candidates, failures, lost)


def _was_held_out(teacher: Teacher, data_digest: str) -> bool:
    """Whether the held-out images were kept from the teacher: it is trained here, or was on the same parts."""
    return teacher.path is None or images_of(Path(teacher.path)) == data_digest


def _known(value: Any) -> Any:
    """The teacher and the held-out images, which `load_students` has made sure of, as far as a file can tell."""
    if value is None:
        raise ExperimentError("A frontier needs a teacher and held-out images.")
    return value


def _each_run(students: Sequence[StudentSpec]) -> Iterator[tuple[StudentSpec, str, int]]:
    """Yields every student with each of its methods and seeds."""
    for student in students:
        for method, seed in itertools.product(student.experiment.methods, student.experiment.seeds):
            yield student, method, seed


def _plan(
    experiment: Experiment, students: Sequence[StudentSpec], root: Path, folder: Path, observer: Observer
) -> None:
    """Tells of all runs, and which of them are finished."""
    teacher = teacher_folder(root, experiment)
    runs = {} if teacher is None else {teacher.path.name: teacher}
    for student, method, seed in _each_run(students):
        run = RunFolder(folder / student.name, student.experiment.single(method, seed))
        runs[f"{student.name} {run.path.name}"] = run
    observer.planned(list(runs), [name for name, run in runs.items() if run.finished])


def _run(student: StudentSpec, root: Path, folder: Path, observer: Observer, jobs: int) -> dict[str, str]:
    """Does the runs of one student; returns why those that failed did."""
    experiment = cached_teacher.shared(with_trained_teacher(student.experiment, root), root)
    renamed = Renamed(observer, lambda run: f"{student.name} {run}", held_out=True)
    try:
        run_experiment(experiment, folder, renamed, jobs=jobs)
    except RunsFailedError as error:
        return {f"{student.name} {run}": reason for run, reason in error.reasons.items()}
    return {}


Measured = dict[tuple[str, str, int], tuple[dict[str, Any], dict[str, Any]]]


def _measure_all(
    students: Sequence[StudentSpec],
    folder: Path,
    measure_one: Callable[[FinishedRun], dict[str, Any]],
    observer: Observer,
    interruption: Interruption,
    failures: dict[str, str],
    data_digest: str,
) -> Measured:
    """Exports and measures all finished runs; returns each one's summary and measures, by student, method and seed.

    Raises:
        ExperimentError: if one was trained on other images than those of this digest, or a file of it is damaged.
    """
    found: Measured = {}
    for student, method, seed in _each_run(students):
        run = folder / student.name / f"{method}-seed{seed}"
        name = f"{student.name} {run.name}"
        if name in failures:
            continue
        observer.checking(f"the export of {name}")
        interruption.stop()
        try:
            finished = FinishedRun(run)
            finished.check_data(data_digest)
            found[student.name, method, seed] = finished.summary, measure_one(finished)
        except ExperimentError:  # what the next export would meet too
            raise
        except (RuntimeError, ValueError) as error:  # an export that is not the student, or cannot be
            failures[name] = named(error)
            observer.noticed(f"{name}: {failures[name]}")
    observer.checked([], None)
    return found


def _measured(
    run: FinishedRun,
    splits: data.Splits,
    format: str,  # noqa: A002
    quiet: Callable[[], AbstractContextManager[Any]],
) -> dict[str, Any]:
    """Exports a student and measures what it takes.

    What was measured of this very student before stands; its latency only where it would be measured likewise.
    """
    folder = run.folder / EXPORTS
    trained = sha256(run.folder / "student.keras")
    path, record = folder / file_name(format), folder / f"{format}.json"
    before = read_record(record, "Delete it, and `spkd frontier` measures that student again.")
    if before is not None and path.exists() and before.get("student") == trained:
        if before.get("measured_on") != _here(format):
            with quiet():
                before |= {"measured_on": _here(format), "latency": _latency(path, splits)}
            write_json(record, before)
        return before
    student: keras.Model = run.student()
    pixels, labels = some(_known(splits.validation), COMPARED_IMAGES)
    with quiet():
        exporter = Exporter(student, splits.train.class_names, resize=resize_of(splits.train))
        reference = exporter.reference(pixels, labels, "held-out images")
        export = exporter.write(path, format, reference)
        latency = _latency(path, splits)
    found = {"student": trained, "file": path.name, **export.sizes, "measured_on": _here(format), "latency": latency}
    write_json(record, found)
    return found


def _latency(path: Path, splits: data.Splits) -> dict[str, Any]:
    pixels, _ = some(_known(splits.validation), LATENCY_IMAGES)
    return measure(load_runner(path), pixels)


def _here(format: str) -> dict[str, Any]:  # noqa: A002
    """Returns what a latency depends on beside the export."""
    version = tf.__version__
    with suppress(metadata.PackageNotFoundError):  # without it TensorFlow's own runs it
        version = metadata.version(RUNNERS[format]) if format in RUNNERS else version
    cores = len(os.sched_getaffinity(0))
    return {"host": platform.node(), "machine": machine(), "cores": cores, "runner_version": version}


def _candidate(student: StudentSpec, method: str, measured: Measured) -> Candidate | None:
    """Puts the seeds of a student and a method together; None if all failed."""
    own = {seed: found for (name, one, seed), found in measured.items() if (name, one) == (student.name, method)}
    if not own:
        return None
    compares = method != BASELINE and BASELINE in student.experiment.methods
    baselines = {
        seed: summary["validation_error"]
        for (name, one, seed), (summary, _) in measured.items()
        if (name, one) == (student.name, BASELINE) and compares
    }
    seeds = student.experiment.seeds
    errors = {seed: summary["validation_error"] for seed, (summary, _) in own.items()}
    summary = next(iter(own.values()))[0]
    return Candidate(
        student.name,
        method,
        seeds=list(own),
        errors=list(errors.values()),
        differences=[error - baselines[seed] for seed, error in errors.items() if seed in baselines],
        parameters=summary["parameters"],
        multiply_adds=summary["multiply_adds"],
        bytes=[found["bytes"] for _, found in own.values()],
        latencies=[found["latency"]["batches"]["1"]["median_ms"] for _, found in own.values()],
        failed=len(seeds) - len(own),
        baselines_failed=len(seeds) - len(baselines) if compares else 0,
    )
