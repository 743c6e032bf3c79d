"""The published tables as experiments: each file is as published, and is built at full size, without its data."""

import math
from pathlib import Path

import keras
import numpy as np
import pytest
from published_tables import (
    ACCURACIES,
    ARCHITECTURES,
    ERRORS,
    PIXELS,
    PROTOCOLS,
    STUDENT_LEARNING_RATES,
    WITH_FIXED_HEAD,
    WITHOUT_NUMBERS,
    pair,
    published_errors,
)

from spkd_keras import data, losses, models
from spkd_keras.experiment import Data, Method, Schedule, TermSpec, load_experiment
from spkd_keras.models.mobilenet import IMAGENET as MOBILENET
from spkd_keras.models.mobilenet_v2 import IMAGENET as MOBILENET_V2
from spkd_keras.training import build

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "experiments" / "paper").glob("*.yaml"))
# Some of each family; the others take longer, and are built with the slow tests.
FAST = {
    *(path.stem for path in FILES if path.stem.startswith("cifar10-")),
    "cifar100-resnet8x4-from-resnet32x4",
    "cinic10-shufflenet_v2-0.5-from-1.0",
    "dtd-mobilenet-0.25-from-1.0",
}
# RepDistiller compares three stages of each; a ShuffleNetV2's stem is a stage too, to us.
ATTENTION_TAPS = {
    "cifar100-shufflenet_v2-from-resnet32x4": {
        "teacher": ["stage1", "stage2", "stage3"],
        "student": ["stage2", "stage3", "stage4"],
    },
    **{
        f"cinic10-shufflenet_v2-{pair}": {role: ["stage2", "stage3", "stage4"] for role in ("teacher", "student")}
        for pair in ("0.5-from-1.0", "0.5-from-2.0", "1.0-from-2.0")
    },
    "cinic10-mobilenet_v2-0.35-from-1.0": {  # without the fifth: a map of 1x1 is the same for all
        role: ["stage1", "stage2", "stage3", "stage4"] for role in ("teacher", "student")
    },
}
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def family(path):
    return path.stem.split("-")[0]


def images(experiment, classes):
    """As many classes and the same shape as the real ones."""
    names = tuple(map(str, range(classes)))
    if experiment.data.image_size:
        return data.Photos(lambda number: number, np.arange(2), np.array([0, 1]), names, experiment.data.image_size)
    return data.Images(np.zeros((2, 32, 32, 3), np.uint8), np.array([0, 1]), names)


def test_every_table_is_there():
    assert {path.stem for path in FILES} == {*ERRORS, *ACCURACIES, *WITHOUT_NUMBERS}
    assert len(FILES) == 22
    assert {path.stem for path in FILES} > FAST


@each_file
def test_the_protocol_is_the_published_one(path):
    experiment, published = load_experiment(path), PROTOCOLS[family(path)]
    assert experiment.data == Data(
        name=published.data,
        batch_size=published.batch_size,
        augmentation=published.augmentation,
        image_size=published.image_size,
        validation=published.validation,
        train_fraction=1.0,
        test="test",
    )
    teachers = Schedule(
        epochs=published.epochs,
        optimizer="sgd",
        learning_rate=published.learning_rate,
        momentum=published.momentum,
        nesterov=published.nesterov,
        weight_decay=published.weight_decay,
        drops=published.drops,
        ema=0.0,
    )
    rate = STUDENT_LEARNING_RATES.get(path.stem, published.learning_rate)
    assert experiment.schedule == teachers.model_copy(update={"learning_rate": rate})
    assert experiment.teacher_training().schedule == teachers
    assert experiment.precision == "float32"
    assert experiment.seeds == list(range(published.seeds))


@each_file
def test_the_methods_have_the_published_weights(path):
    published = PROTOCOLS[family(path)]
    taps = ATTENTION_TAPS.get(path.stem, {})
    expected = {
        "student": Method(),
        "at": Method(terms=[TermSpec(loss="attention_transfer", weight=published.beta, **taps)]),
        "sp": Method(terms=[TermSpec(loss="similarity_preserving", weight=published.gamma)]),
    }
    if published.alpha is not None:
        term = TermSpec(loss="soft_targets", temperature=published.temperature, weight=published.alpha)
        expected["kd"] = Method(student_loss_weight=round(1 - published.alpha, 6), terms=[term])
    assert load_experiment(path).methods == expected
    assert losses.AttentionTransfer().power == 2.0  # p, which no file names


@each_file
def test_the_networks_are_those_that_the_file_is_named_for(path):
    experiment = load_experiment(path)
    pixels = PIXELS.get(family(path))
    for network, name in zip((experiment.student, experiment.teacher), pair(path.stem), strict=True):
        arguments = network.arguments
        if pixels is None:
            assert arguments.pop("weights", None) == "imagenet"
        else:
            # The files have one or two digits after the point.
            assert arguments.pop("mean") == pytest.approx(pixels[0], abs=0.05)
            assert arguments.pop("std") == pytest.approx(pixels[1], abs=0.05)
            assert "weights" not in arguments
        # The public weights below width 1 have the fixed head; the paper's table has the scaled one, our default.
        fixed = pixels is None and network.model == "mobilenet_v2"
        assert arguments.pop("head", "scaled") == ("fixed" if fixed else "scaled")
        assert (network.model, arguments) == (ARCHITECTURES[name].model, ARCHITECTURES[name].size)


@each_file
def test_the_published_errors_are_those_of_the_tables(path):
    published, expected = load_experiment(path).published, published_errors(path.stem)
    assert (None if published is None else published.test_error) == expected


@pytest.mark.parametrize("path", [path for path in FILES if family(path) == "dtd"], ids=lambda path: path.stem)
def test_the_weights_that_it_starts_from_exist(path):
    experiment = load_experiment(path)
    for network in (experiment.teacher, experiment.student):
        public = {"mobilenet": MOBILENET, "mobilenet_v2": MOBILENET_V2}[network.model]
        assert network.arguments["width"] in public.alphas


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=() if path.stem in FAST else pytest.mark.slow, id=path.stem) for path in FILES]
)
def test_it_is_built_at_full_size(path):
    # The public weights are not at hand at every width; a network is the same without them.
    without = ["teacher.weights=null", "student.weights=null"] if family(path) == "dtd" else []
    experiment, classes = load_experiment(path, without), PROTOCOLS[family(path)].classes
    examples = images(experiment, classes)
    student = build.build_student(experiment, examples)
    teacher = build.build_network(experiment.teacher, examples, "teacher")
    assert models.multiply_adds(student) < models.multiply_adds(teacher)
    for network, name in zip((student, teacher), pair(path.stem), strict=True):
        architecture = {**ARCHITECTURES, **(WITH_FIXED_HEAD if family(path) == "dtd" else {})}[name]
        trainable = sum(math.prod(weight.shape) for weight in network.trainable_weights)
        assert (trainable, network.count_params()) == architecture.counts(classes)
    for method in experiment.methods:
        distiller = build.build_distiller(teacher, student, experiment, method)
        assert len(distiller.terms) == len(experiment.methods[method].terms)
    keras.backend.clear_session()
