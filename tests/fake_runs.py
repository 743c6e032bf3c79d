"""Run folders as `spkd run` leaves them, without training: of the files that a test needs and no more."""

import json
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
from architectures import randomize

from spkd_keras import models
from spkd_keras.experiment import Experiment, load_experiment


def write_files(
    root: Path,
    experiment: Experiment,
    summary: dict[str, Any] | None,
    history: list[str] | None = None,
    similarity: dict[str, np.ndarray] | None = None,
) -> Path:
    """Writes the folder of the one run of an experiment, and returns it; without a summary it is not finished."""
    (method,), (seed,) = experiment.methods, experiment.seeds
    folder = root / f"{method}-seed{seed}"
    folder.mkdir(parents=True)
    (folder / "experiment.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    if history is not None:
        (folder / "history.csv").write_text("\n".join(history) + "\n", encoding="utf-8")
    if similarity is not None:
        np.savez_compressed(folder / "similarity.npz", **similarity)
    return folder


def single(method: str, seed: int, name: str, data: str, **more: Any) -> Experiment:
    """The experiment of one run; a method without terms, unless there is more."""
    plain = {"name": name, "data": {"name": data}, "student": {"model": "wide_resnet"}, "seeds": [seed]}
    return Experiment.model_validate(plain | {"methods": {method: {}}} | more)


# --- the least that a report reads -----------------------------------------------------------------------------------

SEEDS = [0, 1, 2]
# Test errors by seed. Exact in binary, so that differences and medians are too.
BARE_ERRORS = {"student": [0.25, 0.5, 0.375], "sp": [0.125, 0.25, 0.5], "kd": [0.25, 0.625, 0.375]}


def write_bare_run(
    root, method, seed=0, error=None, best=None, *, parameters=1234, multiply_adds=12340, name="tiny", similarity=True
):
    """Writes a run's folder; one that is not finished if there is no error."""
    experiment = single(method, seed, name, "digits")
    if error is None:
        return write_files(root, experiment, None)
    summary = {"test_error": error, "test_error_best": best, "parameters": parameters, "multiply_adds": multiply_adds}
    matrices = {"labels": np.array([0, 0, 1, 1]), "student": np.full((4, 4), (seed + 1) / 10)}
    if method != "teacher":
        matrices["teacher"] = np.eye(4)
    return write_files(root, experiment, summary, similarity=matrices if similarity else None)


def write_bare_runs(root):
    """Writes a teacher, three methods of three seeds, and a run that is not finished, and returns the folder."""
    for method, errors in BARE_ERRORS.items():
        for seed, error in zip(SEEDS, errors, strict=True):
            write_bare_run(root, method, seed, error, error + 0.125)
    write_bare_run(root, "teacher", 0, 0.0625, parameters=56789, multiply_adds=567890)
    write_bare_run(root, "at", 1)
    return root


# --- all that a page is made of --------------------------------------------------------------------------------------

HOSTILE = "<script>alert('dog')</script> & $x$"
CLASSES = ["cat", HOSTILE, "owl"]
TERMS = {
    "sp": [{"loss": "similarity_preserving", "weight": 100.0}],
    "sp-1000": [{"loss": "similarity_preserving", "weight": 1000.0}],
    "kd": [{"loss": "soft_targets", "temperature": 4.0, "weight": 0.9}],
}
# By method and seed: test error and error of each class.
ERRORS = {
    ("teacher", 0): (0.0625, [0.0, 0.0625, 0.125]),
    ("student", 0): (0.5, [0.25, 0.5, 0.75]),
    ("student", 1): (0.25, [0.25, 0.25, 0.25]),
    ("sp", 0): (0.25, [0.25, 0.25, 0.25]),
    ("sp", 1): (0.125, [0.0, 0.25, 0.125]),
    ("sp-1000", 0): (0.75, [0.75, 0.75, 0.75]),
    ("sp-1000", 1): (0.5, [0.5, 0.5, 0.5]),
    ("kd", 0): (0.375, [0.25, 0.375, 0.5]),
}
PUBLISHED = {"student": 8.74, "sp": 7.52}


def write_run(root, method, seed, error, by_class, *, name="tiny", data="cifar10", terms=None, epochs=3):
    """Writes a run's folder."""
    more = {"methods": {method: {"terms": TERMS.get(method, []) if terms is None else terms}}}
    if method != "teacher":
        more["teacher"] = {"model": "wide_resnet", "width": 2}
    if method in PUBLISHED:
        more["published"] = {"source": f"a paper {HOSTILE}", "test_error": {method: PUBLISHED[method]}}
    summary = {
        **{"test_error": error, "test_error_best": error, "validation_error": error + 0.03125},
        **{"epochs": epochs, "images": 1000 * epochs, "wall_seconds": 90.0 + 60 * seed, "images_per_second": 12.0},
        **{"peak_memory_bytes": 2**30, "parameters": 175_066, "multiply_adds": 26_657_408},
        **{"devices": ["/physical_device:CPU:0"], "threads": 2, "versions": {"keras": "3.15.1"}},
        **{"class_names": CLASSES, "test_error_by_class": by_class},
    }
    rows = [f"{epoch},0.5,{1 - error - (epochs - epoch) / 16}" for epoch in range(1, epochs + 1)]
    student = np.array([[0.75, 0.5, 0.25], [0.5, 0.75, 0.25], [0.25, 0.25, 0.75]], "float32")
    matrices = {"labels": np.array([0, 0, 1]), "student": student}
    if method != "teacher":
        matrices["teacher"] = np.eye(3, dtype="float32")
    experiment = single(method, seed, name, data, **more)
    return write_files(root, experiment, summary, ["epoch,accuracy,val_accuracy", *rows], matrices)


def change(run, old, new):
    """Changes a run's settings after the fact, as `--set` with other seeds would."""
    file = run / "experiment.yaml"
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def note(run, **facts):
    """Writes more into a run's summary."""
    file = run / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | facts), encoding="utf-8")


