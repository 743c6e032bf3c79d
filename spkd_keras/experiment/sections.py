"""The sections of an experiment's YAML file: its data, networks, schedule and methods."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A part of the file, of which every key is known."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Calling(Section):
    """A part of the file whose other keys are arguments of what it names."""

    model_config = ConfigDict(extra="allow")

    @property
    def arguments(self) -> dict[str, Any]:
        """The keys that are not fields: arguments of the network's builder, or of the loss."""
        return dict(self.model_extra or {})


class Data(Section):
    """Which images, and how they are split and batched.

    Attributes:
        name: of the data set: "digits", "image_folder", or a name of TFDS (`cifar10`, `dtd/fold3`).
        path: the folder, for "image_folder".
        image_size: side to which images are brought; photos of different sizes need it.
        batch_size: at least 2: the losses compare the images of a batch.
        augmentation: of the training images; "none", "cifar" for images of one size (reflect-pad 4, random crop, flip)
            or "imagenet" for photos (random-resized crop, flip).
        mixup: alpha of MixUp, 0 for none.
        cutmix: Keras' factor of CutMix, 0 for none; not with mixup.
        randaugment: Keras' factor of RandAugment, 0 for none.
        validation: what hyper-parameters are chosen by: the name of a split, or the fraction of the training images,
            stratified by class, that is held out (0 for none). Default: the set's own validation split, or a tenth.
        test: what is reported: the name of a split, or, for sets that have none, the fraction of the train split,
            stratified by class, that is held out for it, before validation is.
        train_fraction: fraction of the other training images that is used, stratified by class.
        validation_seed: of the choice of held-out images, those to test with too.
    """

    name: str
    path: str | None = None
    image_size: int | None = Field(None, ge=1)
    batch_size: int = Field(128, ge=2)
    augmentation: Literal["none", "cifar", "imagenet"] = "none"
    mixup: float = Field(0.0, ge=0, le=1)
    cutmix: float = Field(0.0, ge=0, le=1)
    randaugment: float = Field(0.0, ge=0, le=1)
    validation: Any = None
    test: Any = "test"
    train_fraction: float = Field(1.0, gt=0, le=1)
    validation_seed: int = Field(0, ge=0, lt=2**31)

    # Not typed as a union, for which pydantic reports a problem with each of its members.
    @pydantic.field_validator("validation")
    @classmethod
    def _check_validation(cls, validation: Any) -> Any:
        is_number = isinstance(validation, int | float) and not isinstance(validation, bool)
        if validation is None or isinstance(validation, str) or (is_number and 0 <= validation < 1):
            return validation
        raise ValueError(f"must be the name of a split or a fraction from 0 to below 1, received {validation!r}")

    @pydantic.field_validator("test")
    @classmethod
    def _check_test(cls, test: Any) -> Any:
        if isinstance(test, str) or (isinstance(test, float) and 0 < test < 1):
            return test
        raise ValueError(f"must be the name of a split or a fraction above 0 and below 1, received {test!r}")


