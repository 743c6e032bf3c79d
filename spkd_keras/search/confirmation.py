"""Whether the best point of a search beats the given one, over seeds: the search itself looked at one seed alone."""

from pathlib import Path
from typing import Any, NamedTuple

from spkd_keras.experiment import Space, points, read_record
from spkd_keras.observer import Observer, Renamed
from spkd_keras.report import compared
from spkd_keras.run_files import CONFIRMATION
from spkd_keras.search.hypermodel import DistillationHyperModel
from spkd_keras.search.results import TrialResult
from spkd_keras.search.tuner import trial_name
from spkd_keras.training.run import RunsFailedError, run_experiment

FIRST = trial_name("0")


class Confirmation(NamedTuple):
    """The validation errors of two points, as fractions, for each seed.

    Attributes:
        seeds: the experiment's, without those of which a run failed.
        first: errors of the given point, trial 0.
        best: errors of the best point.
        failures: why runs failed, by their names.
    """

    seeds: list[int]
    first: list[float]
    best: list[float]
    failures: dict[str, str]

    @property
    def differences(self) -> list[float]:
        """The best point's error less the first's, for each seed; below 0 is better."""
        return [best - first for best, first in zip(self.best, self.first, strict=True)]


def confirm(
    hypermodel: DistillationHyperModel, trials: list[TrialResult], seeds: list[int], folder: Path, observer: Observer
) -> Confirmation | None:
    """Runs the first and the best point with each seed, as `spkd run` does, under the search's folder.

    Each point's runs are under the name of its trial: with more trials another point may be the best.

    Args:
        hypermodel: of the search.
        trials: of the search, the best first.
        seeds: to run them with.
        folder: of the search.
        observer: is told how it goes.

    Returns:
        The errors; None if the first point is the best, or failed.
    """
    first, best = hypermodel.space.first(), trials[0]
    if best.values == first or _failure_of_first(trials) is not None:
        return None
    compared_points = {FIRST: first, best.name: best.values}
    runs = {
        f"{name} {run.name}": run
        for name, values in compared_points.items()
        for run in _runs(folder / CONFIRMATION / _slug(name), hypermodel.space.method(values), seeds).values()
    }
    observer.planned(list(runs), [name for name, run in runs.items() if (run / "summary.json").exists()])
    failures: dict[str, str] = {}
    of_first, of_best = (
        _errors(hypermodel, name, values, seeds, folder / CONFIRMATION, observer, failures)
        for name, values in compared_points.items()
    )
    both = [seed for seed in seeds if seed in of_first and seed in of_best]
    return Confirmation(both, [of_first[seed] for seed in both], [of_best[seed] for seed in both], failures)


def _errors(
    hypermodel: DistillationHyperModel,
    name: str,
    values: dict[str, Any],
    seeds: list[int],
    out: Path,
    observer: Observer,
    failures: dict[str, str],
) -> dict[int, float]:
    """Does the runs of a point; returns the error of each seed, and adds why those that failed did."""
    point = hypermodel.with_its_teacher(hypermodel.space.at(hypermodel.experiment, values))
    point = point.model_copy(update={"name": _slug(name), "seeds": seeds})
    failed: dict[str, str] = {}
    try:
        run_experiment(point, out, Renamed(observer, lambda run: f"{name} {run}", held_out=True))
    except RunsFailedError as error:
        failed = error.reasons
    failures.update({f"{name} {run}": reason for run, reason in failed.items()})
    files = {
        seed: run / "summary.json"
        for seed, run in _runs(out / point.name, hypermodel.space.method(values), seeds).items()
        if run.name not in failed
    }
    return {seed: float((read_record(f) or {})["validation_error"]) for seed, f in files.items()}


def _failure_of_first(trials: list[TrialResult]) -> str | None:
    return next((trial.reason for trial in trials if trial.name == FIRST), None)


def verdict(space: Space, seed: int, trials: list[TrialResult], confirmation: Confirmation | None) -> list[str]:
    """Says whether the best point beats the given one, whichever way it falls.

    Args:
        space: that was searched.
        seed: of the search.
        trials: the best first.
        confirmation: of `confirm`; None if there was none.

    Returns:
        Lines; none if all trials failed.
    """
    best, first = trials[0], space.first()
    if best.error is None:
        return []
    given = points(first)
    lines = [f"Best on validation, seed {seed}: {best.name}, {points(best.values)}."]
    if best.values == first:
        return [*lines, f"No point beat the given one ({given})."]
    reason = _failure_of_first(trials)
    if reason is not None:
        return [*lines, f"The given point ({given}) cannot be trained ({reason}): there is nothing to compare with."]
    if confirmation is None:
        return lines
    lines += [f"Over the seeds {run} failed: {why}" for run, why in confirmation.failures.items()]
    if not confirmation.seeds:
        return [*lines, f"Whether it beats the given point ({given}) is not known: no seed has a run of both."]
    shown = "; ".join(
        f"seed {s}: {100 * b:.2f}% against {100 * f:.2f}%"
        for s, b, f in zip(confirmation.seeds, confirmation.best, confirmation.first, strict=True)
    )
    said = compared(confirmation.differences, "On validation the best point", f"the given one ({given})")
    chosen = f" Seed {seed} is the one that it was chosen by." if len(confirmation.seeds) > 1 else ""
    return [*lines, f"{said} {shown}.{chosen}"]


def _slug(trial: str) -> str:
    return trial.replace(" ", "-")


def _runs(root: Path, method: str, seeds: list[int]) -> dict[int, Path]:
    return {seed: root / f"{method}-seed{seed}" for seed in seeds}
