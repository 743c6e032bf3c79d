"""Run folders as `spkd run` leaves them, with all that a page is made of, written by hand."""

import json
import shutil

import numpy as np

from spkd_keras.experiment import Experiment

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
    folder = root / f"{method}-seed{seed}"
    folder.mkdir(parents=True)
    plain = {
        "name": name,
        "data": {"name": data},
        "student": {"model": "wide_resnet"},
        "methods": {method: {"terms": TERMS.get(method, []) if terms is None else terms}},
        "seeds": [seed],
    }
    if method != "teacher":
        plain["teacher"] = {"model": "wide_resnet", "width": 2}
    if method in PUBLISHED:
        plain["published"] = {"source": f"a paper {HOSTILE}", "test_error": {method: PUBLISHED[method]}}
    (folder / "experiment.yaml").write_text(Experiment.model_validate(plain).to_yaml(), encoding="utf-8")
    summary = {
        **{"test_error": error, "test_error_best": error, "validation_error": error + 0.03125},
        **{"epochs": epochs, "images": 1000 * epochs, "wall_seconds": 90.0 + 60 * seed, "images_per_second": 12.0},
        **{"peak_memory_bytes": 2**30, "parameters": 175_066, "multiply_adds": 26_657_408},
        **{"devices": ["/physical_device:CPU:0"], "threads": 2, "versions": {"keras": "3.15.1"}},
        **{"class_names": CLASSES, "test_error_by_class": by_class},
    }
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    rows = [f"{epoch},0.5,{1 - error - (epochs - epoch) / 16}" for epoch in range(1, epochs + 1)]
    (folder / "history.csv").write_text("epoch,accuracy,val_accuracy\n" + "\n".join(rows) + "\n", encoding="utf-8")
    matrices = {"student": np.array([[0.75, 0.5, 0.25], [0.5, 0.75, 0.25], [0.25, 0.25, 0.75]], "float32")}
    if method != "teacher":
        matrices["teacher"] = np.eye(3, dtype="float32")
    np.savez_compressed(folder / "similarity.npz", labels=np.array([0, 0, 1]), **matrices)
    return folder


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
