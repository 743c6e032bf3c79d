"""What plain Keras and TensorFlow still fail at on two replicas: for each workaround, what tells when it can go."""

import functools

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from networks import CLASSES, IMAGE_SHAPE, cross_entropy, images
from replica_trainings import message, mirrored


def plain_keras(strategy, optimizer="sgd", **compiled):
    with strategy.scope():
        model = keras.Sequential([keras.Input(IMAGE_SHAPE), layers.Flatten(), layers.Dense(CLASSES)])
        model.compile(optimizer() if callable(optimizer) else optimizer, cross_entropy(), **compiled)
    return model


def plain_fit(count=16, optimizer="sgd", **compiled):
    x, y = images(16)
    return message(
        lambda: plain_keras(mirrored(2), optimizer, **compiled).fit(x[:count], y[:count], batch_size=8, verbose=0)
    )


def accumulating():
    return keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)


def averaging():
    return keras.optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=1)


@tf.function
def gather_bfloat16():
    return mirrored(2).run(
        lambda: tf.distribute.get_replica_context().all_gather(tf.zeros([2, 2], tf.bfloat16), axis=0)
    )


class Partly(keras.Sequential):
    """Logs one of its two metrics."""

    def train_step(self, data):
        self.value.update_state(data)
        self.other.update_state(data)
        return {"value": self.value.result()}


def logged():
    """The mean of six zeros and a one, of which the second replica has three."""
    with mirrored(2).scope():
        model = Partly([keras.Input((1,)), layers.Dense(1)])
        model.value, model.other = keras.metrics.Mean("value"), keras.metrics.Mean("other")
        model.compile("sgd")
    logs = model.fit(np.array([[0], [0], [0], [0], [0], [0], [1.0]]), batch_size=4, shuffle=False, verbose=0)
    return logs.history["value"][0]


class Pulling(keras.Sequential):
    """Has a gradient of 1 on every replica."""

    def train_step(self, data):
        self.optimizer.apply_gradients([(tf.ones_like(weight), weight) for weight in self.trainable_weights])
        return {"loss": tf.zeros(())}


def clipped_twice():
    """What a sum of 2, clipped to 1, takes from weights of 0."""
    with mirrored(2).scope():
        model = Pulling([keras.Input((2,)), layers.Dense(1, kernel_initializer="zeros", use_bias=False)])
        model.compile(keras.optimizers.SGD(1.0, clipvalue=1.0))
    model.fit(np.zeros((4, 2)), batch_size=4, verbose=0)
    return float(model.get_weights()[0][0, 0])


def draws():
    """What Dropout leaves of ones, on each replica."""
    with mirrored(2).scope():
        layer = layers.Dropout(0.5)

    @tf.function
    def dropped():
        return mirrored(2).run(lambda: layer(tf.ones([64]), training=True))

    return [value.numpy().tolist() for value in mirrored(2).experimental_local_results(dropped())]


def empty_channels():
    """How many channels a convolution to four gives for no images, when the graph does not know their number."""

    @tf.function
    def convolved():
        pixels, kernel = tf.zeros([tf.random.uniform([], 0, 1, tf.int32), 8, 8, 1]), tf.zeros([3, 3, 1, 4])
        return tf.nn.conv2d(pixels, kernel, 1, "SAME")

    return int(convolved().shape[-1])


def inside_a_condition():
    with mirrored(2).scope():
        variable = tf.Variable(0.0, aggregation=tf.VariableAggregation.SUM)

    @tf.function
    def step():
        mirrored(2).run(lambda: tf.cond(variable < 1, lambda: variable.assign_add(1.0), lambda: variable + 0.0))

    step()


class Overflowing(keras.Sequential):
    """Has a gradient that is not finite on the second replica alone."""

    def train_step(self, data):
        number = tf.distribute.get_replica_context().replica_id_in_sync_group
        gradients = [tf.ones_like(weight) * tf.where(number == 1, np.inf, 1.0) for weight in self.trainable_weights]
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        return {"loss": tf.zeros(())}


def overflow_is_skipped():
    with mirrored(2).scope():
        model = Overflowing([keras.Input((2,)), layers.Dense(1)])
        model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=4.0))
    model.fit(np.zeros((4, 2)), batch_size=4, verbose=0)
    return bool(np.isfinite(model.get_weights()[0]).all())


# Errors are None, and values others, once Keras and TensorFlow do it.
TRIED = {
    "odd_first_batch": functools.partial(plain_fit, 5, metrics=["accuracy"]),
    "jit": functools.partial(plain_fit, jit_compile=True),
    "steps": functools.partial(plain_fit, steps_per_execution=2),
    "accumulation": functools.partial(plain_fit, optimizer=accumulating),
    "ema": functools.partial(plain_fit, optimizer=averaging),
    "bfloat16": functools.partial(message, gather_bfloat16),
    "logs": logged,
    "clipped": clipped_twice,
    "draws": draws,
    "empty_channels": empty_channels,
    "condition": functools.partial(message, inside_a_condition),
    "second_replicas_overflow_is_skipped": overflow_is_skipped,
}


def still_needed():
    return {name: found() for name, found in TRIED.items()}
