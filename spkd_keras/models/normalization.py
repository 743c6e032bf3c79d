"""Batch normalisation in one operation of TensorFlow."""

from collections.abc import Collection, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from spkd_keras.models.copying import copied


class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' own layer, computed by TensorFlow's fused kernel.

    Keras 3 (3.12 to 3.15) on TensorFlow computes the moments and the affine map as a chain of operations, each of which
    reads and writes the whole map. Images, shape (batch, height, width, channels) of 16 or 32 bits, go through one
    operation here. Everything else takes Keras' path: other ranks, axes and dtypes, masks, statistics that several
    replicas share, renormalisation, and a frozen layer in training, of which Keras' path computes less.

    Arguments, weights, configuration and the rule of the moving averages (biased variance) are Keras' own, and so is
    the name: a file says `keras.layers.BatchNormalization`, and loads where this package is not installed.
    """

    # Keras writes module and name of the class into files (`keras.saving.serialize_keras_object`, Keras 3.12 to 3.15),
    # and the name into the paths of weights.
    __module__ = "keras.layers"

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Normalises a batch, as Keras' layer does."""
        frozen = training and not self.trainable
        shared = training and self.synchronized and tf.distribute.get_strategy().num_replicas_in_sync > 1
        special = shared or getattr(self, "renorm", False)  # Keras 3.12 has no renormalisation yet
        if mask is not None or frozen or special or not _is_fusible(inputs, self.axis):
            return super().call(inputs, training=training, mask=mask)
        channels = self.moving_mean.shape
        gamma = ops.cast(self.gamma, "float32") if self.scale else tf.ones(channels)
        beta = ops.cast(self.beta, "float32") if self.center else tf.zeros(channels)
        moving_mean = ops.cast(self.moving_mean, "float32")
        moving_variance = ops.cast(self.moving_variance, "float32")
        # The raw operation: `tf.nn`'s wrapper raises an epsilon below 1.001e-5 to that.
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=gamma,
            offset=beta,
            mean=tf.zeros([0]) if training else moving_mean,
            variance=tf.zeros([0]) if training else moving_variance,
            epsilon=self.epsilon,
            is_training=bool(training),
        )
        if training:
            # The kernel divides by one less than the number of values, Keras by their number.
            count = tf.cast(tf.maximum(tf.reduce_prod(tf.shape(inputs)[:-1]), 1), "float32")
            variance = variance * ((count - 1) / count)
            momentum = self.momentum
            self.moving_mean.assign(moving_mean * momentum + mean * (1.0 - momentum))
            self.moving_variance.assign(moving_variance * momentum + variance * (1.0 - momentum))
        return ops.cast(outputs, self.compute_dtype)


def _is_fusible(inputs: Any, axis: int) -> bool:
    dtype = keras.backend.standardize_dtype(inputs.dtype)
    return len(inputs.shape) == 4 and axis in (-1, 3) and dtype in ("float32", "bfloat16", "float16")


def fused(model: keras.Model, names: Collection[str] | None = None) -> keras.Model:
    """Returns a copy of a network whose batch normalisation is computed by TensorFlow's fused kernel.

    The copy has the same layers, names and weights (copies of them, so that training one does not change the other),
    and its files hold Keras' standard layers. A model that has nothing to exchange is returned as it is.

    Args:
        model: functional or Sequential, nested ones included.
        names: of the layers to exchange; None for all.

    Raises:
        ValueError: if there is something to exchange and the model cannot be copied layer by layer.
    """

    def is_exchanged(layer: Any) -> bool:
        return type(layer) is keras.layers.BatchNormalization and (names is None or layer.name in names)

    def copy_layer(layer: Any) -> Any:
        kind = BatchNormalization if is_exchanged(layer) else type(layer)
        return kind.from_config(layer.get_config())

    if not any(is_exchanged(layer) for layer in model._flatten_layers(include_self=False)):
        return model
    return copied(model, copy_layer, "the fused BatchNormalization")


def synchronized(model: keras.Model) -> keras.Model:
    """Returns a copy of a network whose batch normalisation shares its statistics between the replicas of a strategy.

    A model in which all of it does already is returned as it is.

    Args:
        model: functional or Sequential, nested ones included.

    Raises:
        ValueError: if there is something to change and the model cannot be copied layer by layer.
    """

    def is_changed(layer: Any) -> bool:
        return isinstance(layer, keras.layers.BatchNormalization) and not layer.synchronized

    def copy_layer(layer: Any) -> Any:
        change = {"synchronized": True} if is_changed(layer) else {}
        return type(layer).from_config(layer.get_config() | change)

    if not any(map(is_changed, model._flatten_layers(include_self=False))):
        return model
    return copied(model, copy_layer, "synchronised BatchNormalization")


def renew_statistics(model: keras.Model, batches: Iterable[Any]) -> None:
    """Gives batch normalisation the mean and variance that the weights of now have on images.

    The moving averages belong to the weights that were trained. Where those are replaced by their own average
    (`use_ema`, `schedule.ema`), the activations are others, and the network is wrong until this was done.

    Args:
        model: of which the trainable layers of batch normalisation are changed, and nothing else.
        batches: of images, as in training; the statistics are the mean over them, by their sizes. None changes nothing.

    Reference: Izmailov et al., UAI 2018 (stochastic weight averaging), section 3.2.
    """
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    layers = [layer for layer in layers if layer.trainable]
    momenta = [layer.momentum for layer in layers]
    forward = tf.function(lambda images: model(images, training=True), reduce_retracing=True)
    statistics = [variable for layer in layers for variable in (layer.moving_mean, layer.moving_variance)]
    sums: list[Any] = [0.0] * len(statistics)
    count = 0
    try:
        for layer in layers:
            layer.momentum = 0.0  # the statistics are then those of the last batch
        for images in batches if layers else ():
            forward(images)
            count += len(images)
            sums = [
                total + len(images) * np.asarray(variable, "float64")
                for total, variable in zip(sums, statistics, strict=True)
            ]
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    for variable, total in zip(statistics, sums, strict=True):
        if count:
            variable.assign(total / count)


def fused_layers(model: keras.Model) -> list[str]:
    """Returns the names of the layers, in nested models too, that are computed by the fused kernel, sorted."""
    return sorted(layer.name for layer in model._flatten_layers() if isinstance(layer, BatchNormalization))
