"""What goes wrong during `fit` and can only be seen there."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import keras
import tensorflow as tf

from spkd_keras.distiller.labels import clear_label_errors
from spkd_keras.distiller.logs import LoggedTrainer
from spkd_keras.distiller.replicas import Share, conditionally
from spkd_keras.distiller.taps import num_classes

ADVICE = (
    "Lower the learning rate or the weight of a term, and look for labels outside the classes and pixels that are "
    "not finite."
)
NO_BATCH = "The training data must have at least one batch. Received: none."


class NotFiniteError(FloatingPointError):
    """A training step whose loss or gradient is not finite.

    Attributes:
        epoch: of the step, counted from 0.
        batch: of the step in what `fit` saw of the epoch, counted from 0.
        parts: names of what was not finite: terms, `student_loss`, `loss`, `gradient`.
    """

    def __init__(self, epoch: int, batch: int, parts: Sequence[str]) -> None:
        self.epoch, self.batch, self.parts = epoch, batch, tuple(parts)
        super().__init__(
            f"The loss is not finite in epoch {epoch + 1}, batch {batch + 1}: {', '.join(parts)}. That step and those "
            f"after it were not applied. {ADVICE}"
        )

    def __reduce__(self) -> tuple[Any, ...]:  # from another process it comes pickled
        return type(self), (self.epoch, self.batch, self.parts)


class StepGuard:
    """Lets training steps through as long as all is finite, and none from the first one on that is not.

    It decides inside the graph, so that no step waits for the host, which asks `failure` now and then. The weights are
    then those before the bad step, and the step can be repeated to see what went wrong.

    Args:
        names: of the losses, in the order in which they are told.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.parts = (*names, "loss", "gradient")
        # Plain TensorFlow variables: they belong to a `fit`, not to what is saved.
        self._step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._bad_step = tf.Variable(-1, dtype=tf.int64, trainable=False)
        self._bad_parts = tf.Variable(tf.zeros(len(self.parts), tf.bool), trainable=False)

    def begin_epoch(self) -> None:
        """Counts the batches anew, and lets steps through again."""
        self._step.assign(0)
        self._bad_step.assign(-1)

    def failure(self) -> tuple[int, list[str]] | None:
        """Returns the batch of the first bad step of the epoch and what was not finite; None if all were."""
        batch = int(tf.convert_to_tensor(self._bad_step))  # a variable of a strategy has no other way to a number
        if batch < 0:
            return None
        return batch, [name for name, bad in zip(self.parts, self._bad_parts.read_value().numpy(), strict=True) if bad]

    def check(self, epoch: int) -> None:
        """Raises a `NotFiniteError` if a step of the epoch was not finite. Waits for the steps so far."""
        failure = self.failure()
        if failure:
            raise NotFiniteError(epoch, *failure)

    def run(
        self,
        losses: Mapping[str, Any],
        gradients: Sequence[Any],
        apply: Callable[[Sequence[Any]], None],
        before: "ForwardState",
        loss_scale: Any = None,
    ) -> None:
        """Applies a step if it is the first bad one's forerunner; otherwise undoes what its forward pass changed.

        Args:
            losses: by name, those of `parts` that this step has; of all replicas.
            gradients: for the trainable variables, None among them allowed; finite on all replicas or on none.
            apply: applies the gradients.
            before: what the forward pass changed.
            loss_scale: by which the loss was multiplied, if it was. As long as it is 1 or more, gradients that are not
                finite are its ordinary overflow: the optimizer skips that step itself and halves the scale.
        """
        finite = {name: tf.reduce_all(tf.math.is_finite(tf.convert_to_tensor(value))) for name, value in losses.items()}
        # One small operation a gradient. A norm that overflows float32 counts as not finite.
        finite["gradient"] = tf.math.is_finite(tf.linalg.global_norm(gradients))
        if loss_scale is not None:
            finite["gradient"] |= tf.convert_to_tensor(loss_scale) >= 1
        good = tf.stack([finite.get(name, tf.constant(True)) for name in self.parts])
        healthy, untouched = tf.reduce_all(good), self._bad_step < 0

        def go_on(gradients: Sequence[Any], *_: Any) -> None:
            apply(gradients)

        def stop(_: Sequence[Any], values: Sequence[Any], good: Any, untouched: Any) -> None:
            before.restore(values)
            self._bad_parts.assign(tf.where(untouched, ~good, self._bad_parts))
            self._bad_step.assign(tf.where(untouched, self._step, self._bad_step))

        arguments = (list(gradients), before.values, good, untouched)
        conditionally(healthy & untouched, go_on, stop, arguments)
        self._step.assign_add(1)


class ForwardState:
    """What a forward pass in training changes beside what is trained: moving statistics and random states.

    Args:
        layers: whose state it is, kept as it is now.
        trained: the variables that only an optimizer changes.
    """

    def __init__(self, layers: Sequence[keras.layers.Layer], trained: Sequence[Any]) -> None:
        known = {id(variable) for variable in trained}
        self._changing = [variable for layer in layers for variable in layer.variables if id(variable) not in known]
        self.values = [tf.convert_to_tensor(variable.value) for variable in self._changing]

    def restore(self, values: Sequence[Any] | None = None) -> None:
        """Puts it back; from `values` where those kept belong to another part of a graph."""
        for variable, value in zip(self._changing, self.values if values is None else values, strict=True):
            variable.assign(value)


