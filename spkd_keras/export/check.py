"""Showing that an export is the student: both run on the same images."""

from typing import Any, NamedTuple

import keras
import numpy as np

from spkd_keras.experiment import ClearError
from spkd_keras.export.runners import Runner
from spkd_keras.models import in_precision

TOLERANCE = 1e-4  # of a float32 export's logits
# Of the largest logit, where that is above 25: about 32 steps of float32, which sums in another order can differ by.
RELATIVE_TOLERANCE = 4e-6
# Of probabilities in less precision from the softmax of the export's own logits: int8 has steps of 1/256.
SOFTMAX_TOLERANCE = 0.01
ROUNDING = 1e-9  # of shares of images: 1 - 0.98 is a little more than 0.02
BATCH = 32
OTHER_WAYS = 4  # images, for what an export has beside the way in which all are compared
NOISE = "noise"


class ExportMismatch(ClearError, RuntimeError):  # noqa: N818  (a mismatch is what it is)
    """An export that does not compute what the student does. Its file is removed."""


class Check(NamedTuple):
    """How an export compares with the student.

    Attributes:
        images: how many were compared.
        of: what they were, in words.
        largest_difference: of the logits, from the student in float32.
        largest_logit: of the student, without sign.
        probability_difference: the largest, of the probabilities, from the softmax of the student's logits.
        softmax_error: the largest, of the probabilities, from the softmax of the export's own logits.
        agreement: fraction of the images for which both predict the same class.
        student_accuracy: of the student as it was trained; None without labels.
        export_accuracy: of the export; None without labels.
    """

    images: int
    of: str
    largest_difference: float
    largest_logit: float
    probability_difference: float
    softmax_error: float
    agreement: float
    student_accuracy: float | None
    export_accuracy: float | None

    @property
    def accuracy_drop(self) -> float | None:
        """The student's accuracy less the export's."""
        if self.student_accuracy is None or self.export_accuracy is None:
            return None
        return self.student_accuracy - self.export_accuracy


class Reference:
    """What the student says of some images.

    Args:
        student: in any precision; the logits are those of its float32 clone, which is what is exported.
        pixels: shape (n, height, width, channels), uint8.
        labels: shape (n,), or None.
        of: what the images are, in words.
    """

    def __init__(self, student: keras.Model, pixels: np.ndarray, labels: np.ndarray | None, of: str) -> None:
        self.pixels, self.labels, self.of = pixels, labels, of
        own = _predict(student, pixels)
        is_float32 = all(layer.compute_dtype == "float32" for layer in student._flatten_layers(include_self=False))
        self.network = student if is_float32 else in_precision(student, "float32")
        self.logits = own if is_float32 else _predict(self.network, pixels)
        self.accuracy = _accuracy(own, labels)

    @property
    def is_noise(self) -> bool:
        """Whether there are no real images."""
        return self.of == NOISE

    def compare(self, runner: Runner) -> Check:
        """Runs an export: the first image alone, then all in batches of 32 with what is left over.

        What else it has, a SavedModel's other signatures, is run on the first images.
        """
        alone, batches = runner.predict(self.pixels[:1]), runner.predict(self.pixels, BATCH)
        parts, expected_parts = [alone, batches], [self.logits[:1], self.logits]
        some = self.pixels[:OTHER_WAYS]
        for seen, given in runner.other_ways(some):
            parts.append(given)
            expected_parts.append(self.logits[: len(some)] if seen is some else _predict(self.network, seen))
        outputs = {name: np.concatenate([part[name] for part in parts]) for name in batches}
        expected = np.concatenate(expected_parts)
        logits, probabilities = batches["logits"], outputs["probabilities"]
        return Check(
            images=len(self.pixels),
            of=self.of,
            largest_difference=_largest(outputs["logits"] - expected),
            largest_logit=_largest(self.logits),
            probability_difference=_largest(probabilities - _softmax(expected)),
            softmax_error=_largest(probabilities - _softmax(outputs["logits"])),
            agreement=float(np.mean(np.argmax(logits, axis=-1) == np.argmax(self.logits, axis=-1))),
            student_accuracy=self.accuracy,
            export_accuracy=_accuracy(logits, self.labels),
        )


def judge(check: Check, quantize: str | None, largest_drop: float, what: str) -> None:
    """Lets an export pass or not.

    Raises:
        ExportMismatch: if a float32 export's logits or probabilities differ by more than 1e-4 (of logits above 25, 4e-6
            of the largest), one in less precision loses more than `largest_drop` of the accuracy, or without labels of
            the agreement, or its probabilities are not the softmax of its logits.
    """
    if quantize is None:
        allowed = max(TOLERANCE, RELATIVE_TOLERANCE * check.largest_logit)
        if not check.largest_difference <= allowed:  # so that NaN fails
            raise ExportMismatch(
                f"{what} is not the student: its logits differ by up to {check.largest_difference:.2e} on "
                f"{check.images} images, where {allowed:g} is allowed; the predicted classes agree on "
                f"{check.agreement:.2%}. It was removed."
            )
        if not check.probability_difference <= allowed:
            raise ExportMismatch(
                f"{what} is not the student: its probabilities differ by up to {check.probability_difference:.2e} from "
                f"the softmax of the student's logits on {check.images} images, where {allowed:g} is allowed. "
                "It was removed."
            )
        if check.accuracy_drop is not None and check.accuracy_drop > largest_drop + ROUNDING:
            # The logits are compared with those of the student in float32, which may be another thing than the student.
            raise ExportMismatch(
                f"{what} loses {100 * check.accuracy_drop:.2f} points of accuracy on {check.images} images, where "
                f"{100 * largest_drop:g} are allowed: the student in float32 is not the student. It was removed."
            )
        return
    drop = 1 - check.agreement if check.accuracy_drop is None else check.accuracy_drop
    if not (drop <= largest_drop + ROUNDING and np.isfinite(check.largest_difference)):
        lost = "agreement" if check.accuracy_drop is None else "accuracy"
        raise ExportMismatch(
            f"{what} loses {100 * drop:.2f} points of {lost} on {check.images} images, where "
            f"{100 * largest_drop:g} are allowed; its logits differ by up to {check.largest_difference:.2e}. "
            "It was removed."
        )
    if not check.softmax_error <= SOFTMAX_TOLERANCE:
        raise ExportMismatch(
            f"{what} gives probabilities that differ by up to {check.softmax_error:.2e} from the softmax of its own "
            f"logits on {check.images} images, where {SOFTMAX_TOLERANCE:g} is allowed. It was removed."
        )


def _largest(differences: np.ndarray) -> float:
    return float(np.abs(differences).max())  # NaN stays NaN


def _softmax(logits: np.ndarray) -> np.ndarray:
    return np.asarray(keras.ops.softmax(logits))


def _predict(network: keras.Model, pixels: np.ndarray) -> np.ndarray:
    parts: list[Any] = [
        network.predict_on_batch(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)
    ]
    return np.concatenate(parts).astype("float32")


def _accuracy(logits: np.ndarray, labels: np.ndarray | None) -> float | None:
    return None if labels is None else float(np.mean(np.argmax(logits, axis=-1) == labels))
