"""`fit`, `evaluate` and `predict` under `tf.distribute`: what Keras lacks for them."""

import functools
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

    `tests/test_distribution_errors.py` says when they can go; `tests/test_workers.py` of what fails between workers.

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

    def predict_on_batch(self, x: Any) -> Any:
        """Predicts one batch as `keras.Model.predict_on_batch` does, where there is one replica.

        Raises:
            ValueError: if there are several, each of which Keras would give the whole batch.
        """
        self.check_alone("predict_on_batch", "predict")
        return super().predict_on_batch(x)

    def check_alone(self, name: str, other: str) -> None:
        """Refuses a method that takes one batch where there are several replicas, and names the one that shares it."""
        replicas = self.distribute_strategy.num_replicas_in_sync
        if replicas > 1:
            raise ValueError(f"`{name}` does not share a batch between {replicas} replicas. Use `{other}`.")

    def for_fit(self, x: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Returns the data and the other arguments of a `fit`, with datasets shared out between the replicas."""
        several = self.distribute_strategy.num_replicas_in_sync > 1
        if several and options.get("class_weight") is not None and takes_class_weight(x):  # else Keras refuses
            x, options = with_class_weight(x, options["class_weight"]), options | {"class_weight": None}
        if options.get("class_weight") is None:
            x = self.shared_out(x, at_least_one=True)
        return x, options | {"validation_data": self.shared_out(options.get("validation_data"))}

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Predicts as `keras.Model.predict` does: one row for each image, in the order of the data."""
        return super().predict(self.shared_out(x), *args, **kwargs)

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


def takes_class_weight(data: Any) -> bool:
    """Whether data are a dataset to which Keras applies a `class_weight`: of images and one array of labels."""
    spec = data.element_spec if isinstance(data, tf.data.Dataset) else None
    return isinstance(spec, tuple) and len(spec) == 2 and isinstance(spec[1], tf.TensorSpec)


def with_class_weight(batches: tf.data.Dataset, class_weight: dict[int, float]) -> tf.data.Dataset:
    """Gives each image of a dataset the weight of its class, 1 where there is none, as Keras does with arrays.

    Keras (3.15) takes no `class_weight` for a dataset that is shared out already.

    Args:
        batches: of images and labels, integers or one-hot rows.
        class_weight: by class.
    """
    others = max(class_weight) + 1
    weights = tf.constant([*(class_weight.get(label, 1.0) for label in range(others)), 1.0], keras.config.floatx())

    def rounded(labels: Any) -> Any:
        return tf.cast(tf.round(labels), tf.int64)

    def weighted(x: Any, y: Any) -> tuple[Any, Any, Any]:
        if y.shape.rank == 1:
            classes = rounded(y)
        else:
            classes = tf.cond(tf.shape(y)[-1] > 1, lambda: tf.argmax(y, -1), lambda: rounded(y[..., 0]))
        return x, y, tf.gather(weights, tf.where((classes >= 0) & (classes < others), classes, others))

    return batches.map(weighted, tf.data.AUTOTUNE)


def shared_out(batches: tf.data.Dataset, strategy: tf.distribute.Strategy, at_least_one: bool) -> Any:
    """Shares every batch out between the replicas as evenly as it goes, in its order.

    TensorFlow's own way gives each replica an equal part of a full batch, so that replicas go without in a smaller one.
    Between workers it may shard the files instead, so that a batch is not what one device would have. Which worker has
    which part is as Keras expects it where it puts predictions together again.

    Args:
        batches: of all replicas.
        strategy: with the replicas.
        at_least_one: whether a batch of fewer images than there are replicas is an error.
    """
    replicas = strategy.num_replicas_in_sync

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        own = range(context.input_pipeline_id, replicas, context.num_input_pipelines)

        def parts(*batch: Any) -> tf.data.Dataset:
            whole = batch if isinstance(batches.element_spec, tuple) else batch[0]
            images = tf.shape(tf.nest.flatten(whole)[0])[0]
            checks = [tf.debugging.assert_greater_equal(images, replicas, TOO_FEW)] if at_least_one else []
            with tf.control_dependencies(checks):
                bounds = [(images * index // replicas, images * (index + 1) // replicas) for index in own]
            datasets = [
                tf.data.Dataset.from_tensors(tf.nest.map_structure(lambda part, s=start, e=end: part[s:e], whole))
                for start, end in bounds
            ]
            return functools.reduce(lambda one, other: one.concatenate(other), datasets)

        return batches.flat_map(parts)

    shared = strategy.distribute_datasets_from_function(of_worker)
    # Behind `flat_map` it is unknown, and Keras would warn at the end of every first epoch.
    shared._cardinality = batches.cardinality().numpy()
    return shared
