"""Trying an experiment for a few batches, so that what is bound to fail fails before the hours are spent."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from spkd_keras import data, models
from spkd_keras.cache import TeacherCache
from spkd_keras.distiller import Distiller, compared_layers, gathered_bytes
from spkd_keras.experiment import TEACHER, Experiment, ExperimentError
from spkd_keras.observer import Observer
from spkd_keras.training import build, cached_teacher
from spkd_keras.training.check_folders import check_runs, room, stopping
from spkd_keras.training.check_methods import PartRow, check_method
from spkd_keras.training.check_settings import check_settings
from spkd_keras.training.check_teacher import check_teacher
from spkd_keras.training.cost import RunCost, measure, seconds_a_batch
from spkd_keras.training.findings import Finding, worst_first
from spkd_keras.training.folder import run_folders
from spkd_keras.training.teacher_run import check_fingerprint

BATCHES = 2
TEACHER_IMAGES = 256  # at least so many, to tell its accuracy from chance


@dataclasses.dataclass
class Check:
    """What a check found.

    Attributes:
        teacher: `images`, `accuracy` and `outputs` of a trained teacher; None where there is none yet.
        taps: for each method's terms, the layers of `teacher` and `student` that are compared.
        gathered: for each method, bytes that a step would send between several devices for its terms that compare
            images; None where that depends on the images.
        parts: for each method, the parts of its loss.
        costs: for each method, and for `teacher` where it has to be trained, what one run takes.
        runs: how many runs of each of these are left.
        cache: bytes of the teacher's cache that will be computed.
        jobs: how many runs there will be side by side.
        findings: the worst first.
    """

    teacher: dict[str, Any] | None = None
    taps: dict[str, dict[str, dict[str, list[str]]]] = dataclasses.field(default_factory=dict)
    gathered: dict[str, int | None] = dataclasses.field(default_factory=dict)
    parts: dict[str, list[PartRow]] = dataclasses.field(default_factory=dict)
    costs: dict[str, RunCost] = dataclasses.field(default_factory=dict)
    runs: dict[str, int] = dataclasses.field(default_factory=dict)
    cache: int = 0
    jobs: int = 1
    findings: list[Finding] = dataclasses.field(default_factory=list)

    @property
    def seconds(self) -> float:
        """All runs, one after the other; those that are done side by side share the cores."""
        return sum(self.runs[name] * cost.seconds for name, cost in self.costs.items())

    @property
    def peak_memory(self) -> int:
        """The most that the processes of the runs hold at a time, in bytes."""
        return self.jobs * max((cost.peak_memory for cost in self.costs.values()), default=0)

    @property
    def disk(self) -> int:
        """What all runs and the teacher's cache leave, and the largest needs meanwhile, in bytes."""
        left = sum(self.runs[name] * cost.bytes_left for name, cost in self.costs.items())
        meanwhile = max((cost.bytes_meanwhile for name, cost in self.costs.items() if self.runs[name]), default=0)
        return left + self.cache + self.jobs * meanwhile


