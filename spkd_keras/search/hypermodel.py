"""An experiment in which something varies, as a KerasTuner hypermodel."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import tensorflow as tf

from spkd_keras import data
from spkd_keras.distiller import Distiller
from spkd_keras.experiment import METHOD, Dimension, Experiment, ExperimentError, Space
from spkd_keras.observer import Observer
from spkd_keras.training.build import (
    augmentation,
    build_distiller,
    build_network,
    build_student,
    check_batch_size,
    load_data,
    schedules,
    telling,
)
from spkd_keras.training.interruption import Interruption
from spkd_keras.training.results import EVALUATION_BATCH
from spkd_keras.training.teacher_run import prepared_teacher, with_trained_teacher


class DistillationHyperModel(keras_tuner.HyperModel):
    """Builds and trains the students of a search; any of KerasTuner's tuners takes it.

        experiment, space = load_search("experiments/digits-search.yaml")
        tuner = keras_tuner.RandomSearch(DistillationHyperModel(experiment, space), "val_accuracy", max_trials=20)
        tuner.search()

    Every student starts from the experiment's first seed and sees the same images in the same order. The teacher is
    loaded once, trained before if there is no run of it yet, and shared; no student's checkpoint holds it.

    Args:
        experiment: at the first point of the space.
        space: what varies.
        out: folder for the run that trains the teacher, `<out>/<experiment.name>/teacher-seed0`.
        observer: is told how that training goes.
        interruption: is looked at while it goes.
    """

    def __init__(
        self,
        experiment: Experiment,
        space: Space,
        out: str | Path = "runs",
        observer: Observer | None = None,
        interruption: Interruption | None = None,
    ) -> None:
        super().__init__(name=experiment.name)
        self.experiment, self.space, self.out = experiment, space, Path(out)
        self.observer, self.interruption = observer or Observer(), interruption or Interruption()

    @property
    def seed(self) -> int:
        """The seed of every student."""
        return self.experiment.seeds[0]

    @property
    def needs_teacher(self) -> bool:
        """Whether a method that is searched has terms."""
        return any(self.experiment.methods[name].terms for name in self.space.methods)

    @cached_property
    def splits(self) -> data.Splits:
        """The data, loaded once."""
        return load_data(self.experiment.data)

    @property
    def held_out(self) -> data.AnyImages:
        """The images that decide.

        Raises:
            ExperimentError: if there are none.
        """
        if self.splits.validation is None:
            raise ExperimentError("A search chooses by held-out images. `data.validation` must be above 0.")
        return self.splits.validation

    @cached_property
    def teacher(self) -> keras.Model | None:
        """The teacher, trained if need be and loaded once; None if no method has terms."""
        if not self.needs_teacher:
            return None
        tf.config.experimental.enable_op_determinism()
        return prepared_teacher(self.experiment, self.out, self.splits, self.observer, self.interruption)

    def with_its_teacher(self, point: Experiment) -> Experiment:
        """Returns a point whose teacher is the one that the trials had, as a file; as it is if they had none."""
        return with_trained_teacher(point, self.out / self.experiment.name) if self.needs_teacher else point

    def declare(self, hp: keras_tuner.HyperParameters) -> None:
        """Declares all that varies. What belongs to a method counts only where that method is chosen."""
        for dimension in self.space.dimensions:
            if dimension.method is None:
                _declare(hp, dimension)
            else:
                with hp.conditional_scope(METHOD[0], [dimension.method]):
                    _declare(hp, dimension)

    def values(self, hp: keras_tuner.HyperParameters) -> dict[str, Any]:
        """Returns the values of a point as an experiment has them."""
        dimensions = {dimension.name: dimension for dimension in self.space.dimensions}
        return {name: dimensions[name].value(v) for name, v in hp.values.items() if name in dimensions}

    def point(self, hp: keras_tuner.HyperParameters) -> Experiment:
        """Returns the experiment of a point, with its one method and the one seed."""
        self.declare(hp)
        values = self.space.first() | self.values(hp)
        point = self.space.at(self.experiment, values)
        return point.single(self.space.method(values), self.seed)

    def build(self, hp: keras_tuner.HyperParameters) -> Distiller:
        """Builds and compiles the Distiller of a point.

        Raises:
            ExperimentError: if the point's networks, losses or layers cannot be.
        """
        point = self.point(hp)
        teacher = self.teacher  # before the seed is set, since its training sets another
        keras.utils.set_random_seed(self.seed)
        return build_distiller(teacher, build_student(point, self.splits.train), point, *point.methods)

    def fit(
        self,
        hp: keras_tuner.HyperParameters,
        model: Distiller,
        *args: Any,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        epochs: int | None = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains a student as the point's experiment says, on its data.

        Args:
            hp: the point.
            model: of `build`.
            *args: none; the data are the experiment's.
            callbacks: of the tuner, behind those of the experiment.
            epochs: where to stop; None for all of the schedule.
            **kwargs: as `keras.Model.fit`, for example `initial_epoch`.

        Returns:
            The history.
        """
        if args or kwargs.keys() & {"x", "y", "validation_data"}:
            raise ValueError("`search` takes no data: they are the experiment's. Received: some.")
        point, clock = self.point(hp), data.EpochClock()
        mixing = augmentation(point.data)
        return model.fit(
            data.training_batches(self.splits.train, point.data.batch_size, self.seed, clock, mixing),
            validation_data=data.evaluation_batches(self.held_out, EVALUATION_BATCH, one_hot=mixing.mixes_labels),
            epochs=epochs or point.schedule.epochs,
            callbacks=[*schedules(model, point, next(iter(point.methods)), clock), *callbacks],
            shuffle=False,  # the data shuffle themselves
            **{"verbose": 0, **kwargs},
        )

    def check(self) -> None:
        """Builds the first point, and it with each other value of a choice and end of a range, before any training.

        Raises:
            ExperimentError: naming the first that cannot be.
        """
        spec, images = self.experiment.teacher, self.splits.train
        teacher = build_network(spec, images, "teacher") if spec is not None and self.needs_teacher else None
        for dimension, values in self.space.corners():
            if dimension is not None and not _matters_to_building(dimension):
                continue
            point = self.space.at(self.experiment, values)
            build_distiller(teacher, build_student(point, images), point, *point.methods)
            with telling("data"):
                data.check_augmentation(images, augmentation(point.data))
                check_batch_size(images, point.data.batch_size)


def _matters_to_building(dimension: Dimension) -> bool:
    """A weight or a learning rate that the schema allows fits every network."""
    return dimension.path[0] != "schedule" and dimension.path[-1] != "weight"


def _declare(hp: keras_tuner.HyperParameters, dimension: Dimension) -> None:
    # KerasTuner 1.4.8 makes floats of the steps of integers by a factor, and misses the last of some steps of floats.
    if dimension.kind == "choice" or dimension.step is not None:
        hp.Choice(dimension.name, list(dimension.options), default=dimension.option(dimension.default))
        return
    low, high = dimension.values
    sampling = "log" if dimension.log else "linear"
    declare = hp.Int if dimension.kind == "int" else hp.Float
    declare(dimension.name, low, high, sampling=sampling, default=dimension.default)
