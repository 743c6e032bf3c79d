"""From an experiment's words to objects: data, networks, terms."""

import functools
import inspect
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras

from spkd_keras import data, models, optimizers
from spkd_keras.distiller import Distiller, StandIn, Term, TermWeightSchedule, WeightSchedule
from spkd_keras.experiment import Data, Experiment, ExperimentError, Network, unknown
from spkd_keras.losses import LOSSES
from spkd_keras.messages import one_line

APPLICATIONS = "keras_applications."  # before the name of one of Keras' own networks


@contextmanager
def telling(place: str) -> Iterator[None]:
    """Turns what a constructor refuses into the user's error, with the place in the experiment."""
    try:
        yield
    except ExperimentError:
        raise
    except ValueError as error:
        raise ExperimentError(f"{place}: {one_line(error)}") from error


def load_data(spec: Data) -> data.Splits:
    """Loads, checks and splits the data.

    Raises:
        ExperimentError: if there is no such data set, or it cannot be split as asked.
    """
    with telling("data"):
        splits = data.load(
            spec.name,
            path=spec.path,
            image_size=spec.image_size,
            validation=spec.validation,
            test=spec.test,
            train_fraction=spec.train_fraction,
            validation_seed=spec.validation_seed,
        )
        data.check_augmentation(splits.train, augmentation(spec))
        check_batch_size(splits.train, spec.batch_size)
        return splits


def check_batch_size(images: data.AnyImages, batch_size: int) -> None:
    """Checks that there is a whole batch.

    Raises:
        ValueError: if there is not.
    """
    if len(images) < batch_size:
        raise ValueError(
            f"`batch_size` must be at most {len(images)}, the number of training images. Received: {batch_size}."
        )


def augmentation(spec: Data) -> data.Augmentation:
    """Returns what is done to the training images."""
    return data.Augmentation(spec.augmentation, spec.mixup, spec.cutmix, spec.randaugment)


def build_network(spec: Network, images: data.AnyImages, role: str) -> keras.Model:
    """Builds a network for the images, or loads it from its file.

    Args:
        spec: `model` with arguments, or `path`.
        images: give the image shape and the number of classes.
        role: "teacher" or "student", for the messages.

    Raises:
        ExperimentError: if there is no such network or file, an argument is unknown or refused, or the network does
            not take these images or give one vector of logits.
    """
    shape, classes = images.image_shape, len(images.class_names)
    network = construct(spec, role, num_classes=classes, image_shape=shape)
    if spec.model is not None and network.output_shape[-1] != classes:
        raise ExperimentError(
            f"{role}: `num_classes` must be {classes}, the number of classes of the data. "
            f"Received: {network.output_shape[-1]}. Leave it out."
        )
    if not network.built or not getattr(network, "inputs", None):
        raise ExperimentError(f"{role}: '{network.name}' is not built. Call it on a batch of images before saving it.")
    _check_inputs_and_outputs(network, shape, role)
    return network


def _check_inputs_and_outputs(network: keras.Model, shape: tuple[int, ...], role: str) -> None:
    inputs, outputs = ([tuple(tensor.shape[1:]) for tensor in tensors] for tensors in (network.inputs, network.outputs))
    if (
        len(inputs) != 1
        or len(inputs[0]) != 3
        or any(a not in (None, b) for a, b in zip(inputs[0], shape, strict=True))
    ):
        wanted = " and ".join(map(str, inputs))
        raise ExperimentError(f"{role}: '{network.name}' takes images of shape {wanted}. Received: {tuple(shape)}.")
    if len(outputs) != 1 or len(outputs[0]) != 1 or None in outputs[0]:
        given = " and ".join(map(str, outputs))
        raise ExperimentError(
            f"{role}: a classifier takes one image to one vector of logits. Received: '{network.name}' from "
            f"{inputs[0]} to {given}. Save a network that ends in the logits alone."
        )