def check_experiment(
    experiment: Experiment,
    splits: data.Splits | None = None,
    teacher: keras.Model | None = None,
    *,
    runs: Mapping[str, int] | None = None,
    jobs: int = 1,
    out: str | Path = "runs",
    cost: bool = True,
    replicas: int = 1,
    observer: Observer | None = None,
) -> Check:
    """Builds everything, takes two real batches, and says what is wrong and what it will take. Trains nothing.

    Args:
        experiment: what would be run.
        splits: its data, if they are loaded already.
        teacher: the trained teacher. None takes the file that the experiment names, or, where it has to be trained
            first, a new network in its place, whose accuracy and values then say nothing.
        runs: the methods to look at, and how many runs are left of each; None for all of the experiment.
        jobs: how many of them side by side.
        out: where the runs would go: whether they can, and whether there is room on the disk.
        cost: whether to measure what it will take.
        replicas: devices that will share every batch; the cost is that of one of them with its part.
        observer: is told what is being tried.

    Returns:
        What was found.

    Raises:
        ExperimentError: if the experiment cannot be built at all.
    """
    observer, check = observer or Observer(), Check(jobs=jobs)
    root = Path(out) / experiment.name
    check.runs = _left(experiment, root) if runs is None else dict(runs)
    observer.checking("the data")
    splits = splits or build.load_data(experiment.data)
    training = experiment.teacher_training() if experiment.asks_teacher else None
    trained = teacher is not None or training is None
    check.findings += check_runs(experiment, training, splits, root)
    check.findings += check_settings(experiment, None if trained else training)
    if teacher is None and experiment.teacher is not None and experiment.asks_teacher:
        keras.utils.set_random_seed(0)
        teacher = build.build_network(experiment.teacher, splits.train, "teacher")
    seed, batch_size = experiment.seeds[0], experiment.data.batch_size
    dataset = _batches(experiment, splits, batch_size)
    batches = list(dataset.take(max(BATCHES, -(-TEACHER_IMAGES // batch_size))))
    part = _batches(experiment, splits, batch_size // replicas) if replicas > 1 else dataset
    batch_seconds = seconds_a_batch(dataset) if cost else 0.0
    kept = None
    if teacher is not None and trained:
        observer.checking("the teacher")
        kept = _check_trained(check, experiment, splits, teacher, batches, root)
    for name in list(check.runs):
        observer.checking(f"the method {name}")
        with _fitting(check, f"methods.{name}", batch_size, replicas):
            single = experiment.single(name, seed)
            distiller = _check_one(check, single, splits, teacher, batches, trained)
            if cost and distiller is not None and kept is not None and single.asks_teacher:
                check.costs[name] = _measure_from_cache(kept, single, splits)
            elif cost and distiller is not None:
                check.costs[name] = measure(distiller, part, splits, experiment, batch_seconds)
    if cost and training is not None and not trained:
        observer.checking("the training of the teacher")
        with _fitting(check, "teacher", batch_size, replicas):
            network = build.build_student(training, splits.train)
            distiller = build.build_distiller(None, network, training, TEACHER)
            check.costs[TEACHER] = measure(distiller, part, splits, training, batch_seconds)
            check.runs[TEACHER] = 1
    if cost:
        _look_for_room(check, experiment, splits, teacher, root)
    check.findings = worst_first(check.findings)
    return check


def check_before_running(
    experiment: Experiment,
    splits: data.Splits,
    observer: Observer,
    force: bool,
    told: Collection[Finding] = (),
    trained: Path | None = None,
    **options: Any,
) -> list[Finding]:
    """Tells the observer what is found, and refuses to run what cannot work unless forced.

    Args:
        experiment: what is to be run.
        splits: its data.
        observer: is told.
        force: whether to refuse nothing.
        told: found before, and not told again.
        trained: folder of the teacher, if it has just been trained.
        **options: of `check_experiment`.

    Returns:
        What was found.

    Raises:
        ExperimentError: if something found is of the severity "stop".
    """
    check = check_experiment(experiment, splits, observer=observer, **options)
    new = [finding._asdict() for finding in check.findings if finding not in told]
    observer.checked(new, check.seconds if check.costs else None)
    stops = [str(finding) for finding in check.findings if finding.severity == "stop"]
    if stops and not force:
        done = "Nothing was run. --force runs it all the same."
        if trained is not None:
            done = (
                f"No student was run. The teacher is trained: {trained}. To train it otherwise, remove that folder or "
                "choose another --out. --force runs the students all the same."
            )
        raise ExperimentError("\n".join([*stops, done]))
    return check.findings


def _left(experiment: Experiment, root: Path) -> dict[str, int]:
    """Returns how many runs of each method are not finished."""
    left = Counter(folder.method for folder in run_folders(root, experiment) if not folder.finished)
    return {method: left[method] for method in experiment.methods}


def _batches(experiment: Experiment, splits: data.Splits, size: int) -> tf.data.Dataset:
    """Returns what the student will see. The teacher's own training has as many of the same images."""
    augmentation = build.augmentation(experiment.data)
    return data.training_batches(splits.train, size, experiment.seeds[0], data.EpochClock(), augmentation)


def _check_trained(
    check: Check,
    experiment: Experiment,
    splits: data.Splits,
    teacher: keras.Model,
    batches: list[tuple[Any, Any]],
    root: Path,
) -> TeacherCache | None:
    """Tries a teacher that needs no training, also as the one of the runs and the cache so far; returns the cache."""
    check.teacher, found = check_teacher(teacher, *_images(batches), list(splits.train.class_names))
    check.findings += found
    fingerprint = models.fingerprint(teacher)
    with stopping(check.findings, "out"):  # runs of another teacher
        check_fingerprint(fingerprint, run_folders(root, experiment))
    with stopping(check.findings, "teacher.cache"):
        return cached_teacher.found(experiment, root, splits, fingerprint)
    return None


def _check_one(
    check: Check,
    experiment: Experiment,
    splits: data.Splits,
    teacher: keras.Model | None,
    batches: list[tuple[Any, Any]],
    trained: bool,
) -> Distiller | None:
    """Tries one method; returns its Distiller, or None if it cannot be built."""
    (name,) = experiment.methods
    place = f"methods.{name}"
    keras.utils.set_random_seed(experiment.seeds[0])
    student = build.build_student(experiment, splits.train)
    try:
        distiller = build.build_distiller(teacher, student, experiment, name)
    except ExperimentError as error:
        check.findings.append(Finding("stop", place, str(error).removeprefix(f"{place}: ")))
        return None
    check.taps[name] = compared_layers(distiller)
    check.gathered[name] = gathered_bytes(distiller, experiment.data.batch_size)
    rows, found = check_method(distiller, batches[:BATCHES], place, trained)
    check.findings += found
    if trained:
        check.parts[name] = rows
    return distiller


def _measure_from_cache(cache: TeacherCache, experiment: Experiment, splits: data.Splits) -> RunCost:
    """Measures what a run of one method takes whose teacher is in a cache."""
    (name,), (seed,) = experiment.methods, experiment.seeds
    student = build.build_student(experiment, splits.train)
    distiller = build.build_distiller(cache.stand_in, student, experiment, name)
    batches = cache.batches(splits.train, experiment.data.batch_size, seed, data.EpochClock())
    return measure(distiller, batches, splits, experiment, seconds_a_batch(batches))


@contextmanager
def _fitting(check: Check, place: str, batch_size: int, replicas: int) -> Iterator[None]:
    """Makes a finding of a batch that is too large for one device, of which several have parts."""
    try:
        yield
    except tf.errors.ResourceExhaustedError:
        found = f"a batch of {batch_size} does not fit into the memory of one device, so that this was not tried."
        alone = Finding("stop", place, found, "Lower data.batch_size.")
        shared = Finding("warning", place, found, "Lower data.batch_size if a device's part of it does not fit either.")
        check.findings.append(alone if replicas == 1 else shared)


def _look_for_room(
    check: Check, experiment: Experiment, splits: data.Splits, teacher: keras.Model | None, root: Path
) -> None:
    """Looks how large the teacher's cache will be, and whether that and the runs have room where they go."""
    place = root
    if teacher is not None and (spec := experiment.teacher_cache):
        place = cached_teacher.folder_of(spec, root).parent
        with stopping(check.findings, "teacher.cache"):
            check.cache = cached_teacher.size_of(experiment, spec, root, splits, teacher)
    if check.cache:
        size = f"it takes {check.cache / 1e6:,.0f} MB. The steps were measured with the teacher in them."
        check.findings.append(Finding("note", "teacher.cache", size))
    check.findings += room((root, check.disk - check.cache), (place, check.cache))


def _images(batches: list[tuple[Any, Any]]) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = (np.concatenate([np.asarray(batch[part]) for batch in batches]) for part in (0, 1))
    return pixels, labels if labels.ndim == 1 else labels.argmax(axis=-1)  # mixed labels
