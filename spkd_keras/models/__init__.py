"""Networks: width-multiplied classifiers that take raw pixels and return logits."""

from collections.abc import Callable

import keras

from spkd_keras.models.applications import applications, keras_application
from spkd_keras.models.cost import multiply_adds
from spkd_keras.models.fingerprint import fingerprint
from spkd_keras.models.folding import folded
from spkd_keras.models.mobilenet import mobilenet
from spkd_keras.models.mobilenet_v2 import mobilenet_v2
from spkd_keras.models.normalization import BatchNormalization, fused, fused_layers, renew_statistics, synchronized
from spkd_keras.models.precision import PRECISIONS, in_precision
from spkd_keras.models.resnet import resnet
from spkd_keras.models.shufflenet_v2 import shufflenet_v2
from spkd_keras.models.wide_resnet import wide_resnet

BUILDERS: dict[str, Callable[..., keras.Model]] = {
    "wide_resnet": wide_resnet,
    "resnet": resnet,
    "mobilenet": mobilenet,
    "mobilenet_v2": mobilenet_v2,
    "shufflenet_v2": shufflenet_v2,
}

__all__ = [
    "BUILDERS",
    "PRECISIONS",
    "BatchNormalization",
    "applications",
    "fingerprint",
    "folded",
    "fused",
    "fused_layers",
    "in_precision",
    "keras_application",
    "mobilenet",
    "mobilenet_v2",
    "multiply_adds",
    "renew_statistics",
    "resnet",
    "shufflenet_v2",
    "synchronized",
    "wide_resnet",
]
