"""The experiments for two cores: that they can be run, and one of them run on a part of its data."""

import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest

from spkd_keras import data, report
from spkd_keras.experiment import differences, load_experiment
from spkd_keras.page import write_page
from spkd_keras.training import build, run_experiment

ROOT = Path(__file__).parent.parent
PAPER = ROOT / "experiments" / "paper"
FILES = sorted((ROOT / "experiments" / "cpu").glob("*.yaml"))
METHODS = ["student", "kd", "at", "sp", "kd+sp"]
FULL_PROTOCOL = "cifar10-full-protocol"
SHAPES = {"cifar10": ((16, 16, 3), 10), "fashion_mnist": ((28, 28, 1), 10), "dtd/fold1": ((112, 112, 3), 47)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_built(path):
    experiment = load_experiment(path, ["teacher.weights=null"] if path.stem == "dtd" else [])
    shape, classes = SHAPES[experiment.data.name] if path.stem != FULL_PROTOCOL else ((32, 32, 3), 10)
    names = tuple(map(str, range(classes)))
    examples = data.Images(np.zeros((2, *shape), np.uint8), np.array([0, 1]), names)
    build.check(experiment, data.Splits(examples, None, examples, {}))
    if path.stem != FULL_PROTOCOL:
        assert list(experiment.methods) == METHODS
        assert len(experiment.seeds) >= (5 if path.stem == "cifar10" else 3)
    text = path.read_text(encoding="utf-8")
    assert f"spkd run experiments/cpu/{path.name}" in text
    assert "2 cores, CPU, predicted by `spkd check`" in text
    keras.backend.clear_session()


def test_the_full_protocol_is_the_paper_s():
    (paper,) = PAPER.glob("cifar10-wrn-16-1-from-16-2.yaml")
    (own,) = (path for path in FILES if path.stem == FULL_PROTOCOL)
    published, tried = load_experiment(paper), load_experiment(own)
    changed = {line.split(":")[0].split(".")[0] for line in differences(published, tried)}
    assert changed == {"precision", "methods", "seeds"}
    for method in tried.methods:
        assert tried.methods[method] == published.methods[method]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_paper_s_numbers_are_those_of_its_table(path):
    said, row = load_experiment(path).published, load_experiment(PAPER / "cifar10-wrn-16-1-from-16-2.yaml").published
    if said is not None:
        assert path.stem in ("cifar10", FULL_PROTOCOL)
        assert "Tung & Mori, ICCV 2019" in said.source
        assert "as remembered" in said.source
        assert said.test_error == {method: row.test_error[method] for method in said.test_error}


@pytest.mark.slow
def test_every_method_on_two_thousand_images_of_cifar10(tmp_path):
    if not (Path(os.environ.get("TFDS_DATA_DIR", "/nowhere")) / "cifar10").is_dir():
        pytest.skip("TFDS_DATA_DIR has no prepared cifar10")
    few = [f"data.train_fraction={2000 / 45_000}", "schedule.epochs=1", "seeds=[0]"]
    root = run_experiment(load_experiment(ROOT / "experiments" / "cpu" / "cifar10.yaml", few), tmp_path)
    summaries = {file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in root.glob("*/summary.json")}
    assert set(summaries) == {"teacher-seed0", *(f"{method}-seed0" for method in METHODS)}
    for summary in summaries.values():
        assert (summary["epochs"], summary["images"]) == (1, 2000)
        # As many test images of each class.
        assert summary["test_error"] == pytest.approx(np.mean(summary["test_error_by_class"]))
        assert 0 < summary["test_error"] < 1
    losses = {(root / f"{method}-seed0" / "history.csv").read_text() for method in METHODS}
    assert len(losses) == len(METHODS), "each method trains in its own way"
    text = write_page(report.read_runs(root), tmp_path).read_text(encoding="utf-8")
    for heading in ("Learning curves", "Similarity matrices", "Class by class", "Cost"):
        assert f"<h3>{heading}</h3>" in text
    assert all(f"{method}: " in text for method in METHODS[1:])
