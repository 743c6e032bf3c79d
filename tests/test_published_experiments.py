"""The published tables as experiments: each file is read, and built at full size, without its data."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest

from spkd_keras import data, models
from spkd_keras.experiment import TEACHER, load_experiment
from spkd_keras.models.mobilenet import IMAGENET as MOBILENET
from spkd_keras.models.mobilenet_v2 import IMAGENET as MOBILENET_V2
from spkd_keras.training import build

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "experiments" / "paper").glob("*.yaml"))
HEADER = ("source", "run", "expected", "cost", "differs")
CLASSES = {"cifar10": 10, "cifar100": 100, "cinic10": 10, "dtd/fold1": 47}
# Some of each family; the others take longer, and are built with the slow tests.
FAST = {
    *(path.stem for path in FILES if path.stem.startswith("cifar10-")),
    "cifar100-resnet8x4-from-resnet32x4",
    "cinic10-shufflenet_v2-0.5-from-1.0",
    "dtd-mobilenet-0.25-from-1.0",
}
# Trainable parameters of student and teacher, counted from the papers' tables.
SIZES = {
    "cifar10-wrn-16-1-from-16-2": (175_066, 691_674),
    "cifar10-wrn-40-2-from-16-8": (2_243_546, 10_961_370),
    "cinic10-shufflenet_v2-0.5-from-2.0": (352_042, 5_365_486),
    "dtd-mobilenet-0.25-from-1.0": (225_151, 3_255_151),
    "dtd-mobilenet_v2-0.35-from-1.4": (456_335, 4_400_047),
}


def header(path):
    """The comment above the experiment, by the words at the left."""
    found, last = {}, None
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            return found
        match = re.match(r"#   (\w+) +(.*)", line)
        if match:
            last = match[1]
            found[last] = match[2]
        elif last and line.startswith("#     "):
            found[last] += "\n" + line[1:].strip()
    return found


def images(experiment):
    """As many classes and the same shape as the real ones."""
    names = tuple(map(str, range(CLASSES[experiment.data.name])))
    if experiment.data.image_size:
        return data.Photos(lambda number: number, np.arange(2), np.array([0, 1]), names, experiment.data.image_size)
    return data.Images(np.zeros((2, 32, 32, 3), np.uint8), np.array([0, 1]), names)


def test_every_table_is_there():
    families = [path.stem.split("-")[0] for path in FILES]
    assert {family: families.count(family) for family in families} == {
        "cifar10": 5,
        "cifar100": 7,
        "cinic10": 4,
        "dtd": 6,
    }
    assert {path.stem for path in FILES} >= FAST | set(SIZES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_header_says_where_it_comes_from_and_how_it_is_run(path):
    told, experiment = header(path), load_experiment(path)
    assert tuple(told) == HEADER
    assert f"spkd run experiments/paper/{path.name}" in told["run"]
    assert "2 cores, CPU" in told["cost"]
    assert re.search(r"\d ms", told["cost"])
    numbers = {name: float(number) for name, number in re.findall(r"(\w+) (\d+\.\d+)", told["expected"])}
    if experiment.published is None:
        assert "not recovered" in told["expected"]
        return
    if "accuracy" in told["expected"]:
        numbers = {name: round(100 - number, 2) for name, number in numbers.items()}
    assert numbers == experiment.published.test_error
    assert set(numbers) == {*experiment.methods, TEACHER}
    # What nobody has read again is called so, here and in reports.
    remembered = "RepDistiller" not in told["source"]
    assert ("as remembered" in told["expected"]) == ("as remembered" in experiment.published.source) == remembered


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_weights_that_it_starts_from_exist(path):
    experiment = load_experiment(path)
    for network in (experiment.teacher, experiment.student):
        if network.arguments.get("weights") == "imagenet":
            public = {"mobilenet": MOBILENET, "mobilenet_v2": MOBILENET_V2}[network.model]
            assert network.arguments["width"] in public.alphas
            assert network.model == "mobilenet" or network.arguments["head"] == "fixed"
    assert ("imagenet" in path.read_text(encoding="utf-8")) == path.stem.startswith("dtd")


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=() if path.stem in FAST else pytest.mark.slow, id=path.stem) for path in FILES]
)
def test_it_is_built_at_full_size(path):
    # The public weights are not at hand at every width; a network is the same without them.
    without = ["teacher.weights=null", "student.weights=null"] if path.stem.startswith("dtd") else []
    experiment = load_experiment(path, without)
    examples = images(experiment)
    student = build.build_student(experiment, examples)
    teacher = build.build_network(experiment.teacher, examples, "teacher")
    assert models.multiply_adds(student) < models.multiply_adds(teacher)
    if path.stem in SIZES:
        sizes = [sum(np.prod(weight.shape) for weight in n.trainable_weights) for n in (student, teacher)]
        assert tuple(sizes) == SIZES[path.stem]
    for method in experiment.methods:
        distiller = build.build_distiller(teacher, student, experiment, method)
        assert len(distiller.terms) == len(experiment.methods[method].terms)
    keras.backend.clear_session()
