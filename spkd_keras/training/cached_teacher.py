"""The cache of an experiment's teacher."""

from pathlib import Path

import filelock
import keras

from spkd_keras import cache, data, models
from spkd_keras.distiller import Term
from spkd_keras.experiment import CacheSpec, Experiment
from spkd_keras.observer import Observer
from spkd_keras.storage import check_writable, partial_of, storing
from spkd_keras.training import build

FOLDER = "teacher-cache"
ASKED = {"views", "store", "sketch", "seed"}


def folder_of(spec: CacheSpec, root: Path) -> Path:
    """Returns where the cache of an experiment with runs under `root` is."""
    return Path(spec.path or root / FOLDER)


def shared(experiment: Experiment, root: Path) -> Experiment:
    """Returns an experiment whose teacher's cache, if it has one, is by default where runs under `root` have it."""
    teacher = experiment.teacher
    if teacher is None or teacher.cache is None:
        return experiment
    cache = teacher.cache.model_copy(update={"path": str(folder_of(teacher.cache, root))})
    return experiment.model_copy(update={"teacher": teacher.model_copy(update={"cache": cache})})


def check_place(experiment: Experiment, root: Path) -> None:
    """Checks that the cache of an experiment with runs under `root`, if it has one, can be written.

    Raises:
        ExperimentError: if not.
    """
    spec = experiment.teacher_cache
    if spec is not None:
        check_writable(folder_of(spec, root).parent, "teacher.cache: its folder", "Give another `teacher.cache.path`.")


def opened(
    experiment: Experiment, spec: CacheSpec, root: Path, splits: data.Splits, teacher_fingerprint: str | None
) -> cache.TeacherCache:
    """Opens the cache that an experiment is trained from.

    Raises:
        ExperimentError: if it is missing or damaged, was computed for something else, or lacks what a method compares.
    """
    folder = folder_of(spec, root)
    with build.telling("teacher.cache"):
        found = cache.TeacherCache(folder)
        found.manifest.check(
            folder,
            teacher_fingerprint=teacher_fingerprint,
            teacher_dtype=experiment.teacher_dtype,
            augmentation=experiment.data.augmentation,
            data=cache.data_digest(splits.train),
            **spec.model_dump(include=ASKED),
        )
        terms = _terms(experiment)
        try:
            for term in terms:
                found.stand_in.resolve(term.teacher, term.default_tap, term.takes_sketches)
        except ValueError as error:
            raise ValueError(f"{error} Remove {folder} for that, or name another as `teacher.cache.path`.") from error
        return found


def found(
    experiment: Experiment, root: Path, splits: data.Splits, teacher_fingerprint: str
) -> cache.TeacherCache | None:
    """Opens the experiment's cache; None if it wants none, or there is none yet.

    Raises:
        ExperimentError: as `opened`.
    """
    spec = experiment.teacher_cache
    if spec is None or not folder_of(spec, root).exists():
        return None
    return opened(experiment, spec, root, splits, teacher_fingerprint)


def computed(
    experiment: Experiment, spec: CacheSpec, root: Path, splits: data.Splits, teacher: keras.Model, observer: Observer
) -> cache.TeacherCache:
    """Opens the experiment's cache, or computes it for all of its methods where there is none.

    Raises:
        ExperimentError: as `opened`, or if the teacher's values cannot be kept as asked.
    """
    folder = folder_of(spec, root)
    lock = filelock.FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0).lock.release()
    except filelock.Timeout:  # another command wants the same cache, which is there when it is done
        observer.noticed(f"Another process computes {folder}. Waiting for it.")
    with lock, storing(folder):
        if not folder.exists():
            with build.telling("teacher.cache"):
                cache.compute(
                    folder,
                    teacher,
                    _terms(experiment),
                    splits.train,
                    batch_size=experiment.data.batch_size,
                    augmentation=build.augmentation(experiment.data),
                    teacher_dtype=experiment.teacher_dtype,
                    tell=observer.cached,
                    **spec.model_dump(include=ASKED),
                )
    return opened(experiment, spec, root, splits, models.fingerprint(teacher))


def size_of(experiment: Experiment, spec: CacheSpec, root: Path, splits: data.Splits, teacher: keras.Model) -> int:
    """Returns how many bytes the cache will take beside what is there of it; 0 if it is whole.

    Raises:
        ExperimentError: if the teacher has not what a method compares.
    """
    folder = folder_of(spec, root)
    if folder.exists():
        return 0
    with build.telling("teacher.cache"):
        entry = cache.bytes_an_entry(teacher, _terms(experiment), spec.store, spec.sketch)
    begun = sum(file.stat().st_size for file in partial_of(folder).glob("*"))
    return max(0, spec.views * len(splits.train) * entry - begun)


def _terms(experiment: Experiment) -> list[Term]:
    return [term for name in experiment.methods for term in build.build_terms(experiment, name)]
