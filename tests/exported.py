"""A small network in every format, which the tests of exports share."""

from pathlib import Path

import keras
import numpy as np
import pytest
from architectures import randomize
from networks import images, small_network

from spkd_keras.export import FORMATS, Export, export_student

NAMES = ("cat", "dog", "äpple", "4")
FILES = {"saved_model": "saved_model", "litert": "student.tflite", "onnx": "student.onnx"}
each_format = pytest.mark.parametrize("kind", FORMATS)


def exported_network() -> keras.Model:
    """Two convolutions with random weights, normalisation's too."""
    keras.utils.set_random_seed(0)
    return randomize(small_network(8))


def exported(network: keras.Model, folder: Path) -> dict[str, Export]:
    """The network in every format, compared on images with labels."""
    given, labels = images(40)
    return {
        name: export_student(network, folder / file, name, images=given, labels=labels, class_names=NAMES)
        for name, file in FILES.items()
    }


def logits_of(network: keras.Model, given: np.ndarray) -> np.ndarray:
    """What the network says of raw pixels."""
    return np.asarray(network(given.astype("float32"), training=False))
