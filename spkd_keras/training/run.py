"""One experiment: its teacher once, then every method with every seed."""

import functools
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import spkd_keras
from spkd_keras import data, models
from spkd_keras.distiller import taps
from spkd_keras.experiment import Experiment, ExperimentError
from spkd_keras.losses import similarity_matrix
from spkd_keras.observer import Observer
from spkd_keras.training import build
from spkd_keras.training.callbacks import Backup, Recorder, Reporter
from spkd_keras.training.folder import RunFolder, check_writable, replace, save_network, write_json

EVALUATION_BATCH = 256
PICTURE_IMAGES = 128  # about so many in the picture of the similarity matrices
PACKAGES = ("tensorflow", "keras", "numpy", "scikit-learn", "tensorflow-datasets")


def run_experiment(experiment: Experiment, out: str | Path = "runs", observer: Observer | None = None) -> Path:
    """Runs what is not finished of an experiment.

    The teacher is trained once and shared. Everything is built before anything is trained. A finished run is skipped,
    an interrupted one continues at its last epoch. Sets the global seed for each run, and makes TensorFlow's
    operations deterministic for the rest of the process.

    Args:
        experiment: what to run.
        out: folder under which the folder `<experiment.name>` is made.
        observer: is told how it goes.

    Returns:
        The folder with the runs.

    Raises:
        ExperimentError: if the experiment cannot be run as it is, before any training.
        FloatingPointError: if a loss is not finite.
    """
    observer = observer or Observer()
    root = Path(out) / experiment.name
    training = experiment.teacher_training()
    teacher_run = None if training is None else RunFolder(root, training)
    runs = [
        RunFolder(root, experiment.single(method, seed)) for seed in experiment.seeds for method in experiment.methods
    ]
    every = [teacher_run, *runs] if teacher_run else runs
    for folder in every:
        folder.check_owner()
    finished = [folder for folder in every if folder.finished]
    if len(finished) < len(every):
        check_writable(root)
        splits = build.load_data(experiment.data)
        build.check(experiment, splits)
    observer.planned([folder.path.name for folder in every], [folder.path.name for folder in finished])
    if len(finished) == len(every):
        return root
    tf.config.experimental.enable_op_determinism()
    if teacher_run and not teacher_run.finished:
        _train(teacher_run, splits, observer)
    teacher = _teacher(experiment, teacher_run, splits)
    fingerprint = None if teacher is None else models.fingerprint(teacher)
    if fingerprint is not None:
        _check_teacher(fingerprint, runs)
    for folder in runs:
        if not folder.finished:
            _train(folder, splits, observer, teacher, fingerprint)
    return root


def _teacher(experiment: Experiment, teacher_run: RunFolder | None, splits: data.Splits) -> keras.Model | None:
    if teacher_run:
        return keras.saving.load_model(teacher_run.student)
    return experiment.teacher and build.build_network(experiment.teacher, splits.train, "teacher")


def _check_teacher(fingerprint: str, runs: list[RunFolder]) -> None:
    """Checks that the runs so far were distilled from this teacher, whose file may have been replaced."""
    for folder in runs:
        if folder.environment.exists():
            recorded = json.loads(folder.environment.read_text(encoding="utf-8")).get("teacher_fingerprint")
            if recorded != fingerprint:
                raise ExperimentError(
                    f"{folder.path} was distilled from another teacher, fingerprint {recorded}. Received: one with "
                    f"{fingerprint}. Choose another folder with --out."
                )


def _train(
    folder: RunFolder,
    splits: data.Splits,
    observer: Observer,
    teacher: keras.Model | None = None,
    teacher_fingerprint: str | None = None,
) -> None:
    """Trains one student into its folder."""
    experiment, name = folder.experiment, folder.path.name
    folder.create()
    observer.started(name, experiment.schedule.epochs)
    keras.utils.set_random_seed(folder.seed)
    student = build.build_network(experiment.student, splits.train, "student")
    distiller = build.build_distiller(teacher, student, experiment, folder.method)
    augmentation = build.augmentation(experiment.data)
    clock, backup = data.EpochClock(), Backup(folder)
    facts = {"teacher_fingerprint": teacher_fingerprint, "data": splits.origin, "class_names": splits.train.class_names}
    recorder = Recorder(folder, {**_environment(), **facts})
    epochs_done = backup.restore(distiller)
    recorder.resume(epochs_done)
    observer.progressed(name, epochs_done, {})
    distiller.fit(
        data.training_batches(splits.train, experiment.data.batch_size, folder.seed, clock, augmentation),
        epochs=experiment.schedule.epochs,
        initial_epoch=epochs_done,
        verbose=0,
        shuffle=False,  # the data shuffle themselves
        validation_data=splits.validation
        and data.evaluation_batches(splits.validation, EVALUATION_BATCH, one_hot=augmentation.mixes_labels),
        callbacks=[
            clock,
            keras.callbacks.LearningRateScheduler(experiment.schedule.learning_rate_at),
            build.weight_schedules(distiller, experiment.methods[folder.method]),
            recorder,
            backup,
            Reporter(functools.partial(observer.progressed, name)),
        ],
    )
    save_network(folder.student, student)
    _write_similarities(folder, teacher, student, splits.test)
    summary = _summary(folder, teacher, student, splits, recorder)
    write_json(folder.summary, summary)
    backup.remove()
    observer.completed(name, summary)


