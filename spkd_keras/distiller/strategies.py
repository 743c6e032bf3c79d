"""`fit` and `evaluate` under `tf.distribute`: what Keras lacks for it, and what TensorFlow cannot do."""

import functools
import inspect
import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from spkd_keras.distiller.replicas import WITHOUT, Share, with_a_row
from spkd_keras.losses import DistillationLoss

MEANS = ("sum_over_batch_size", "mean")  # reductions that can be shared out
FIT_OPTIONS = tuple(inspect.signature(keras.Model.fit).parameters)[7:]  # those behind `callbacks`
TOO_FEW = "fewer images than replicas"


class ReplicatedTrainer(keras.Model):
    """A model whose `fit` and `evaluate` work under `tf.distribute`, for what Keras 3.12 to 3.15 does not do itself.

    - Building on a first batch that is shared out unevenly or between workers fails: `Attempt to convert a value
      (PerReplica...)`, or shapes that do not fit. Here it is built on zeros.
    - Logs of a step between workers are reduced along an axis that scalars do not have (`Invalid reduction dimension
      0`). Here they have it.
    - Where a step does not log every metric, the logs of an epoch are those of its last step, means over the replicas.
      Here they are read from the metrics, whose sums are exact.

    `tests/test_distribution_errors.py` says when they can go.
    """

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        if self.distribute_strategy.num_replicas_in_sync == 1 and not between_workers(self.distribute_strategy):
            super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)
            return
        if iterator is not None:
            data_batch = zeros_like_batch(iterator._distributed_dataset.element_spec)
        self.build_metrics(data_batch)

    def build_metrics(self, batch: Any) -> None:
        """Builds what a first batch would build, from one like it, and computes nothing."""
        with self.distribute_strategy.scope():
            self._symbolic_build(data_batch=batch)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Trains on one batch as `keras.Model.train_on_batch` does, where there is one replica.

        Raises:
            ValueError: if there are several, each of which Keras would give the whole batch.
        """
        self._check_alone("train_on_batch", "fit")
        return super().train_on_batch(*args, **kwargs)

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates one batch as `keras.Model.test_on_batch` does; raises a ValueError as `train_on_batch` does."""
        self._check_alone("test_on_batch", "evaluate")
        return super().test_on_batch(*args, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        """Predicts one batch as `keras.Model.predict_on_batch` does; raises a ValueError as `train_on_batch` does."""
        self._check_alone("predict_on_batch", "predict")
        return super().predict_on_batch(x)

    def _check_alone(self, name: str, other: str) -> None:
        replicas = self.distribute_strategy.num_replicas_in_sync
        if replicas > 1:
            raise ValueError(f"`{name}` does not share a batch between {replicas} replicas. Use `{other}`.")

    def for_fit(self, x: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Returns the data and the other arguments of a `fit`, with datasets shared out between the replicas."""
        if options.get("class_weight") is None:
            x = self.shared_out(x, at_least_one=True)
        return x, options | {"validation_data": self.shared_out(options.get("validation_data"))}

    def shared_out(self, data: Any, at_least_one: bool = False) -> Any:
        """Returns a dataset so that its batches are shared out between the replicas; anything else as it is."""
        several = self.distribute_strategy.num_replicas_in_sync > 1
        if not several or not isinstance(data, tf.data.Dataset):
            return data
        return shared_out(data, self.distribute_strategy, at_least_one)

    def _get_metrics_result_or_logs(self, logs: Any) -> Any:
        if self.distribute_strategy.num_replicas_in_sync == 1:
            return super()._get_metrics_result_or_logs(logs)
        results = self.get_metrics_result()
        return {name: results[name] for name in logs}

    def predict_step(self, data: Any) -> Any:
        """Runs the student."""
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        share = Share.of(x)
        if share is None:
            return self(x, training=False)
        return share.own(self(with_a_row(x), training=False))


def logs_for_keras(logs: dict[str, Any]) -> dict[str, Any]:
    """Gives the logs of a step the axis along which Keras reduces them between workers."""
    if not between_workers(tf.distribute.get_strategy()):
        return logs
    return {name: tf.expand_dims(value, 0) for name, value in logs.items()}


def between_workers(strategy: tf.distribute.Strategy) -> bool:
    """Whether a strategy has several processes."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) and strategy.extended._in_multi_worker_mode()


def zeros_like_batch(spec: Any) -> Any:
    """Returns a batch of two like those that a specification is of."""

    def zeros(part: Any) -> Any:
        part = part._value_specs[0] if hasattr(part, "_value_specs") else part  # one for each replica
        return tf.zeros([2, *(size or 1 for size in part.shape[1:])], part.dtype)

    return tf.nest.map_structure(zeros, spec)


def shared_out(batches: tf.data.Dataset, strategy: tf.distribute.Strategy, at_least_one: bool) -> Any:
    """Shares every batch out between the replicas as evenly as it goes, in its order.

    TensorFlow's own way gives each replica an equal part of a full batch, so that replicas go without in a smaller one.
    Between workers it may shard the files instead, so that a batch is not what one device would have.

    Args:
        batches: of all replicas.
        strategy: with the replicas.
        at_least_one: whether a batch of fewer images than there are replicas is an error.
    """
    replicas = strategy.num_replicas_in_sync

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        here = replicas // context.num_input_pipelines
        first = here * context.input_pipeline_id

        def parts(*batch: Any) -> tf.data.Dataset:
            whole = batch if isinstance(batches.element_spec, tuple) else batch[0]
            images = tf.shape(tf.nest.flatten(whole)[0])[0]
            checks = [tf.debugging.assert_greater_equal(images, replicas, TOO_FEW)] if at_least_one else []
            with tf.control_dependencies(checks):
                bounds = [images * index // replicas for index in range(first, first + here + 1)]
            datasets = [
                tf.data.Dataset.from_tensors(tf.nest.map_structure(lambda part, s=start, e=end: part[s:e], whole))
                for start, end in itertools.pairwise(bounds)
            ]
            return functools.reduce(lambda one, other: one.concatenate(other), datasets)

        return batches.flat_map(parts)

    shared = strategy.distribute_datasets_from_function(of_worker)
    # Behind `flat_map` it is unknown, and Keras would warn at the end of every first epoch.
    shared._cardinality = batches.cardinality().numpy()
    return shared


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
        ValueError: if a layer adds a sum over its images to the loss, of which Keras would take the mean over replicas.
    """
    if strategy.num_replicas_in_sync == 1:
        return
    summing = [layer.name for layer in layers if getattr(layer, "activity_regularizer", None) is not None]
    if summing:
        raise ValueError(
            "With several replicas, no layer of the student can have an `activity_regularizer`. Received: "
            f"{', '.join(summing)}. Regularise weights instead, or train on one device."
        )
    drawing = [layer.name for layer in layers if _draws(layer)]
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


def _draws(layer: keras.layers.Layer) -> bool:
    """Whether a layer has a random generator that it uses in training; a Dropout of 0 does not."""
    generator = getattr(layer, "seed_generator", None)
    return isinstance(generator, keras.random.SeedGenerator) and getattr(layer, "rate", 1) != 0


def check_batch_size(
    strategy: tf.distribute.Strategy, x: Any, batch_size: int | None, validation_split: float = 0.0
) -> None:
    """Checks that full batches of arrays can be shared out equally, and that the last one leaves no replica without.

    Args:
        strategy: with the replicas.
        x: the arrays, or anything else, which is not looked at.
        batch_size: of all replicas; None for Keras' default.
        validation_split: the part of the arrays that Keras takes from their end.

    Raises:
        ValueError: if not.
    """
    replicas, size = strategy.num_replicas_in_sync, batch_size or 32  # Keras' default
    first: Any = next(iter(keras.tree.flatten(x)), None)
    if replicas == 1 or not hasattr(first, "shape"):
        return
    if size % replicas:
        raise ValueError(
            f"`batch_size` must be a multiple of {replicas}, the number of replicas. Received: batch_size={size}."
        )
    last = math.floor(len(first) * (1.0 - validation_split)) % size
    if last and -(-last * replicas // size) < replicas:
        raise ValueError(
            f"The last batch of {last} images would leave some of the {replicas} replicas without any. Leave these "
            f"images out, choose another `batch_size` than {size}, or give a tf.data.Dataset, whose batches are shared "
            "out evenly."
        )


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
                "tf.data.Dataset without `class_weight`, whose batches are shared out evenly."
            ) from error
        if TOO_FEW not in str(error):
            raise
        raise ValueError(
            f"Every training batch must have at least {strategy.num_replicas_in_sync} images, one for each replica. "
            "Received: a smaller one. Leave it out, or choose another batch size."
        ) from error
