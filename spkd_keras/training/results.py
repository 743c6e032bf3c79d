"""What a run came to: its errors, and its picture of similarities."""

from typing import Any

import keras
import numpy as np

from spkd_keras import data, models
from spkd_keras.distiller import taps
from spkd_keras.experiment import Network
from spkd_keras.losses import similarity_matrix
from spkd_keras.storage import replace
from spkd_keras.training import build
from spkd_keras.training.folder import DATA_DIGEST, LAYERS, START_DIGEST, RunFolder

EVALUATION_BATCH = 256
PICTURE_IMAGES = 128  # about so many in the picture of the similarity matrices


def summarise(
    folder: RunFolder,
    student: keras.Model,
    splits: data.Splits,
    surroundings: dict[str, Any],
    progress: dict[str, Any],
) -> dict[str, Any]:
    """What a run came to. Errors are fractions; the test labels are read here, once."""
    experiment = folder.experiment
    best = build.construct(Network(path=str(folder.best)), "best.keras") if folder.best.exists() else None
    images = experiment.schedule.epochs * len(splits.train)
    seconds = progress["training_seconds"]
    test_errors = _errors(student, splits.test)
    return {
        "experiment": experiment.name,
        "method": folder.method,
        "seed": folder.seed,
        "test_error": float(np.mean(test_errors)),
        "test_error_best": best and error_of(best, splits.test),
        "validation_error": splits.validation and error_of(student, splits.validation),
        "epochs": experiment.schedule.epochs,
        "images": images,
        "wall_seconds": round(seconds, 3),
        "images_per_second": round(images / seconds, 1) if seconds else None,
        "peak_memory_bytes": progress["peak_memory_bytes"],
        "parameters": student.count_params(),
        "multiply_adds": models.multiply_adds(student),
        "teacher_fingerprint": surroundings["teacher_fingerprint"],
        DATA_DIGEST: surroundings[DATA_DIGEST],
        START_DIGEST: surroundings[START_DIGEST],
        LAYERS: surroundings[LAYERS],
        "versions": surroundings["versions"],
        "devices": surroundings["devices"],
        "processor": surroundings["processor"],
        "threads": surroundings["intra_op_threads"],
        "strategy": surroundings["strategy"],
        "replicas": surroundings["replicas"],
        "workers": surroundings["workers"],
        "gathered_bytes_a_step": surroundings.get("gathered_bytes_a_step"),
        "earlier_conditions": surroundings.get("earlier_conditions", []),
        "data": splits.origin,
        "class_names": list(splits.train.class_names),
        "test_error_by_class": _by_class(test_errors, splits.test),
    }


def error_of(network: keras.Model, images: data.AnyImages) -> float:
    """Returns the fraction of images that are put into a wrong class."""
    return float(np.mean(_errors(network, images)))


def _errors(network: keras.Model, images: data.AnyImages) -> np.ndarray:
    """Returns for each image whether it is put into a wrong class."""
    predictions = network.predict(data.evaluation_batches(images, EVALUATION_BATCH), verbose=0)
    return np.argmax(predictions, axis=-1) != images.labels


def _by_class(errors: np.ndarray, images: data.AnyImages) -> list[float | None]:
    """Returns the error of each class, in the order of their names; None for one without images."""
    own = [errors[images.labels == label] for label in range(len(images.class_names))]
    return [float(np.mean(some)) if len(some) else None for some in own]


def write_similarities(
    folder: RunFolder, teacher: keras.Model | None, student: keras.Model, test: data.AnyImages
) -> None:
    """Writes the similarity matrices of the first test images of each class, sorted by class."""
    classes = min(len(test.class_names), PICTURE_IMAGES)
    chosen = np.concatenate(
        [np.flatnonzero(test.labels == label)[: PICTURE_IMAGES // classes] for label in range(classes)]
    )
    ((pixels, _),) = data.evaluation_batches(test.take(chosen), len(chosen))
    networks = {"student": student, "teacher": teacher}
    found = {name: _similarities(network, pixels) for name, network in networks.items() if network is not None}
    matrices: dict[str, Any] = {name: matrix for name, matrix in found.items() if matrix is not None}
    replace(folder.similarity, lambda path: np.savez_compressed(path, labels=test.labels[chosen], **matrices))


def _similarities(network: keras.Model, pixels: Any) -> np.ndarray | None:
    """Returns the matrix of the last stage; None if it has none, as a teacher from a file."""
    try:
        place = taps.resolve(network, None, "last_stage", "network")
    except ValueError:
        return None
    (activations,) = taps.tapped(network, place)(pixels, training=False)["taps"]
    return np.asarray(similarity_matrix(activations))
