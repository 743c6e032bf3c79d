"""Distillation losses: ordinary `keras.losses.Loss` objects, called as `loss(teacher_tensor, student_tensor)`."""

import keras

from spkd_keras.losses.base import DistillationLoss, snake_case
from spkd_keras.losses.embeddings import PKT, CorrelationCongruence, RelationalAngle, RelationalDistance
from spkd_keras.losses.feature_maps import AttentionTransfer, InterChannelCorrelation, NeuronSelectivity
from spkd_keras.losses.features import Hint, Projection, ProjectorEnsemble, VariationalHead, VariationalInformation
from spkd_keras.losses.logits import (
    DIST,
    DecoupledDistillation,
    SoftTargets,
    decoupled_distillation,
    soft_targets,
    standardized,
)
from spkd_keras.losses.relational import SimilarityPreserving, similarity_matrix, similarity_preserving

LOSSES: dict[str, type[keras.losses.Loss]] = {
    snake_case(kind.__name__): kind
    for kind in (
        SimilarityPreserving,
        SoftTargets,
        DecoupledDistillation,
        DIST,
        keras.losses.MeanSquaredError,
        AttentionTransfer,
        NeuronSelectivity,
        InterChannelCorrelation,
        RelationalDistance,
        RelationalAngle,
        PKT,
        CorrelationCongruence,
        Hint,
        VariationalInformation,
        Projection,
    )
}

__all__ = [
    "DIST",
    "LOSSES",
    "PKT",
    "AttentionTransfer",
    "CorrelationCongruence",
    "DecoupledDistillation",
    "DistillationLoss",
    "Hint",
    "InterChannelCorrelation",
    "NeuronSelectivity",
    "Projection",
    "ProjectorEnsemble",
    "RelationalAngle",
    "RelationalDistance",
    "SimilarityPreserving",
    "SoftTargets",
    "VariationalHead",
    "VariationalInformation",
    "decoupled_distillation",
    "similarity_matrix",
    "similarity_preserving",
    "soft_targets",
    "standardized",
]
