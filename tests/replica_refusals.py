"""What is refused on two replicas: the errors, which are None where there are none."""

import functools

import keras
import tensorflow as tf
from keras import layers
from networks import CLASSES, IMAGE_SHAPE, cross_entropy, images, small_network
from replica_trainings import build, message, mirrored, network

from spkd_keras import Distiller, Term, losses


def compiled(**arguments):
    return message(lambda: build(mirrored(2), terms={}, **arguments))


def optimizer_outside():
    with mirrored(2).scope():
        distiller = Distiller(None, network())
    optimizer = keras.optimizers.SGD(0.1)
    distiller.compile(optimizer, cross_entropy())


def student_outside():
    student = network()
    with mirrored(2).scope():
        Distiller(None, student).compile("sgd", cross_entropy())


def distiller_outside():
    with mirrored(2).scope():
        student = network()
    Distiller(None, student).compile("sgd", cross_entropy())


def dropping():
    with mirrored(2).scope():
        Distiller(None, small_network(dropout=0.5)).compile("sgd", cross_entropy())


def turning():
    with mirrored(2).scope():
        image = keras.Input(IMAGE_SHAPE)
        x = layers.Flatten()(layers.RandomFlip(name="turning")(image))
        Distiller(None, keras.Model(image, layers.Dense(CLASSES)(x))).compile("sgd", cross_entropy())


def open_shapes():
    """Trains on datasets whose sizes, or whose number of dimensions, TensorFlow does not know."""
    x, y = images(8)
    said = []
    for shape in ((None, None, None, IMAGE_SHAPE[-1]), None):
        spec = tf.TensorSpec(shape, x.dtype), tf.TensorSpec((None,), y.dtype)
        batches = tf.data.Dataset.from_generator(lambda: iter([(x, y)]), output_signature=spec)
        batches = batches.apply(tf.data.experimental.assert_cardinality(1))
        several = build(mirrored(2))
        said.append(message(lambda data=batches, several=several: several.fit(data, shuffle=False, verbose=0)))
    return said


def summed():
    with mirrored(2).scope():
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
        Distiller(None, network()).compile("sgd", loss)


def summed_term():
    with mirrored(2).scope():
        terms = [Term(losses.SimilarityPreserving(reduction="sum"))]
        Distiller(network(8), network(), terms).compile("sgd", cross_entropy())


def summing_layer():
    with mirrored(2).scope():
        image = keras.Input(IMAGE_SHAPE)
        layer = layers.Dense(CLASSES, activity_regularizer="l2", name="logits")
        Distiller(None, keras.Model(image, layer(layers.Flatten()(image)))).compile("sgd", cross_entropy())


def one_batch():
    several = build(mirrored(2), terms={})
    x, y = images(4)
    return [
        message(lambda: several.train_on_batch(x, y)),
        message(lambda: several.test_on_batch(x, y)),
        message(lambda: several.predict_on_batch(x)),
    ]


BUILT = (student_outside, distiller_outside, optimizer_outside, dropping, turning, summed, summed_term, summing_layer)
COMPILED = {
    "jit": {"jit_compile": True},
    "steps": {"steps_per_execution": 2},
    "accumulation": {"optimizer": functools.partial(keras.optimizers.SGD, 0.1, gradient_accumulation_steps=2)},
    "ema": {"optimizer": functools.partial(keras.optimizers.SGD, 0.1, use_ema=True, ema_overwrite_frequency=2)},
    "moving_average_without": {"optimizer": functools.partial(keras.optimizers.SGD, 0.1, use_ema=True)},
}


def refused():
    return {
        "one_batch": one_batch(),
        "open_shapes": open_shapes(),
        **{do.__name__: message(do) for do in BUILT},
        **{name: compiled(**arguments) for name, arguments in COMPILED.items()},
    }
