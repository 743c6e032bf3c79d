"""Whether the best point of a search beats the given one, over seeds: the search itself looked at one seed alone."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from spkd_keras.observer import Observer, Renamed
from spkd_keras.search.hypermodel import DistillationHyperModel
from spkd_keras.search.results import TrialResult, best_experiment
from spkd_keras.search.tuner import trial_name
from spkd_keras.training.run import run_experiment, with_trained_teacher

CONFIRMATION = "confirmation"


class Confirmation(NamedTuple):
    """The validation errors of two points, as fractions, for each seed.

    Attributes:
        seeds: the experiment's.
        first: errors of the given point, trial 0.
        best: errors of the best point.
    """

    seeds: list[int]
    first: list[float]
    best: list[float]

    @property
    def differences(self) -> list[float]:
        """The best point's error less the first's, for each seed; below 0 is better."""
        return [best - first for best, first in zip(self.best, self.first, strict=True)]


def confirm(
    hypermodel: DistillationHyperModel, best: TrialResult, seeds: list[int], folder: Path, observer: Observer
) -> Confirmation | None:
    """Runs the first and the best point with each seed, as `spkd run` does, under the search's folder.

    Each point's runs are under the name of its trial: with more trials another point may be the best.

    Returns:
        The errors; None if the first point is the best.

    Raises:
        RunsFailedError: if a run fails.
    """
    first = hypermodel.space.first()
    if best.values == first:
        return None
    points = {trial_name("0"): first, best.name: best.values}
    runs = {
        f"{name} {run.name}": run
        for name, values in points.items()
        for run in _runs(folder / CONFIRMATION / _slug(name), hypermodel.space.method(values), seeds)
    }
    observer.planned(list(runs), [name for name, run in runs.items() if (run / "summary.json").exists()])
    errors = [
        _errors(hypermodel, name, values, seeds, folder / CONFIRMATION, observer) for name, values in points.items()
    ]
    return Confirmation(seeds, *errors)


def _errors(
    hypermodel: DistillationHyperModel,
    name: str,
    values: dict[str, Any],
    seeds: list[int],
    out: Path,
    observer: Observer,
) -> list[float]:
    point = best_experiment(hypermodel, values, seeds)
    method = hypermodel.space.method(values)
    point = with_trained_teacher(point, hypermodel.out / hypermodel.experiment.name)
    point = point.model_copy(update={"name": _slug(name), "methods": {method: point.methods[method]}})
    root = run_experiment(point, out, Renamed(observer, lambda run: f"{name} {run}", held_out=True))
    files = [run / "summary.json" for run in _runs(root, method, seeds)]
    return [float(json.loads(file.read_text(encoding="utf-8"))["validation_error"]) for file in files]


def _slug(trial: str) -> str:
    return trial.replace(" ", "-")


def _runs(root: Path, method: str, seeds: list[int]) -> list[Path]:
    return [root / f"{method}-seed{seed}" for seed in seeds]
