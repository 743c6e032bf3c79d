"""One step on several replicas: what a loss and a log mean when the batch is shared out.

A replica's part of a loss is such that the parts add up to the loss of the whole batch, however unevenly it is shared
out. Keras sums the gradients of the replicas, so that they make the step of one device.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

WITHOUT = "a replica without an image"


class Share:
    """What one replica has of the batch. Made within a step, once.

    Args:
        images: how many the replica has, 0 allowed.

    Attributes:
        images: how many the replica has.
        total: how many all have.
        rows: where the replica's images are in the whole batch.
    """

    def __init__(self, images: Any) -> None:
        self._context = tf.distribute.get_replica_context()
        self.replicas = tf.distribute.get_strategy().num_replicas_in_sync
        self.images = tf.cast(images, tf.int32)
        self._counts = self._context.all_gather(tf.reshape(self.images, [1]), axis=0)
        self.total = tf.reduce_sum(self._counts)
        start = tf.reduce_sum(self._counts[: self._context.replica_id_in_sync_group])
        self.rows = slice(start, start + self.images)

    @classmethod
    def of(cls, x: Any) -> "Share | None":
        """Returns the replica's share; None where there is but one."""
        if tf.distribute.get_strategy().num_replicas_in_sync == 1:
            return None
        return cls(tf.shape(keras.tree.flatten(x)[0])[0])

    def checked(self, x: Any) -> Any:
        """Returns a batch as it is, and raises an error inside the graph, on all replicas, if one is without an image.

        Networks fail at an empty batch in ways that nobody understands.
        """
        with tf.control_dependencies([tf.debugging.assert_positive(self._counts, WITHOUT)]):
            return keras.tree.map_structure(lambda part: None if part is None else tf.identity(part), x)

    def own(self, values: Any) -> Any:
        """Returns what belongs to the replica's images, without a row that was added."""
        return keras.tree.map_structure(lambda value: value[: self.images], values)

    def of_mean(self, scaled: Any) -> Any:
        """Returns the replica's part of a mean over images, from what Keras made of it: its own mean / replicas."""
        scale = self.replicas * tf.cast(self.images, tf.float32) / tf.cast(self.total, tf.float32)
        return scaled * tf.cast(scale, scaled.dtype)

    def of_sum(self, values: Any) -> Any:
        """Returns the replica's part of a mean over images, from the values of its own."""
        return tf.reduce_sum(values) / tf.cast(self.total, values.dtype)

    def of_same(self, value: Any) -> Any:
        """Returns the replica's part of what all replicas compute alike, such as a regulariser of weights."""
        return value / tf.cast(self.replicas, value.dtype)

    def gather(self, values: Any, dtype: str) -> Any:
        """Returns tensors of the whole batch, from all replicas; gradients flow back to where they came from.

        In the dtype of the loss: TensorFlow 2.21 gathers no bfloat16, and the gradients are summed on their way back.
        """
        return keras.tree.map_structure(
            lambda value: self._context.all_gather(tf.cast(value, dtype), axis=0), self.own(values)
        )

    def sums(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the losses of the whole batch from the parts of all replicas, in one small message."""
        stacked = tf.stack([tf.cast(part, tf.float32) for part in parts.values()])
        whole = self._context.all_reduce(tf.distribute.ReduceOp.SUM, tf.stop_gradient(stacked))
        return dict(zip(parts, tf.unstack(whole), strict=True))

    def agreed(self, gradients: Sequence[Any]) -> list[Any]:
        """Makes a gradient that is not finite on one replica so on all of them, so that they decide alike.

        Keras' LossScaleOptimizer (3.12 to 3.15) asks the first replica alone whether its gradient is finite.
        """
        finite = tf.math.is_finite(tf.linalg.global_norm(gradients))
        bad = self._context.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(~finite, tf.float32))
        return _spoiled_if(bad > 0, gradients)

    def clipped(self, gradients: Sequence[Any], optimizer: keras.optimizers.Optimizer, scale: Any) -> list[Any]:
        """Returns what an optimizer that clips makes of the gradient of the whole batch, a replica's part of it.

        Keras (3.12 to 3.15) clips the gradient of each replica and then sums them. A part of what is clipped already is
        within the bounds, so that it stays as it is.

        Args:
            gradients: of the replica.
            optimizer: without the one that scales the loss.
            scale: by which the loss was multiplied.
        """
        if not (optimizer.clipnorm or optimizer.global_clipnorm or optimizer.clipvalue):
            return list(gradients)
        there = [index for index, gradient in enumerate(gradients) if gradient is not None]
        summed = self._context.all_reduce(tf.distribute.ReduceOp.SUM, [gradients[index] for index in there])
        clipped = optimizer._clip_gradients([gradient / tf.cast(scale, gradient.dtype) for gradient in summed])
        parts = [part * tf.cast(scale / self.replicas, part.dtype) for part in clipped]
        # Clipping to a value would hide what is infinite.
        parts = _spoiled_if(~tf.math.is_finite(tf.linalg.global_norm(summed)), parts)
        return [parts[there.index(index)] if index in there else None for index in range(len(gradients))]


def _spoiled_if(bad: Any, gradients: Sequence[Any]) -> list[Any]:
    factor = tf.where(bad, float("nan"), 1.0)
    return [None if gradient is None else gradient * tf.cast(factor, gradient.dtype) for gradient in gradients]


def with_a_row(x: Any) -> Any:
    """Returns a batch with a row of zeros if it has none.

    Without, TensorFlow's (2.21) oneDNN convolution of an empty batch keeps the number of channels of its input.
    """

    def filled(part: Any) -> Any:
        if part is None:
            return None
        missing = tf.maximum(1 - tf.shape(part)[0], 0)
        return tf.concat([part, tf.zeros(tf.concat([[missing], tf.shape(part)[1:]], 0), part.dtype)], axis=0)

    return keras.tree.map_structure(filled, x)


def of_term(loss: keras.losses.Loss, teacher: Any, student: Any, relational: bool, share: Share | None) -> Any:
    """Returns a term's value; under several replicas the replica's part of it.

    A loss that compares images sees those of all replicas. Its rows are those of the replica's own images, so that no
    work is done twice where each image has its row. A row that was added to an empty batch counts nothing.
    """
    if share is None:
        return loss(teacher, student)
    if not relational:
        return share.of_mean(loss(teacher, student))
    teacher, student = share.gather((teacher, student), loss.dtype)
    return share.of_sum(loss.call_rows(teacher, student, share.rows))


def conditionally(
    predicate: Any, do: Callable[..., None], otherwise: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    """Does one thing or another inside the graph, under a strategy too, where it may update variables.

    TensorFlow 2.21 refuses what merges the replicas inside a condition of a replica. So the replicas merge first, and
    part again inside the condition, as Keras' LossScaleOptimizer does it.

    Args:
        predicate: the same on all replicas.
        do: what to do if it is true.
        otherwise: what to do if it is not.
        arguments: of both; every tensor of the replica that they use.
    """
    if not tf.distribute.has_strategy() or tf.__internal__.distribute.strategy_supports_no_merge_call():
        tf.cond(predicate, lambda: _done(do, arguments), lambda: _done(otherwise, arguments))
        return

    def merged(strategy: tf.distribute.Strategy, predicates: Any, *arguments: Any) -> None:
        def on_each(function: Callable[..., None]) -> tf.Tensor:
            strategy.extended.call_for_each_replica(function, args=arguments)
            return tf.constant(True)

        first = strategy.experimental_local_results(predicates)[0]
        tf.cond(first, lambda: on_each(do), lambda: on_each(otherwise))

    tf.distribute.get_replica_context().merge_call(merged, args=(predicate, *arguments))


def _done(function: Callable[..., None], arguments: tuple[Any, ...]) -> tf.Tensor:
    function(*arguments)
    return tf.constant(True)
