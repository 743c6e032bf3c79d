"""What each part of a method's loss is worth on real batches, before anything is trained."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from spkd_keras.distiller import Distiller, LossPart, loss_parts, tap_values
from spkd_keras.losses import SimilarityPreserving, similarity_matrix
from spkd_keras.training.findings import Finding

FEW_PAIRS = 120  # of 16 images
# The published gammas are 21 to 23 times the batch size: 3000 at 128 (CIFAR-10), 2000 at 96 (CINIC-10). A similarity
# loss is at most 2 / batch for activations that are not negative, so this is what the product is tied to. The least
# that a search on held-out images chose is 3 at 128 (experiments/cpu/cifar10-shufflenet_v2.yaml).
GAMMA_PER_IMAGE = (0.02, 100.0)
OVERFLOW = 1.8e19  # from here on the square of a norm is not finite in float32, and a training step is not applied
STRONG, WEAK = 30.0, 1e-3  # gradient norm beside that of the labels


class PartRow(NamedTuple):
    """A part of a method's loss, the mean over some batches.

    Attributes:
        name: `student_loss` or a term's.
        value: unweighted.
        weight: of the part.
        share: of weight * value in the whole loss.
        gradient_norm: of weight * value, with the student's weights.
        pairs: of different images in a similarity matrix; 0 where none are compared.
    """

    name: str
    value: float
    weight: float
    share: float
    gradient_norm: float
    pairs: int


def check_method(
    distiller: Distiller, batches: Sequence[tuple[Any, Any]], place: str, trained: bool
) -> tuple[list[PartRow], list[Finding]]:
    """Computes a method's loss on some batches, and changes nothing.

    Args:
        distiller: compiled, with the student as it starts.
        batches: of images and labels.
        place: in the experiment.
        trained: whether the teacher is what will be distilled from; without, its values say nothing.
    """
    tried = [loss_parts(distiller, x, y) for x, y in batches]
    parts = {name: LossPart(*np.mean([parts[name] for parts in tried], axis=0).tolist()) for name in tried[0]}
    total = sum(part.weight * part.value for part in parts.values()) or 1.0
    size = len(batches[0][1])
    relational = {str(term.name): term for term in distiller.terms if term.batch_relational}
    pairs = size * (size - 1) // 2
    rows = [
        PartRow(
            name, p.value, p.weight, p.weight * p.value / total, p.gradient_norm, pairs if name in relational else 0
        )
        for name, p in parts.items()
    ]
    findings = _not_finite(rows, place) or (_balance(rows, place) if trained else [])
    if relational and pairs < FEW_PAIRS:
        found = f"a batch of {size} images has {pairs} pairs to compare."
        findings.append(Finding("warning", place, found, "Raise data.batch_size, to 64 or more if memory allows."))
    for name, term in relational.items():
        if isinstance(term.loss, SimilarityPreserving):
            findings += _gamma(name, term.weight, size, place)
            findings += _dead_rows(name, distiller, batches, place, trained)
    return rows, findings


def _not_finite(rows: list[PartRow], place: str) -> list[Finding]:
    bad = [row.name for row in rows if not math.isfinite(row.value) or not row.gradient_norm < OVERFLOW]
    found = f"not finite on the first batches: {', '.join(bad)}."
    return [Finding("stop", place, found, "Lower the weights; look at the teacher's activations.")] if bad else []


def _balance(rows: list[PartRow], place: str) -> list[Finding]:
    """Compares the pull of each term with that of the labels."""
    labels = next((row.gradient_norm for row in rows if row.name == "student_loss"), 0.0)
    findings = []
    for row in rows:
        if row.name == "student_loss" or not labels or not row.weight:
            continue
        ratio = row.gradient_norm / labels
        found = f"the gradient of {row.name} is {ratio:.3g} times that of the labels."
        if ratio > STRONG:
            findings.append(Finding("warning", place, found, "It drowns them. Lower its weight."))
        elif ratio < WEAK:
            findings.append(Finding("warning", place, found, "It does next to nothing. Raise its weight."))
    return findings


def _gamma(name: str, weight: float, size: int, place: str) -> list[Finding]:
    low, high = (bound * size for bound in GAMMA_PER_IMAGE)
    if not weight or low <= weight <= high:
        return []
    found = (
        f"the weight of {name} is {weight:g} at {size} images a batch, where {low:g} to {high:g} is usual (the "
        "published 3000 is for 128)."
    )
    return [Finding("warning", place, found, "It is tied to the batch size: choose it on the held-out images.")]


def _dead_rows(
    name: str, distiller: Distiller, batches: Sequence[tuple[Any, Any]], place: str, trained: bool
) -> list[Finding]:
    """Counts images whose activations are all zero at a tap, which can be similar to nothing."""
    dead = {"teacher": 0, "student": 0}
    images = 0
    for x, _ in batches:
        for role, side in zip(dead, tap_values(distiller, x)[name], strict=True):
            for activations in keras.tree.flatten(side):
                rows = np.asarray(similarity_matrix(activations))
                dead[role] += int(np.sum(~rows.any(axis=1)))
                images += len(rows) if role == "teacher" else 0
    return [
        Finding(
            "warning",
            place,
            f"{count} of {images} images have no activation at all at the {role}'s tap of {name}.",
            "Their rows say nothing. Name a layer before its ReLU, or look at the network.",
        )
        for role, count in dead.items()
        if count and (trained or role == "student")
    ]
