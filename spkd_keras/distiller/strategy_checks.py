"""What is refused under `tf.distribute`: what TensorFlow cannot do, and what would not be the step of one device."""

import inspect
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from spkd_keras.distiller.replicas import WITHOUT
from spkd_keras.distiller.strategies import TOO_FEW
from spkd_keras.losses import DistillationLoss

DEFAULT_BATCH_SIZE = 32  # Keras'
MEANS = ("sum_over_batch_size", "mean")  # reductions that can be shared out
FIT_OPTIONS = tuple(inspect.signature(keras.Model.fit).parameters)[7:]  # those behind `callbacks`


def check_compiled(
    strategy: tf.distribute.Strategy,
    optimizer: Any,
    losses: Sequence[tuple[str, Any]],
    jit_compile: Any,
    steps_per_execution: int,
) -> None:
    """Refuses what TensorFlow 2.21 cannot do under a strategy, and what would not be the step of one device.

    Args:
        strategy: of the model.
        optimizer: to be compiled with.
        losses: with the names that they have for the user.
        jit_compile: as in `compile`.
        steps_per_execution: as in `compile`.

    Raises:
        ValueError: naming the argument.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    devices = [tf.DeviceSpec.from_string(device) for device in strategy.extended.worker_devices]
    on_processors = any(device.device_type == "CPU" for device in devices)
    refused = {
        "jit_compile=True": on_processors and jit_compile is True,
        f"steps_per_execution={steps_per_execution}": steps_per_execution > 1,
        "an optimizer with gradient_accumulation_steps": inner.gradient_accumulation_steps,
        "an optimizer with ema_overwrite_frequency": inner.use_ema and inner.ema_overwrite_frequency,
    }
    for what, is_there in refused.items():
        if is_there:
            kind = f"{type(strategy).__name__} on {devices[0].device_type}"
            raise ValueError(f"TensorFlow cannot do this under a {kind}: {what}. Leave it out.")
    if any(part._distribution_strategy is not strategy for part in {optimizer, inner}):
        raise ValueError(
            "The optimizer must be made under the strategy of the Distiller. Construct it within "
            "`with strategy.scope():`."
        )
    if strategy.num_replicas_in_sync == 1:
        return
    for name, loss in losses:
        _check_mean_of_images(name, loss)


def _check_mean_of_images(name: str, loss: Any) -> None:
    if getattr(loss, "batch_relational", False) and not isinstance(loss, DistillationLoss):
        raise ValueError(
            f"With several replicas, {name} compares images and must be a spkd_keras.losses.DistillationLoss, of which "
            f"each replica computes its images' rows. Received: {type(loss).__name__}."
        )
    reduction, ignored = getattr(loss, "reduction", MEANS[0]), getattr(loss, "ignore_class", None)
    if reduction not in MEANS:
        raise ValueError(
            f"With several replicas, `reduction` of {name} must be one of {', '.join(MEANS)}. Received: {reduction}."
        )
    if ignored is not None:
        # Keras has divided by the number of the others, which is each replica's own.
        raise ValueError(
            f"With several replicas, {name} must count every label. Received: ignore_class={ignored}. Leave images "
            "with that label out, or train on one device."
        )


def check_scope(distiller: keras.Model, student: keras.Model) -> None:
    """Checks that a Distiller and its student belong to the same strategy, or both to none.

    Raises:
        ValueError: if not.
    """
    # `distribute_strategy` of one that belongs to none is the strategy in whose scope it is asked for.
    if distiller._distribute_strategy is not student._distribute_strategy:
        kinds = [
            "no strategy" if of is None else f"a {type(of).__name__}"
            for of in (distiller._distribute_strategy, student._distribute_strategy)
        ]
        raise ValueError(
            "Construct teacher, student and Distiller within the same `with strategy.scope():`. Received: a Distiller "
            f"of {kinds[0]} and a student of {kinds[1]}."
        )


def check_layers(strategy: tf.distribute.Strategy, layers: Sequence[keras.layers.Layer]) -> None:
    """Refuses layers that replicas cannot compute as one device would, and warns of those that do not.

    Raises:
        ValueError: if a layer adds a loss of its images, which would count as much on a replica that has few of them.
    """
    if strategy.num_replicas_in_sync == 1:
        return
    summing = [layer.name for layer in layers if getattr(layer, "activity_regularizer", None) is not None]
    if summing:
        raise ValueError(
            "With several replicas, no layer of the student can have an `activity_regularizer`. Received: "
            f"{', '.join(summing)}. Regularise weights instead, or train on one device."
        )
    drawing = [layer.name for layer in layers if draws(layer)]
    if drawing:
        warnings.warn(
            f"Keras draws the same numbers on every replica, so that these layers treat as many images alike as there "
            f"are replicas, unlike one device: {', '.join(sorted(drawing))}.",
            stacklevel=4,
        )
    alone = [
        layer.name
        for layer in layers
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable and not layer.synchronized
    ]
    if alone:
        warnings.warn(
            f"Each replica normalises by its own images alone, unlike one device: {', '.join(sorted(alone))}. "
            "`spkd_keras.models.synchronized(student)` gives a copy that shares its statistics.",
            stacklevel=4,
        )


def draws(layer: keras.layers.Layer) -> bool:
    """Whether a layer has a random generator that it uses in training; a Dropout of 0 does not."""
    generators = (getattr(layer, name, None) for name in ("seed_generator", "generator"))  # the latter of augmentation
    random = any(isinstance(generator, keras.random.SeedGenerator) for generator in generators)
    return random and getattr(layer, "rate", 1) != 0


def check_batch_size(strategy: tf.distribute.Strategy, x: Any, batch_size: int | None) -> None:
    """Checks that full batches of arrays can be shared out equally.

    Args:
        strategy: with the replicas.
        x: the arrays, or anything else, which is not looked at.
        batch_size: of all replicas; None for Keras' default.

    Raises:
        ValueError: if not.
    """
    replicas, size = strategy.num_replicas_in_sync, batch_size or DEFAULT_BATCH_SIZE
    if _count(x) is not None and size % replicas:
        raise ValueError(
            f"`batch_size` must be a multiple of {replicas}, the number of replicas. Received: batch_size={size}."
        )


def check_last_batch(
    strategy: tf.distribute.Strategy, x: Any, batch_size: int | None, validation_split: float, evenly: bool
) -> None:
    """Checks that the last batch of arrays leaves no replica without an image.

    Args:
        strategy: with the replicas.
        x: the arrays, or anything else, which is not looked at.
        batch_size: of all replicas; None for Keras' default.
        validation_split: the part of the arrays that is taken from their end.
        evenly: whether every batch is shared out evenly. Keras gives each replica its part of a full batch, so that
            some may go without in a smaller one.

    Raises:
        ValueError: if it does.
    """
    replicas, size, count = strategy.num_replicas_in_sync, batch_size or DEFAULT_BATCH_SIZE, _count(x)
    last = 0 if count is None else math.floor(count * (1.0 - validation_split)) % size
    if last and (last if evenly else -(-last * replicas // size)) < replicas:
        dataset = "" if last < replicas else " Batches of a tf.data.Dataset are shared out evenly."
        raise ValueError(
            f"The last batch of {last} images would leave some of the {replicas} replicas without any. Leave these "
            f"images out, or choose another `batch_size` than {size}.{dataset}"
        )


def _count(x: Any) -> int | None:
    """Returns the number of images of arrays, None of anything else."""
    first = next(iter(keras.tree.flatten(x)), None)
    return next(iter(getattr(first, "shape", ())), None)


@contextmanager
def clear_sharing_errors(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Turns what is raised inside the graph for too small a batch into one clear line."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        if WITHOUT in str(error):
            raise ValueError(
                f"Every training batch must have an image for each of the {strategy.num_replicas_in_sync} replicas. "
                "Received: one that leaves a replica without any. Leave it out, choose another batch size, or give a "
                "tf.data.Dataset, whose batches are shared out evenly."
            ) from error
        if TOO_FEW not in str(error):
            raise
        raise ValueError(
            f"Every training batch must have at least {strategy.num_replicas_in_sync} images, one for each replica. "
            "Received: a smaller one. Leave it out, or choose another batch size."
        ) from error
