"""Is the teacher one, on the very pixels and labels that the student will see?"""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from scipy.optimize import linear_sum_assignment

from spkd_keras import data
from spkd_keras.training.findings import Finding

SIGMAS = 3  # beyond what chance does to so few images
IMAGES_PER_CLASS = 5  # from which on a confusion of classes can be told
BATCH = 32  # as small as memory may ask for
TELLING = 0.9  # accuracy above which a bar tells nothing
ORDERED = 0.5  # accuracy from which on an assignment of classes is no accident of a network that knows nothing
SWAPS_SHOWN = 4


def check_teacher(
    teacher: keras.Model, pixels: np.ndarray, labels: np.ndarray, class_names: list[str]
) -> tuple[dict[str, Any], list[Finding]]:
    """Tries the teacher on images from the student's own pipeline.

    Args:
        teacher: to be distilled from.
        pixels: shape (images, height, width, channels), 0..255.
        labels: shape (images,), integers.
        class_names: of the data.

    Returns:
        `images`, `accuracy` and `outputs` ("logits" or "probabilities"), and what is wrong.
    """
    images, classes = len(labels), len(class_names)
    outputs = _outputs(teacher, pixels)
    findings = []
    kind = "logits"
    if np.all(outputs >= 0) and np.allclose(outputs.sum(axis=-1), 1, atol=1e-3):
        kind = "probabilities"
        advice = "Losses on logits need it without its softmax; those on features do not mind."
        findings.append(Finding("warning", "teacher", "it gives probabilities, not logits.", advice))
    facts: dict[str, Any] = {"images": images, "accuracy": None, "outputs": kind}
    if not np.isfinite(outputs).all():
        findings.append(Finding("stop", "teacher", "its outputs are not finite on these images.", "Look at its file."))
        return facts, findings
    if outputs.shape[-1] != classes:
        found = f"it has {outputs.shape[-1]} classes and the data {classes}, so its accuracy says nothing."
        return facts, [*findings, Finding("note", "teacher", found, "Methods that compare logits are not possible.")]
    predicted = outputs.argmax(axis=-1)
    accuracy = facts["accuracy"] = float(np.mean(predicted == labels))
    noise = max(0.1, SIGMAS * math.sqrt(0.5 / images))
    by_pixels = _better_pixels(teacher, pixels, labels, accuracy + noise)
    by_names = _better_names(predicted, labels, max(ORDERED, accuracy + noise), class_names)
    findings += [finding for finding in (by_pixels, by_names) if finding]
    chance = np.bincount(labels, minlength=classes).max() / images  # always the most frequent class
    bar = chance + SIGMAS * math.sqrt(chance * (1 - chance) / images)
    if bar >= TELLING:
        found = f"it is right on {accuracy:.1%} of {images} images, too few to tell it from guessing."
        findings.append(Finding("note", "teacher", found))
    elif accuracy <= bar:
        found = f"it is right on {accuracy:.1%} of {images} images, near the {chance:.1%} of guessing."
        advice = "Is it trained, on these classes in this order, and for pixels of 0..255?"
        findings.append(Finding("stop", "teacher", found, advice))
    return facts, findings


def _outputs(teacher: keras.Model, pixels: np.ndarray) -> np.ndarray:
    batches = data.prefetched(tf.data.Dataset.from_tensor_slices(pixels).batch(BATCH))
    return np.asarray(teacher.predict(batches, verbose=0), dtype="float32")


def _better_pixels(teacher: keras.Model, pixels: np.ndarray, labels: np.ndarray, above: float) -> Finding | None:
    """Looks whether the teacher was trained on other pixels: it should carry its own preprocessing."""
    mean, deviation = pixels.mean(axis=(0, 1, 2)), pixels.std(axis=(0, 1, 2)) + 1e-6
    others: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "x / 255": lambda x: x / 255,
        "x / 127.5 - 1": lambda x: x / 127.5 - 1,
        "(x - mean) / standard deviation": lambda x: (x - mean) / deviation,
    }
    if pixels.shape[-1] == 3:
        others["BGR in the place of RGB"] = lambda x: x[..., ::-1]
    accuracies = {}
    for name, change in others.items():  # one changed copy of the images at a time
        outputs = _outputs(teacher, change(pixels.astype("float32")).astype("float32"))
        accuracies[name] = float(np.mean(outputs.argmax(axis=-1) == labels))
    best = max(accuracies, key=lambda name: accuracies[name])
    if accuracies[best] <= above:
        return None
    found = (
        f"it is right on {accuracies[best]:.1%} of the images when it gets {best}: it wants other pixels than 0..255."
    )
    return Finding(
        "warning", "teacher", found, "Put its preprocessing into the network, as a Rescaling layer in front."
    )


def _better_names(predicted: np.ndarray, labels: np.ndarray, above: float, class_names: list[str]) -> Finding | None:
    """Looks whether the teacher knows the classes by other numbers: the assignment that fits best."""
    classes = len(class_names)
    if len(labels) < IMAGES_PER_CLASS * classes:
        return None
    from sklearn.metrics import confusion_matrix

    confusion = confusion_matrix(labels, predicted, labels=range(classes))
    meant, said = linear_sum_assignment(-confusion)
    accuracy = confusion[meant, said].sum() / len(labels)
    if accuracy <= above:
        return None
    swaps = [f"'{class_names[m]}' as '{class_names[s]}'" for m, s in zip(meant, said, strict=True) if m != s]
    shown = ", ".join(swaps[:SWAPS_SHOWN]) + (", ..." if len(swaps) > SWAPS_SHOWN else "")
    found = f"with its classes in another order it is right on {accuracy:.1%} of the images: it takes {shown}."
    return Finding("warning", "teacher", found, "Bring the labels and the teacher's outputs into one order.")