def build_student(experiment: Experiment, images: data.AnyImages) -> keras.Model:
    """Builds the network that is trained, in the experiment's precision.

    The precision is that of its layers; no policy of the process is set.

    Raises:
        ExperimentError: as `build_network`.
    """
    student = build_network(experiment.student, images, "student")
    with telling("precision"):
        return student if experiment.dtype == "float32" else models.in_precision(student, experiment.dtype)


def construct(spec: Network, place: str, **defaults: Any) -> keras.Model:
    """Builds a network by its name and arguments, or loads it from its file.

    Args:
        spec: `model`, one of `spkd_keras.models.BUILDERS` or `keras_applications.<Name>`, with arguments; or `path`.
        place: in the experiment, for the messages.
        **defaults: arguments that `spec` may override.

    Raises:
        ExperimentError: if there is no such network or file, or an argument is unknown or refused.
    """
    if spec.path is not None:
        return _load(Path(spec.path), place)
    name = str(spec.model)
    with telling(place):
        if name.startswith(APPLICATIONS):
            builder: Callable[..., Any] = functools.partial(models.keras_application, name.removeprefix(APPLICATIONS))
        else:
            builder = _named(name, {**models.BUILDERS, f"{APPLICATIONS}<Name>": None}, f"{place}.model", "network")
        return _call(builder, {**defaults, **spec.arguments}, place, type(spec).model_fields)


def build_terms(experiment: Experiment, name: str) -> list[Term]:
    """Builds the terms of a method.

    Raises:
        ExperimentError: if a loss is unknown, or an argument of it is unknown or refused.
    """
    terms = []
    for index, spec in enumerate(experiment.methods[name].terms):
        here = f"methods.{name}.terms.{index}"
        kind = _named(spec.loss, LOSSES, f"{here}.loss", "loss")
        with telling(here):
            loss = _call(kind, spec.arguments, here, type(spec).model_fields)
            terms.append(Term(loss, spec.weight, spec.teacher, spec.student, spec.name))
    return terms


def build_distiller(
    teacher: keras.Model | StandIn | None, student: keras.Model, experiment: Experiment, name: str
) -> Distiller:
    """Builds and compiles the Distiller of a method.

    Raises:
        ExperimentError: if a loss or layer is unknown, or the networks do not fit the method.
    """
    method, schedule = experiment.methods[name], experiment.schedule
    terms = build_terms(experiment, name)
    with telling(f"methods.{name}"):
        distiller = Distiller(
            teacher if terms else None, student, terms, method.student_loss_weight, experiment.teacher_dtype
        )
    distiller.look_every = experiment.checkpoints.look_every
    loss, accuracy = keras.losses.SparseCategoricalCrossentropy, keras.metrics.SparseCategoricalAccuracy
    if augmentation(experiment.data).mixes_labels:
        loss, accuracy = keras.losses.CategoricalCrossentropy, keras.metrics.CategoricalAccuracy
    distiller.compile(
        optimizers.CoupledSGD(
            schedule.learning_rate_at(0),
            momentum=schedule.momentum,
            nesterov=schedule.nesterov and schedule.momentum > 0,
            weight_decay=schedule.weight_decay,
            use_ema=schedule.ema > 0,
            ema_momentum=schedule.ema or 0.99,  # Keras wants one below 1 where there is none too
        ),
        loss=loss(from_logits=True),
        metrics=[accuracy(name="accuracy")],
    )
    return distiller


def schedules(distiller: Distiller, experiment: Experiment, name: str, clock: data.EpochClock) -> list[Any]:
    """Returns the callbacks that make each epoch what the experiment says: its data, learning rate and weights."""
    pairs = zip(distiller.terms, experiment.methods[name].terms, strict=True)
    weights = {str(term.name): WeightSchedule(**spec.schedule.model_dump()) for term, spec in pairs}
    return [
        clock,
        keras.callbacks.LearningRateScheduler(experiment.schedule.learning_rate_at),
        TermWeightSchedule(weights, experiment.schedule.epochs),
    ]


