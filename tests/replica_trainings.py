"""What the tests of replicas train, on how many devices, and how far two trainings are apart."""

import contextlib
import functools

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from networks import CLASSES, IMAGE_SHAPE, cross_entropy, images

from spkd_keras import Distiller, Term, losses, models, optimizers
from spkd_keras.models import blocks

BATCH, COUNT, ODD = 16, 48, 53
TERMS = {
    "similarity_preserving": lambda: Term(losses.SimilarityPreserving(), 30.0),
    "soft_targets": lambda: Term(losses.SoftTargets(), 0.9),
    "relational_distance": lambda: Term(losses.RelationalDistance(), 5.0),
}


def network(channels=4, regularizer=None, policy="float32", synchronized=None):
    """Two convolutions with this package's BatchNormalization, synchronised under a strategy unless told."""
    image = keras.Input(IMAGE_SHAPE, name="image")
    x = layers.Rescaling(1 / 127.5, -1.0, dtype="float32", name="preprocessing")(image)
    for stage in (1, 2):
        convolution = layers.Conv2D(
            channels, 3, stage, padding="same", kernel_regularizer=regularizer, name=f"conv{stage}"
        )
        x = blocks.batch_normalization(convolution(x), synchronized=synchronized, name=f"bn{stage}")
        x = layers.ReLU(name=f"stage{stage}")(x)
    x = layers.GlobalAveragePooling2D(name="pooling")(x)
    student = keras.Model(image, layers.Dense(CLASSES, dtype="float32", name="logits")(x))
    return student if policy == "float32" else models.in_precision(student, policy)


@functools.cache
def mirrored(count):
    """One strategy for each number of devices, with its own keys for their messages: a process should have but one."""

    class Mirrored(tf.distribute.MirroredStrategy):
        _collective_key_base = 1000 * count  # "only set this in tests"

    return Mirrored([f"CPU:{index}" for index in range(count)])


def scope(strategy):
    return strategy.scope() if strategy else contextlib.nullcontext()


def build(strategy, terms=None, policy="float32", optimizer=None, synchronized=None, regularizer="l2", **compiled):
    keras.utils.set_random_seed(3)
    with scope(strategy):
        teacher, student = network(8), network(4, regularizer, policy, synchronized)
        terms = [make() for make in (TERMS if terms is None else terms).values()]
        distiller = Distiller(teacher, student, terms, evaluate_terms=True)
        optimizer = optimizer() if optimizer else optimizers.CoupledSGD(0.05, 0.9, weight_decay=5e-4)
        distiller.compile(optimizer, cross_entropy(), metrics=["accuracy"], **compiled)
    return distiller


def trained(strategy, count=COUNT, as_dataset=False, fitted=None, validated=False, **built):
    """Returns the student's weights, the logs of training and evaluation, and the Distiller."""
    distiller = build(strategy, **built)
    x, y = images(ODD)
    data = (x[:count], y[:count])
    held_out = {"validation_data": (x, y), "validation_batch_size": BATCH}
    if as_dataset:
        data = (tf.data.Dataset.from_tensor_slices(data).batch(BATCH),)
        held_out = {"validation_data": tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)}
    if not validated:
        held_out = {}
    if not as_dataset:
        held_out["batch_size"] = BATCH
    logs = distiller.fit(*data, shuffle=False, verbose=0, **held_out, **(fitted or {})).history
    weights = distiller.student.get_weights()
    return weights, {name: values[0] for name, values in logs.items()}, distiller


def weights_apart(one, other):
    """The largest difference between weights."""
    return max(float(np.abs(a - b).max()) for a, b in zip(one[0], other[0], strict=True))


def difference(one, other):
    """The largest of the weights, of the logs relative to their size, and whether the accuracies are the same."""
    assert set(one[1]) == set(other[1])
    logs = max(abs(one[1][name] - other[1][name]) / max(1.0, abs(one[1][name])) for name in one[1])
    same = all(one[1][name] == other[1][name] for name in one[1] if "accuracy" in name)
    return {"weights": weights_apart(one, other), "logs": logs, "same_accuracy": same}


def message(do, *kinds):
    """What an error says, or that there was none."""
    try:
        do()
    except Exception as error:
        if kinds and not isinstance(error, kinds):
            raise
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return text if len(text) < 600 else f"{text[:200]} ... {text[-200:]}"
    return None
