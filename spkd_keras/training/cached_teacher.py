"""The cache of an experiment's teacher."""

from pathlib import Path

import filelock
import keras

from spkd_keras import cache, data, models
from spkd_keras.distiller import Term
from spkd_keras.experiment import CacheSpec, Experiment
from spkd_keras.observer import Observer
from spkd_keras.training import build

FOLDER = "teacher-cache"
ASKED = {"views", "store", "sketch", "seed"}


def folder_of(experiment: Experiment, root: Path) -> Path | None:
    """Returns where an experiment's cache is; None if it wants none."""
    spec = experiment.teacher and experiment.teacher.cache
    return None if spec is None else Path(spec.path or root / FOLDER)


def opened(
    experiment: Experiment, root: Path, splits: data.Splits, teacher_fingerprint: str | None
) -> cache.TeacherCache | None:
    """Opens the cache that an experiment is trained from; None if it has none, or no terms.

    Raises:
        ExperimentError: if it is missing or damaged, or was computed for something else.
    """
    folder, spec = folder_of(experiment, root), None if experiment.teacher is None else experiment.teacher.cache
    if folder is None or spec is None or not any(method.terms for method in experiment.methods.values()):
        return None
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
        return found


def computed(
    experiment: Experiment, root: Path, splits: data.Splits, teacher: keras.Model, observer: Observer
) -> cache.TeacherCache | None:
    """Opens the experiment's cache, or computes it for all of its methods where there is none.

    Raises:
        ExperimentError: as `opened`, or if the teacher's values cannot be kept as asked.
    """
    folder, spec = folder_of(experiment, root), None if experiment.teacher is None else experiment.teacher.cache
    terms: list[Term] = [term for name in experiment.methods for term in build.build_terms(experiment, name)]
    if folder is None or spec is None or not terms:
        return None
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Two commands may want the same cache; the second one waits, and finds it.
    with filelock.FileLock(folder.with_name(f".{folder.name}.lock")):
        _compute_once(folder, spec, experiment, splits, teacher, terms, observer)
    return opened(experiment, root, splits, models.fingerprint(teacher))


def size_of(experiment: Experiment, root: Path, splits: data.Splits, teacher: keras.Model) -> int:
    """Returns how many bytes the cache will take that is not there yet; 0 if none will."""
    folder, spec = folder_of(experiment, root), None if experiment.teacher is None else experiment.teacher.cache
    terms = [term for name in experiment.methods for term in build.build_terms(experiment, name)]
    if folder is None or spec is None or not terms or folder.exists():
        return 0
    return spec.views * len(splits.train) * cache.bytes_an_entry(teacher, terms, spec.store, spec.sketch)


def _compute_once(
    folder: Path,
    spec: CacheSpec,
    experiment: Experiment,
    splits: data.Splits,
    teacher: keras.Model,
    terms: list[Term],
    observer: Observer,
) -> None:
    if not folder.exists():
        with build.telling("teacher.cache"):
            cache.compute(
                folder,
                teacher,
                terms,
                splits.train,
                batch_size=experiment.data.batch_size,
                augmentation=build.augmentation(experiment.data),
                teacher_dtype=experiment.teacher_dtype,
                tell=observer.cached,
                **spec.model_dump(include=ASKED),
            )
