"""Figures of merit of a classifier's predictions. Without TensorFlow."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from spkd_keras.experiment import ClearError

BINS = 15


class UnsoundOutputsError(ClearError, RuntimeError):
    """A network whose outputs are no numbers. The message is one clear line."""


def sound(outputs: dict[str, np.ndarray]) -> np.ndarray:
    """Says for each image whether there are probabilities for it, shape (n,), which a NaN leaves none of.

    Args:
        outputs: `logits` and `probabilities`, of shape (n, classes).
    """
    logits, probabilities = outputs["logits"], outputs["probabilities"]
    found: np.ndarray = ~np.isnan(logits).any(axis=-1) & np.isfinite(probabilities).all(axis=-1)
    return found


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """How far confidence is from accuracy: sum over bins m of |B_m| / n * |accuracy(B_m) - confidence(B_m)|.

    Bin B_m holds the images whose confidence, the probability of the predicted class, is in ((m - 1) / M, m / M].

    Args:
        probabilities: shape (n, classes), rows of sum one.
        labels: shape (n,).
        bins: M, default 15.

    Returns:
        From 0, calibrated, to 1.

    Reference: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 3.
    """
    confidence = probabilities.max(axis=-1)
    right = probabilities.argmax(axis=-1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int), 1, bins)
    error = 0.0
    for index in range(1, bins + 1):
        inside = place == index
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return float(error)


def per_class(matrix: np.ndarray, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns, for each class, its images, recall (how many of them were found) and precision (how many were right).

    A class without images has no recall, one that was never predicted no precision: None.
    """
    found, of_class, of_prediction = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    return [
        {
            "class": name,
            "images": int(of_class[index]),
            "recall": float(found[index] / of_class[index]) if of_class[index] else None,
            "precision": float(found[index] / of_prediction[index]) if of_prediction[index] else None,
        }
        for index, name in enumerate(class_names)
    ]


def differing_class(own: Sequence[str] | None, given: Sequence[str]) -> int | None:
    """Returns the first class whose name differs between a network and data; None if all are the same.

    A network without names, or with the numbers that stand for them, may be of any classes.

    Args:
        own: the network's names, or None.
        given: the data's, as many.
    """
    if own is None or list(own) == [str(number) for number in range(len(own))]:
        return None
    return next((number for number, (a, b) in enumerate(zip(own, given, strict=True)) if a != b), None)


def evaluate(outputs: dict[str, np.ndarray], labels: np.ndarray, class_names: tuple[str, ...]) -> dict[str, Any]:
    """Returns what there is to say of predictions, as plain data.

    Args:
        outputs: `logits` and `probabilities`, of shape (n, classes).
        labels: shape (n,).
        class_names: one for each class.

    Raises:
        UnsoundOutputsError: if there are images for which the network gives no numbers.
    """
    from sklearn.metrics import confusion_matrix

    unsound = int(np.sum(~sound(outputs)))
    if unsound:
        raise UnsoundOutputsError(
            f"gives no numbers (NaN or infinite) for {unsound:,} of {len(labels):,} images, so there is nothing to "
            "evaluate. Its training diverged, or its file is of too little precision."
        )
    predicted = outputs["logits"].argmax(axis=-1)
    matrix = confusion_matrix(labels, predicted, labels=range(len(class_names)))  # a row for each class
    return {
        "images": len(labels),
        "accuracy": float(np.mean(predicted == labels)),
        "expected_calibration_error": expected_calibration_error(outputs["probabilities"], labels),
        "mean_confidence": float(outputs["probabilities"].max(axis=-1).mean()),
        "per_class": per_class(matrix, class_names),
        "confusion": matrix.tolist(),
    }


def against(teacher: np.ndarray, student: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Compares a student with its teacher.

    Args:
        teacher: predicted classes, shape (n,).
        student: the same of the student.
        labels: shape (n,).

    Returns:
        The fraction on which they agree, and how many images both, only one, or neither gets right.
    """
    by_teacher, by_student = teacher == labels, student == labels
    return {
        "agreement": float(np.mean(teacher == student)),
        "both_right": int(np.sum(by_teacher & by_student)),
        "only_teacher_right": int(np.sum(by_teacher & ~by_student)),
        "only_student_right": int(np.sum(~by_teacher & by_student)),
        "both_wrong": int(np.sum(~by_teacher & ~by_student)),
    }
