"""A run's folder as `spkd run` leaves it, of a network with random weights, without training."""

import json
from pathlib import Path
from typing import Any

import keras
from architectures import randomize

from spkd_keras import models
from spkd_keras.experiment import load_experiment

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
ERRORS = {("student", 0): 0.5, ("sp", 0): 0.25, ("sp", 1): 0.125, ("teacher", 0): 0.0625}


def digit_network(width: float = 0.25, seed: int = 0) -> keras.Model:
    """A WideResNet for the digits with random weights."""
    return randomize(models.wide_resnet(10, width, image_shape=(8, 8, 1)), seed)


def finished_runs(folder: Path, student: keras.Model | None = None) -> Path:
    """Writes the runs of a teacher, a student alone and two of `sp`, and returns the folder of `sp-seed0`."""
    file = folder / "tiny.yaml"
    file.write_text(EXPERIMENT, encoding="utf-8")
    experiment = load_experiment(file)
    student = student or digit_network()
    for (method, seed), error in ERRORS.items():
        run = folder / "tiny" / f"{method}-seed{seed}"
        run.mkdir(parents=True)
        single = experiment.teacher_training() if method == "teacher" else experiment.single(method, seed)
        assert single is not None
        (run / "experiment.yaml").write_text(single.to_yaml(), encoding="utf-8")
        network = digit_network(0.5) if method == "teacher" else student
        network.save(run / "student.keras")
        summary: dict[str, Any] = {
            **{"experiment": "tiny", "method": method, "seed": seed, "test_error": error, "test_error_best": error},
            **{"parameters": network.count_params(), "multiply_adds": models.multiply_adds(network)},
            **{"teacher_fingerprint": "f" * 32, "versions": {"keras": "3"}, "data": {"train": "train"}},
            "class_names": [str(digit) for digit in range(10)],
        }
        (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder / "tiny" / "sp-seed0"
