"""The Distiller: a Keras model that trains a student on labels and on a teacher."""

import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from spkd_keras.distiller import replicas, strategy_checks
from spkd_keras.distiller.arrays import in_new_orders
from spkd_keras.distiller.guard import ForwardState, StepGuard, TrainingGuard, guarded
from spkd_keras.distiller.keeper import StudentKeeper
from spkd_keras.distiller.objective import term_values, weighted_sum
from spkd_keras.distiller.outputs import warn_of_logits
from spkd_keras.distiller.replicas import Share
from spkd_keras.distiller.schedules import given_back
from spkd_keras.distiller.stand_in import Cached, StandIn, unpacked
from spkd_keras.distiller.term import Term, named
from spkd_keras.distiller.wiring import Wiring, check_arguments

# Of the logs and of a history's rows.
RESERVED_NAMES = ("loss", "student_loss", "images", "accuracy", "learning_rate", "epoch")


@keras.saving.register_keras_serializable("spkd_keras")
class Distiller(StudentKeeper):
    """Trains `student` by `student_loss_weight * compiled loss + regularisers + sum of weight * term`.

        distiller = Distiller(teacher, student, [Term(SimilarityPreserving(), weight=3000.0)])
        distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
        distiller.fit(images, labels)
        distiller.student.save("student.keras")

    One student pass and one teacher pass a training step. The teacher runs in inference mode and is never changed,
    saved or exported. `predict`, `evaluate` and `export` are the student's own. Without terms this is plain training.

    `fit` logs `loss`, `student_loss` (the compiled loss) and every term's unweighted value under its name; `evaluate`
    logs them too if `evaluate_terms` is set, and its `loss` is then the training objective; otherwise it gives what
    the student's own `evaluate` gives.

    Args:
        teacher: a built model whose tapped layers are in functional or Sequential models; None if there are no terms.
            A `StandIn` for one that is not there: batches (x, y) then have `Cached(images, values)` as x.
        student: the model to train; it may differ from the teacher in all but what the terms compare. It is called, so
            that a `train_step` or `compute_loss` of its own has no part in the training.
        terms: list of `Term`.
        student_loss_weight: weight of the compiled loss, at least 0, default 1. With 0 the images need no labels.
            `sample_weight` and `class_weight` weigh that loss alone; terms count every image.
        teacher_dtype: "bfloat16", "float16" or "float32": run a copy of the teacher that computes in it, with the
            weights that the teacher has now, or when `fit` begins. Default None: the teacher as it is.
        evaluate_terms: whether `evaluate` runs the teacher and computes the terms. Default False.
        teacher_fingerprint: of a teacher that is handed back later; set when a Distiller is loaded.
        name: of the model.

    Attributes:
        student: the student.
        teacher: the teacher as it was given; None after loading, until `distiller.teacher = teacher`.
        terms: the terms, each with a name of its own.
        term_weights: a variable for each term's name; assign to it at any time. A term of weight 0 is still computed,
            and stops the training if it is not finite.
        adapters: the layer put on the student's tap, for each term's name that has one.
        teacher_fingerprint: digest of the teacher; another teacher is refused.
        look_every: steps after which `fit` looks whether the loss and the gradient were finite, default 50. From the
            first step on that is not, none is applied. Not saved.

    Raises:
        ValueError: for an unknown layer, different class counts or probabilities where logits are compared, and other
            arguments that cannot work.
    """

    look_every: int = 50

    def __init__(
        self,
        teacher: keras.Model | StandIn | None,
        student: keras.Model,
        terms: Sequence[Term] = (),
        student_loss_weight: float = 1.0,
        teacher_dtype: str | None = None,
        evaluate_terms: bool = False,
        *,
        teacher_fingerprint: str | None = None,
        name: str | None = None,
    ) -> None:
        # Images go to the two networks as they come; each casts them by its own policy.
        super().__init__(name=name, autocast=False)
        named_terms = named(terms, RESERVED_NAMES)
        check_arguments(teacher, student, list(named_terms), student_loss_weight, teacher_fingerprint)
        self.student = student
        self.student_loss_weight = float(student_loss_weight)
        self.evaluate_terms = evaluate_terms
        # Plain Python objects are not tracked by Keras, so nothing of the teacher is saved or trained.
        self._wiring = Wiring(student, named_terms, teacher_dtype, teacher_fingerprint)
        if teacher is not None:
            self._wiring.connect(teacher)
        self.adapters = self._wiring.build_adapters()
        self._wiring.try_losses(self.adapters)
        self.term_weights = {
            name: self.add_weight(
                shape=(),
                initializer=keras.initializers.Constant(term.weight),
                trainable=False,
                dtype="float32",
                autocast=False,
                name=f"{name}_weight",
            )
            for name, term in named_terms.items()
        }
        tracked = ("images", "student_loss", *self.term_weights)
        self._trackers = {name: keras.metrics.Mean(name=name) for name in tracked}
        # A plain Python object too: what it knows is of one `fit`.
        self.step_guard = StepGuard(["student_loss", *named_terms])
        self.built = True

    # --- the teacher and the terms ---------------------------------------------------------------------------------

    @property
    def teacher(self) -> keras.Model | StandIn | None:
        """The teacher as it was given."""
        return self._wiring.teacher

    @teacher.setter
    def teacher(self, teacher: keras.Model | StandIn | None) -> None:
        self._wiring.connect(teacher)
        # The functions that are compiled already run the teacher of before.
        self.train_function = self.test_function = None

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms, each with its own name and the adapter that it has."""
        return tuple(self._wiring.terms.values())

    @property
    def teacher_dtype(self) -> str | None:
        """The dtype in which a copy of the teacher runs, or None for the teacher itself."""
        return self._wiring.teacher_dtype

    @property
    def teacher_fingerprint(self) -> str | None:
        """Digest of the teacher that this student is distilled from, with its weights as of the latest `fit`."""
        return self._wiring.fingerprint

    # --- training --------------------------------------------------------------------------------------------------

    @property
    def output_names(self) -> list[str]:
        """The student's, so that losses and metrics can be given by output name."""
        return self.student.output_names

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Returns the student's output."""
        return self.student(x.images if isinstance(x, Cached) else x, training=training)

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        *args: Any,
        auto_scale_loss: bool = True,
        **kwargs: Any,
    ) -> None:
        """Configures training as `keras.Model.compile`, and builds the optimizer so that its state can be loaded.

        Args:
            optimizer: as in Keras.
            loss: the student's loss on the labels; may be None only if `student_loss_weight` is 0.
            *args: as in Keras.
            auto_scale_loss: whether to scale the loss dynamically if a layer of the student, or an adapter, computes in
                float16.
            **kwargs: as in Keras.

        Raises:
            ValueError: if there is no loss and `student_loss_weight` is not 0, or a subclass overrides `compute_loss`.
        """
        if type(self).compute_loss is not keras.Model.compute_loss:
            raise ValueError(
                f"A Distiller does not call `compute_loss`. Received: {type(self).__name__}, which overrides it. Give "
                "`compile` that loss, or write it as a keras.losses.Loss for a Term."
            )
        if loss is None and self.student_loss_weight:
            raise ValueError(
                "`compile` needs the student's loss on the labels, for example "
                "loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True). Received: loss=None. "
                "Only a Distiller with student_loss_weight=0 trains without one."
            )
        warn_of_logits(self.student, loss)
        strategy_checks.check_scope(self, self.student)
        with self.distribute_strategy.scope():
            self._compile(optimizer, loss, *args, auto_scale_loss=auto_scale_loss, **kwargs)

    def _compile(self, optimizer: Any, loss: Any, *args: Any, auto_scale_loss: bool, **kwargs: Any) -> None:
        optimizer = keras.optimizers.get(optimizer)
        float16 = any(layer.compute_dtype == "float16" for layer in self._flatten_layers(include_self=False))
        if auto_scale_loss and float16 and not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        if tf.distribute.has_strategy():
            every = [(f"the term '{term.name}'", term.loss) for term in self.terms]
            every += [("`loss`", part) for part in keras.tree.flatten(loss)]
            steps = kwargs.get("steps_per_execution", 1)
            strategy_checks.check_compiled(self.distribute_strategy, optimizer, every, kwargs.get("jit_compile"), steps)
            strategy_checks.check_layers(self.distribute_strategy, [*self._flatten_layers(include_self=False)])
        super().compile(optimizer, loss, *args, auto_scale_loss=False, **kwargs)
        if not self.optimizer.built:  # Keras' LossScaleOptimizer (3.15) would begin anew
            self.optimizer.build(self.trainable_variables)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as before saving; whether the loss is scaled is a matter of the saved optimizer."""
        self.compile(**keras.saving.deserialize_keras_object(config), auto_scale_loss=False)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains as `keras.Model.fit` does, from the teacher with the weights that it has now.

        Where terms compare the images of a batch, NumPy arrays and tensors come in another order in every epoch, after
        `keras.utils.set_random_seed` too, where Keras repeats one; not where `steps_per_epoch` divides them.

        Raises:
            ValueError: if there is no teacher, the data are empty, labels are outside the classes, or batches of one
                image meet a term that compares images.
            NotFiniteError: a FloatingPointError, if the loss or the gradient of a step is not finite; that step is not
                applied.
        """
        relational = [name for name, term in self._wiring.terms.items() if term.batch_relational]
        if relational and batch_size == 1:
            raise ValueError(
                f"`batch_size` must be at least 2, since these terms compare the images of a batch: "
                f"{', '.join(relational)}. Received: batch_size=1."
            )
        guard = TrainingGuard(relational)
        strategy = self.distribute_strategy
        with strategy.scope():
            if self._wiring.follow_teacher():
                self.train_function = self.test_function = None
        options = kwargs | dict(zip(strategy_checks.FIT_OPTIONS[: len(args)], args, strict=True))
        strategy_checks.check_batch_size(strategy, x, batch_size)
        with (
            self._clear_label_errors(),
            strategy_checks.clear_sharing_errors(strategy),
            given_back(callbacks),
            guarded(callbacks, guard, self) as callbacks,
        ):
            arrays, size = x, batch_size
            split = 0.0 if options.get("validation_data") is not None else options.get("validation_split") or 0.0
            if relational:
                progress = weakref.proxy(guard)  # TensorFlow keeps what a pipeline calls until the process ends
                with strategy.scope():
                    x, y, batch_size, options = in_new_orders(x, y, batch_size, options, lambda: progress.epoch)
            evenly = isinstance(x, tf.data.Dataset)
            strategy_checks.check_last_batch(strategy, arrays, size, split, evenly)
            x, options = self.for_fit(x, options)
            return super().fit(x, y, batch_size, epochs, verbose, callbacks, **options)

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluates the student as `keras.Model.evaluate` does, and the terms if `evaluate_terms` is set.

        Raises:
            ValueError: if labels are outside the classes, or there is nothing to evaluate.
        """
        with self._clear_label_errors(), self.counting_apart():
            results = super().evaluate(self.shared_out(x), *args, **kwargs)
        if isinstance(results, list | dict) and not results:
            raise ValueError("The data to evaluate on must have at least one batch. Received: none.")
        return results

    def train_step(self, data: Any) -> dict[str, Any]:
        """One optimizer step: one pass of each network, the teacher outside of the gradient tape.

        A loop of your own asks `step_guard.failure()` whether a step was not finite. None is applied from that one on,
        until `step_guard.begin_epoch()`.
        """
        x, y, sample_weight = unpacked(data)
        if y is None and self.student_loss_weight:
            raise ValueError(
                "`fit` needs labels y for the student's loss. Received: images only. "
                "To train on the terms alone, construct the Distiller with student_loss_weight=0."
            )
        share = Share.of(x)
        x = share.checked(x) if share else x
        teacher_taps = self._wiring.run_teacher(x) if self.terms else []
        before = ForwardState([self.student, *self.adapters.values()], self.trainable_variables)
        with tf.GradientTape() as tape:
            y_pred, student_taps = self._wiring.run_student(x, training=True, with_taps=bool(self.terms))
            losses = self._compiled_loss(y, y_pred, sample_weight, share)
            if self.terms:
                losses |= term_values(self._wiring, self.adapters, (teacher_taps, student_taps), y, True, share)
            losses["loss"] = weighted_sum(losses, self._weights(self.student_loss_weight), self.losses, share)
            scaled = self.optimizer.scale_loss(losses["loss"])
        losses = share.sums(losses) if share else losses
        if self.trainable_variables:
            self._apply_gradients(tape, scaled, losses, before, share)
        else:
            warnings.warn("The student has no trainable weights, so `fit` changes nothing.", stacklevel=2)
        return self._logs(x, y, y_pred, sample_weight, losses, share)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluates the student; runs the teacher only if `evaluate_terms` is set and there is one."""
        x, y, sample_weight = unpacked(data)
        with_terms = self.evaluate_terms and bool(self.terms) and self.teacher is not None
        share = Share.of(x)
        # A replica may have no image here.
        filled, labels = replicas.with_a_row((x, y)) if share else (x, y)
        y_pred, student_taps = self._wiring.run_student(filled, training=False, with_taps=with_terms)
        y_pred = share.own(y_pred) if share else y_pred
        losses = self._compiled_loss(y, y_pred, sample_weight, share)
        if with_terms:
            teacher_taps = self._wiring.run_teacher(filled)
            losses |= term_values(self._wiring, self.adapters, (teacher_taps, student_taps), labels, False, share)
        if not losses and (y is None or self._compile_metrics is None):
            raise ValueError(
                "`evaluate` needs labels y and a compiled loss or metric, or a Distiller with evaluate_terms=True. "
                "Received: none of them."
            )
        # The student's own loss is not weighted and has no adapter's regulariser; the objective of training is and has.
        weight, added = (self.student_loss_weight, self.losses) if with_terms else (1.0, self.student.losses)
        if losses:
            losses["loss"] = weighted_sum(losses, self._weights(weight), added, share)
        if not with_terms:
            losses.pop("student_loss", None)  # the loss, but for regularisers: `loss, accuracy = evaluate(...)`
        return self._logs(x, y, y_pred, sample_weight, share.sums(losses) if share else losses, share)

    def _compiled_loss(self, y: Any, y_pred: Any, sample_weight: Any, share: Share | None = None) -> dict[str, Any]:
        if y is None or self._compile_loss is None:
            return {}
        loss = self._compile_loss(y, y_pred, sample_weight)
        return {"student_loss": share.of_mean(loss) if share else loss}

    def _weights(self, student_loss_weight: float) -> dict[str, Any]:
        return {"student_loss": student_loss_weight, **self.term_weights}