class GuardedTrainer(LoggedTrainer):
    """A model whose steps are applied by a guard, or not.

    Attributes:
        step_guard: the guard.
        student_loss_weight: weight of the compiled loss.
        term_weights: the weights of the other losses, by name.
    """

    step_guard: StepGuard
    student_loss_weight: float
    term_weights: dict[str, Any]

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Trains on one batch as `keras.Model.train_on_batch` does, where there is one replica.

        Raises:
            ValueError: if there are several, each of which Keras would give the whole batch.
            NotFiniteError: if the loss or the gradient is not finite. That step is not applied; later ones are.
        """
        self.check_alone("train_on_batch", "fit")
        self.step_guard.begin_epoch()
        with self._clear_label_errors():
            results = super().train_on_batch(*args, **kwargs)
        self.step_guard.check(epoch=0)
        return results

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates one batch as `keras.Model.test_on_batch` does; raises a ValueError as `train_on_batch` does."""
        self.check_alone("test_on_batch", "evaluate")
        with self._clear_label_errors():
            return super().test_on_batch(*args, **kwargs)

    def _clear_label_errors(self) -> AbstractContextManager[None]:
        return clear_label_errors(num_classes(self.student))

    def _apply_gradients(
        self, tape: tf.GradientTape, loss: Any, losses: dict[str, Any], before: ForwardState, share: Share | None
    ) -> None:
        variables = self.trainable_variables
        pairs = list(zip(tape.gradient(loss, variables), variables, strict=True))
        if not self.student_loss_weight:
            # The layers behind the last tap have no gradient then, and none is meant.
            pairs = [(gradient, variable) for gradient, variable in pairs if gradient is not None]
        if not pairs:
            raise ValueError(
                "With student_loss_weight=0 there must be a trainable weight before a layer that the terms compare. "
                f"Received: none, for {', '.join(self.term_weights)}. Unfreeze layers there, or name later ones."
            )
        gradients, variables = [gradient for gradient, _ in pairs], [variable for _, variable in pairs]

        def apply(gradients: Sequence[Any]) -> None:
            self.optimizer.apply_gradients(zip(gradients, variables, strict=True))

        scales = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        scale = self.optimizer.dynamic_scale if scales else None
        if share:
            inner = self.optimizer.inner_optimizer if scales else self.optimizer
            scaled_by = tf.convert_to_tensor(scale) if scales else inner.loss_scale_factor or 1.0
            gradients = share.clipped(share.agreed(gradients), inner, scaled_by)
        # A loss of weight 0 is not in the gradient: unlabelled images may make it what it likes.
        weightless = () if self.student_loss_weight else ("student_loss",)
        guarded_losses = {name: value for name, value in losses.items() if name not in weightless}
        self.step_guard.run(guarded_losses, gradients, apply, before, scale)


class TrainingGuard(keras.callbacks.Callback):
    """Stops a training that cannot work, with an error that says why.

    It looks at the step guard every `Distiller.look_every` steps and at the end of each epoch.

    Attributes:
        epoch: of the training, counted from 0.

    Raises:
        ValueError: if there are no data, or all batches so far have one image and a term compares the images of one.
        NotFiniteError: if the loss or the gradient of a step was not finite.
        FloatingPointError: if the mean of a loss over an epoch is not finite, where steps are not guarded.
    """

    def __init__(self, relational_terms: list[str]) -> None:
        super().__init__()
        self.relational_terms = relational_terms
        self.epoch = self.looked = 0

    def look(self) -> None:
        """Raises an error if a step of this epoch was not finite. Waits for the steps so far."""
        self.model.step_guard.check(self.epoch)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begins to count the batches."""
        del logs
        self.epoch, self.looked = epoch, 0
        self.model.step_guard.begin_epoch()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks now and then. At the beginning of a batch Keras hands over no logs and so need not wait for them."""
        del logs
        if batch - self.looked >= self.model.look_every:
            self.looked = batch
            self.check_sizes()
            self.look()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks at all that there was, and for means that are not finite where no step was guarded."""
        logs = logs or {}
        if "loss" not in logs:  # of arrays without an image; the count of images is then what tracing a step left
            raise ValueError(NO_BATCH)
        self.check_sizes()
        self.look()
        names = (*self.model.term_weights, *(("student_loss",) if self.model.student_loss_weight else ()), "loss")
        values = {name: float(logs.get(name, 0.0)) for name in names}
        bad = [f"{name}={value}" for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise FloatingPointError(f"The loss is not finite in epoch {epoch + 1}: {', '.join(bad)}. {ADVICE}")

    def check_sizes(self) -> None:
        """Raises an error if there was no batch yet, or batches of one image where images are compared."""
        images_a_batch = self.model.images_a_batch()
        if images_a_batch == 0:
            raise ValueError(NO_BATCH)
        if self.relational_terms and images_a_batch <= 1:
            raise ValueError(
                "Batches must have at least two images, since these terms compare the images of a batch: "
                f"{', '.join(self.relational_terms)}. Received: batches of one. Raise the batch size."
            )


@contextmanager
def guarded(callbacks: Any, guard: TrainingGuard, model: keras.Model) -> Iterator[Any]:
    """Puts a guard before the callbacks of a `fit`, so that none of them saves what it refuses.

    A `CallbackList` is the user's own and has it for that time alone.
    """
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        yield [guard, *keras.tree.flatten(callbacks or [])]
        return
    guard.set_model(model)
    callbacks.callbacks.insert(0, guard)
    try:
        yield callbacks
    finally:
        callbacks.callbacks.remove(guard)
