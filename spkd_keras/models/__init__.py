"""Networks: width-multiplied classifiers that take raw pixels and return logits."""

from collections.abc import Callable

import keras

from spkd_keras.models.cost import multiply_adds
from spkd_keras.models.fingerprint import fingerprint
from spkd_keras.models.precision import PRECISIONS, in_precision
from spkd_keras.models.wide_resnet import wide_resnet

BUILDERS: dict[str, Callable[..., keras.Model]] = {"wide_resnet": wide_resnet}

__all__ = ["BUILDERS", "PRECISIONS", "fingerprint", "in_precision", "multiply_adds", "wide_resnet"]