def check(experiment: Experiment, splits: data.Splits) -> None:
    """Builds everything that the experiment names once, so that what cannot work fails before any training.

    Raises:
        ExperimentError: as `build_network` and `build_distiller`.
    """
    student = build_student(experiment, splits.train)
    teacher = experiment.teacher and build_network(experiment.teacher, splits.train, "teacher")
    for name in experiment.methods:
        build_distiller(teacher, student, experiment, name)


def _load(path: Path, role: str) -> keras.Model:
    if path.is_dir():
        raise ExperimentError(
            f"{role}.path: {path} is a folder. Give a .keras file, for example a run's student.keras."
        )
    if not path.exists():
        raise ExperimentError(f"{role}.path: the file does not exist: {path}. A path is relative to where spkd runs.")
    if not zipfile.is_zipfile(path):
        raise ExperimentError(f"{role}.path: {path} is not a .keras file. {_how_to_save(path)}")
    try:
        network = keras.saving.load_model(path, compile=False)
    except Exception as error:  # whatever a file that is no network, or not a safe one, makes Keras raise
        raise ExperimentError(f"{role}.path: {path} cannot be loaded as a Keras network: {_reason(error)}") from error
    if isinstance(network, Distiller):
        network = network.student
    return _fused(network)


def _how_to_save(path: Path) -> str:
    if path.suffix in (".h5", ".hdf5"):  # as Keras 2 wrote them
        return f"Convert it: keras.saving.load_model({path.name!r}).save({path.with_suffix('.keras').name!r})."
    return "Save the network with network.save('network.keras')."


def _reason(error: Exception) -> str:
    """Returns why a file cannot be loaded. What Keras (3.15) says first is not what it is, where code is missing."""
    text = str(error).strip()
    if own := re.search(r"Could not locate (class|function) '(\w+)'", text):
        return (
            f"its {own[1]} '{own[2]}' is of your own code. Mark it by keras.saving.register_keras_serializable, "
            "import it and call spkd_keras.training.run_experiment in Python; or build the network of Keras' layers."
        )
    if "deserialization of a `Lambda` layer" in text:
        return (
            "it has a Lambda layer, which is code that a file may not bring. Put a layer of Keras there, or call "
            "keras.config.enable_unsafe_deserialization() and spkd_keras.training.run_experiment in Python."
        )
    return text.splitlines()[0] if text else type(error).__name__


def _fused(network: keras.Model) -> keras.Model:
    """Makes a network faster if it can be; one that Keras cannot copy is slower and otherwise the same."""
    try:
        return models.fused(network)
    except ValueError:
        return network


def _named(name: str, table: dict[str, Any], place: str, what: str) -> Any:
    if name in table:
        return table[name]
    raise ExperimentError(f"{place}: {unknown(what, name, table)}")


def _call(function: Callable[..., Any], arguments: dict[str, Any], place: str, also: Iterable[str]) -> Any:
    """Calls a builder with arguments by name, telling unknown ones and wrong types apart from a defect of ours.

    Args:
        function: the builder.
        arguments: for it.
        place: in the experiment.
        also: the keys that are valid there and no arguments.
    """
    valid = _parameters(function)
    for argument in arguments:
        if valid is not None and argument not in valid:
            raise ExperimentError(f"{place}: {unknown('key', argument, dict.fromkeys([*valid, *also]))}")
    try:
        return function(**arguments)
    except TypeError as error:
        shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise ExperimentError(f"{place}: a value has the wrong type ({error}). Received: {shown}.") from error


def _parameters(function: Callable[..., Any]) -> list[str] | None:
    """Returns the names of the parameters, those of the base classes behind `**kwargs` included.

    None for a function with `**kwargs`, which checks them itself.
    """
    sources = inspect.getmro(function) if inspect.isclass(function) else [function]
    names: dict[str, None] = {}
    for source in sources:
        parameters = inspect.signature(source).parameters.values()
        names |= {parameter.name: None for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return list(names)
    return None