def _summary(
    folder: RunFolder, teacher: keras.Model | None, student: keras.Model, splits: data.Splits, recorder: Recorder
) -> dict[str, Any]:
    """What a run came to. Errors are fractions; the test labels are read here, once."""
    experiment = folder.experiment
    best = keras.saving.load_model(folder.best) if folder.best.exists() else None
    images = experiment.schedule.epochs * len(splits.train)
    seconds = recorder.environment["training_seconds"]
    return {
        "experiment": experiment.name,
        "method": folder.method,
        "seed": folder.seed,
        "test_error": _error(student, splits.test),
        "test_error_best": best and _error(best, splits.test),
        "validation_error": splits.validation and _error(student, splits.validation),
        "epochs": experiment.schedule.epochs,
        "images": images,
        "wall_seconds": round(seconds, 3),
        "images_per_second": round(images / seconds, 1) if seconds else None,
        "parameters": student.count_params(),
        "multiply_adds": models.multiply_adds(student),
        "teacher_fingerprint": recorder.environment["teacher_fingerprint"],
        "versions": recorder.environment["versions"],
        "data": splits.origin,
        "class_names": list(splits.train.class_names),
    }


def _error(network: keras.Model, images: data.AnyImages) -> float:
    """Returns the fraction of images that are put into a wrong class."""
    predictions = network.predict(data.evaluation_batches(images, EVALUATION_BATCH), verbose=0)
    return float(np.mean(np.argmax(predictions, axis=-1) != images.labels))


def _write_similarities(
    folder: RunFolder, teacher: keras.Model | None, student: keras.Model, test: data.AnyImages
) -> None:
    """Writes the similarity matrices of the first test images of each class, sorted by class."""
    classes = min(len(test.class_names), PICTURE_IMAGES)
    chosen = np.concatenate(
        [np.flatnonzero(test.labels == label)[: PICTURE_IMAGES // classes] for label in range(classes)]
    )
    ((pixels, _),) = data.evaluation_batches(test.take(chosen), len(chosen))
    networks = {"student": student, "teacher": teacher}
    matrices: dict[str, Any] = {
        name: _similarities(network, pixels) for name, network in networks.items() if _has_last_stage(network)
    }

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, labels=test.labels[chosen], **matrices)

    replace(folder.similarity, write)


def _has_last_stage(network: keras.Model | None) -> bool:
    """A teacher from a file may have none; its methods then name the layers, and the picture leaves it out."""
    try:
        return network is not None and bool(taps.resolve(network, None, "last_stage", "network"))
    except ValueError:
        return False


def _similarities(network: keras.Model, pixels: Any) -> np.ndarray:
    place = taps.resolve(network, None, "last_stage", "network")
    (activations,) = taps.tapped(network, place)(pixels, training=False)["taps"]
    return np.asarray(similarity_matrix(activations))


def _environment() -> dict[str, Any]:
    """Returns what a result may depend on, with a clock that stands at zero."""
    cores = len(os.sched_getaffinity(0))
    devices = [device.name for device in tf.config.list_physical_devices()]
    return {
        "versions": {
            "python": platform.python_version(),
            "spkd_keras": spkd_keras.__version__,
            **{package: metadata.version(package) for package in PACKAGES},
        },
        "commit": _commit(),
        "platform": platform.platform(),
        "devices": devices,
        "intra_op_threads": tf.config.threading.get_intra_op_parallelism_threads() or cores,
        "inter_op_threads": tf.config.threading.get_inter_op_parallelism_threads() or cores,
        "training_seconds": 0.0,
    }


def _commit() -> str | None:
    """Returns the commit of the package's own checkout; None where it is installed, in another repository too."""
    package = Path(spkd_keras.__file__).parent
    command = ["git", "-C", str(package), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        top, commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None
    return commit if Path(top) == package.parent else None
