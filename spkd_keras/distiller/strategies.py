"""`fit` and `evaluate` under `tf.distribute`: what Keras lacks for it."""

import functools
import itertools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from spkd_keras.distiller.replicas import Share, with_a_row
from spkd_keras.models.graph import is_graph

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

    Attributes:
        student: what is trained.
    """

    student: keras.Model

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        if self.distribute_strategy.num_replicas_in_sync == 1 and not between_workers(self.distribute_strategy):
            super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)
            return
        if iterator is not None:
            data_batch = zeros_like_batch(iterator._distributed_dataset.element_spec, self.student)
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


def agreed_seed(strategy: tf.distribute.Strategy) -> int:
    """Draws a seed of NumPy's state, which each process has for itself: that of the first one."""
    seed = np.random.randint(2**31)
    if not between_workers(strategy):
        return seed
    own = strategy.experimental_distribute_values_from_function(lambda _: tf.constant([seed]))
    return int(strategy.gather(own, axis=0)[0])


def zeros_like_batch(spec: Any, student: keras.Model) -> Any:
    """Returns a batch of two like those that a specification is of.

    Args:
        spec: of a dataset's elements; images come first.
        student: whose images have the sizes that the specification leaves open.

    Raises:
        ValueError: if a number of dimensions is not known.
    """
    parts = tf.nest.flatten(spec)
    parts = [part._value_specs[0] if hasattr(part, "_value_specs") else part for part in parts]  # one for each replica
    if any(part.shape.rank is None for part in parts):
        raise ValueError(
            "With several replicas the shapes of a batch must be known. Received: a dataset with one that is not. Map "
            "it by tf.ensure_shape(images, (None, height, width, channels)), and its labels likewise."
        )
    shapes = [list(part.shape[1:]) for part in parts]
    taken = student.inputs if is_graph(student) and len(student.inputs) == 1 else []
    for shape, image in zip(shapes, taken, strict=False):
        if len(shape) == len(image.shape) - 1:
            shape[:] = [size or own for size, own in zip(shape, image.shape[1:], strict=True)]
    zeros = [
        tf.zeros([2, *(size or 1 for size in shape)], part.dtype) for shape, part in zip(shapes, parts, strict=True)
    ]
    return tf.nest.pack_sequence_as(spec, zeros)


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