def write_trial(root, number, weight, outcome):
    """Writes the folder of a search's trial, of the runs' experiment with another weight in sp."""
    run = write_run(root / "written", "sp", 0, 0.5, [], terms=[{"loss": "similarity_preserving", "weight": weight}])
    folder = root / "tiny-search" / "trials" / f"trial_{number}"
    folder.mkdir(parents=True)
    (run / "experiment.yaml").rename(folder / "experiment.yaml")
    shutil.rmtree(root / "written")
    (folder / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")
    return folder


def write_runs(root):
    """Writes all runs of an experiment, and returns its folder."""
    for (method, seed), (error, by_class) in ERRORS.items():
        write_run(root, method, seed, error, by_class)
    return root


# --- with networks, of random weights --------------------------------------------------------------------------------

EXPERIMENT = """
name: tiny
data: {name: digits, batch_size: 32, validation: 0.1}
teacher: {model: wide_resnet, depth: 10, width: 0.5}
student: {model: wide_resnet, depth: 10, width: 0.25}
methods:
  student: []
  sp: [{loss: similarity_preserving, weight: 100.0}]
seeds: [0, 1]
"""
NETWORK_ERRORS = {("student", 0): 0.5, ("sp", 0): 0.25, ("sp", 1): 0.125, ("teacher", 0): 0.0625}


def digit_network(width: float = 0.25, seed: int = 0) -> keras.Model:
    """A WideResNet for the digits with random weights."""
    return randomize(models.wide_resnet(10, width, image_shape=(8, 8, 1)), seed)


def write_network_runs(folder: Path, student: keras.Model | None = None) -> Path:
    """Writes the runs of a teacher, a student alone and two of `sp`, and returns the folder of `sp-seed0`."""
    file = folder / "tiny.yaml"
    file.write_text(EXPERIMENT, encoding="utf-8")
    experiment = load_experiment(file)
    student = student or digit_network()
    for (method, seed), error in NETWORK_ERRORS.items():
        alone = experiment.teacher_training() if method == "teacher" else experiment.single(method, seed)
        assert alone is not None
        network = digit_network(0.5) if method == "teacher" else student
        summary = {
            **{"experiment": "tiny", "method": method, "seed": seed, "test_error": error, "test_error_best": error},
            **{"parameters": network.count_params(), "multiply_adds": models.multiply_adds(network)},
            **{"teacher_fingerprint": "f" * 32, "versions": {"keras": "3"}, "data": {"train": "train"}},
            "class_names": [str(digit) for digit in range(10)],
        }
        if method == "sp":
            summary["compared_layers"] = {"similarity_preserving": {"teacher": ["stage3"], "student": ["stage3"]}}
        network.save(write_files(folder / "tiny", alone, summary) / "student.keras")
    return folder / "tiny" / "sp-seed0"