class Schedule(Section):
    """How a network is trained. The defaults are the paper's for CIFAR-10.

    Attributes:
        epochs: passes over the training images.
        optimizer: "sgd", with the weight decay in the gradient (`spkd_keras.optimizers.CoupledSGD`).
        learning_rate: at the start.
        momentum: in [0, 1).
        nesterov: whether to look ahead.
        weight_decay: on every trainable variable.
        drops: factors by which the learning rate is multiplied, keyed by the epoch at which that happens: an integer,
            or a fraction of the epochs.
        ema: momentum of an exponential moving average of the weights, which replaces them after the last epoch; 0 for
            none. Batch normalisation then gets the statistics of these weights. The epochs' own validation errors are
            of the weights that train.
    """

    epochs: int = Field(200, ge=1)
    optimizer: Literal["sgd"] = "sgd"
    learning_rate: float = Field(0.1, gt=0, allow_inf_nan=False)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(5e-4, ge=0, allow_inf_nan=False)
    drops: dict[Any, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {0.3: 0.2, 0.6: 0.2, 0.8: 0.2}
    ema: float = Field(0.0, ge=0, lt=1)

    @pydantic.field_validator("drops")
    @classmethod
    def _check_drops(cls, drops: dict[Any, float]) -> dict[Any, float]:
        for when in drops:
            if not (type(when) is int and when > 0) and not (type(when) is float and 0 < when < 1):
                number = isinstance(when, str) and when.replace(".", "", 1).isdecimal()
                whole = f" as text; by --set give all of them, as in 'schedule.drops={{{when}: {drops[when]:g}}}'"
                raise ValueError(
                    f"keys must be epochs (integers from 1) or fractions between 0 and 1, received {when!r}"
                    f"{whole if number else ''}"
                )
        return drops

    def epoch_of(self, drop: int | float) -> int:
        """Returns the epoch, counted from 0, at which a drop is: an epoch itself, or the nearest to a fraction."""
        return drop if isinstance(drop, int) else max(1, round(drop * self.epochs))

    def learning_rate_at(self, epoch: int) -> float:
        """Returns the learning rate of an epoch, counted from 0."""
        rate = self.learning_rate
        for drop, factor in self.drops.items():
            rate *= factor if epoch >= self.epoch_of(drop) else 1.0
        return rate


class Checkpoints(Section):
    """When the state of a training is written, beside the end of each epoch. No result depends on it.

    Attributes:
        minutes: after so many; None for never.
        steps: after so many of an epoch; None for never.
        look_every: steps after which it is looked whether loss and gradient were finite.
    """

    minutes: float | None = Field(10.0, gt=0, allow_inf_nan=False)
    steps: int | None = Field(None, ge=1)
    look_every: int = Field(50, ge=1)


class Network(Calling):
    """A network: either `model`, a builder's name, with that builder's arguments, or `path`, a `.keras` file."""

    model: str | None = None
    path: str | None = None

    @pydantic.model_validator(mode="after")
    def _check_one(self) -> "Network":
        if (self.model is None) == (self.path is None):
            raise ValueError("needs either `model`, a network's name, or `path`, a .keras file")
        if self.path is not None and self.arguments:
            raise ValueError(f"`path` takes no arguments, received {', '.join(self.arguments)}")
        return self


class CacheSpec(Section):
    """What the teacher gives, computed once, so that students are trained without it.

    Attributes:
        views: augmented views of each image, which take turns over the epochs; 1 where there is no augmentation.
        store: dtype in the files.
        sketch: size of a random projection, for similarity_preserving alone; None for the activations themselves.
        seed: of views and sketch.
        path: folder; None is `teacher-cache` beside the runs.
    """

    views: int = Field(1, ge=1, le=16)
    store: Literal["float16", "float32"] = "float16"
    sketch: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0, lt=2**31)
    path: str | None = None


class Teacher(Network):
    """A network to distil from.

    Attributes:
        schedule: overrides fields of the experiment's own for its training.
        dtype: in which it computes while students are distilled from it. None is that of the experiment's `precision`;
            in float32 the network as it is.
        cache: keep what it gives in files, and train students from these; None to run it in every step.
    """

    schedule: dict[str, Any] = {}
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    cache: CacheSpec | None = None

    @pydantic.model_validator(mode="after")
    def _check_schedule(self) -> "Teacher":
        if self.path is not None and self.schedule:
            raise ValueError("`path` is a trained network, so it takes no `schedule`")
        return self


class WeightScheduleSpec(Section):
    """How a term's weight changes: linear warm-up over epochs, cosine decay towards zero, and zero from an epoch on."""

    warm_up: int = Field(0, ge=0)
    decay: Literal["none", "cosine"] = "none"
    until: int | None = Field(None, ge=1)


class TermSpec(Calling):
    """A term: a loss by name with its arguments, its weight, and the layers (a name, or a list) where it looks.

    `schedule` changes the weight from epoch to epoch.
    """

    loss: str
    weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    teacher: Any = None
    student: Any = None
    name: str | None = None
    schedule: WeightScheduleSpec = WeightScheduleSpec()

    # Not typed as a union, for which pydantic reports a problem with each of its members.
    @pydantic.field_validator("teacher", "student")
    @classmethod
    def _check_layers(cls, layers: Any) -> Any:
        names = layers if isinstance(layers, list) else [layers]
        if layers is not None and not (names and all(isinstance(name, str) for name in names)):
            raise ValueError(f"must be a layer's name or a list of names, received {layers!r}")
        return layers


class Method(Section):
    """What the student is trained on: the labels, by their weight, and the terms."""

    student_loss_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    terms: list[TermSpec] = []


class Published(Section):
    """What others reported for the methods; stands beside the measured numbers in a report.

    Attributes:
        source: where it was printed.
        test_error: in percent, by method; the teacher's as `teacher`.
    """

    source: str = Field(min_length=1)
    test_error: dict[str, Annotated[float, Field(ge=0, le=100)]] = Field(min_length=1)

    def of(self, methods: Iterable[str]) -> "Published | None":
        """Returns what is about these methods; None if nothing is."""
        errors = {name: error for name, error in self.test_error.items() if name in set(methods)}
        return self.model_copy(update={"test_error": errors}) if errors else None
