"""Distillation losses: ordinary `keras.losses.Loss` objects, called as `loss(teacher_tensor, student_tensor)`."""

from spkd_keras.losses.base import DistillationLoss
from spkd_keras.losses.logits import SoftTargets, soft_targets
from spkd_keras.losses.relational import SimilarityPreserving, similarity_matrix, similarity_preserving

LOSSES: dict[str, type[DistillationLoss]] = {
    "similarity_preserving": SimilarityPreserving,
    "soft_targets": SoftTargets,
}

__all__ = [
    "LOSSES",
    "DistillationLoss",
    "SimilarityPreserving",
    "SoftTargets",
    "similarity_matrix",
    "similarity_preserving",
    "soft_targets",
]
