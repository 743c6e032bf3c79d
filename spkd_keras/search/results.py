"""What a search came to: its trials in order, and the best point as an experiment."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import keras_tuner

from spkd_keras.experiment import (
    BASELINE,
    METHOD,
    Experiment,
    ExperimentError,
    Method,
    Space,
    damaged,
    differences,
    label,
)
from spkd_keras.search.hypermodel import DistillationHyperModel
from spkd_keras.search.tuner import OUTCOME, anew, read_outcome, trial_name
from spkd_keras.storage import write_text

NO_REASON = "its process ended, or its value is no number"
BEST = "best.yaml"


class TrialResult(NamedTuple):
    """One trial.

    Attributes:
        name: `trial 0` is the given point.
        values: what varies.
        status: of KerasTuner: COMPLETED, FAILED, or RUNNING.
        score: value of the objective; None where it did not complete.
        error: on the held-out images, a fraction; None where it did not complete.
        epochs: that it trained, with those of the trial that it went on from.
        parameters: of the student.
        reason: why it failed.
    """

    name: str
    values: dict[str, Any]
    status: str
    score: float | None
    error: float | None
    epochs: int | None
    parameters: int | None
    reason: str | None


def read_trials(oracle: keras_tuner.Oracle, hypermodel: DistillationHyperModel, folder: Path) -> list[TrialResult]:
    """Returns the trials, the best first, those that failed last.

    Raises:
        ExperimentError: if the record of one is damaged.
    """
    found = []
    for trial_id, trial in sorted(oracle.trials.items(), key=lambda item: int(item[0])):
        outcome = read_outcome(folder / f"trial_{trial_id}")
        done = trial.status == "COMPLETED"
        if done and "validation_error" not in outcome:
            raise damaged(folder / f"trial_{trial_id}" / OUTCOME, "it has no validation_error", anew(folder.parent))
        reason = outcome.get("failed") or _last_line(trial.message) or NO_REASON
        found.append(
            TrialResult(
                trial_name(trial_id),
                hypermodel.space.active(hypermodel.space.first() | hypermodel.values(trial.hyperparameters)),
                trial.status,
                float(trial.score) if done else None,
                outcome["validation_error"] if done else None,
                outcome.get("epochs"),
                outcome.get("parameters"),
                reason if trial.status == "FAILED" else None,
            )
        )
    sign = -1 if oracle.objective.direction == "max" else 1
    return sorted(found, key=lambda t: (t.score is None, sign * (t.score or 0)))


def _last_line(message: str | None) -> str | None:
    lines = (message or "").strip().splitlines()
    return lines[-1] if lines else None


def is_used_up(space: Space, trials: list[TrialResult]) -> bool:
    """Whether the trials are all points of a space; False where it has more than can be counted."""
    try:
        counts = {d.name: len(d.every()) for d in space.dimensions if d.path != METHOD}
    except ExperimentError:  # a range of floats
        return False
    points = sum(
        math.prod(counts[d.name] for d in space.dimensions if d.path != METHOD and d.method in (None, method))
        for method in space.methods
    )
    return len({label(trial.values) for trial in trials}) >= points


def write_best(hypermodel: DistillationHyperModel, best: TrialResult, folder: Path, seeds: list[int]) -> Path:
    """Writes the best point as an ordinary experiment, with the baseline if the search's experiment has it."""
    experiment = best_experiment(hypermodel, best.values, seeds)
    path = folder / BEST
    values = "".join(f"#   {name}: {value}\n" for name, value in best.values.items())
    head = f"# The best point of a search, {best.name}, with a validation error of {best.error:.2%}:\n{values}"
    write_text(path, head + experiment.to_yaml())
    return path


def best_experiment(hypermodel: DistillationHyperModel, values: dict[str, Any], seeds: list[int]) -> Experiment:
    """Returns the experiment of a point, with the baseline if the search's experiment has it."""
    experiment = hypermodel.experiment
    point = hypermodel.space.at(experiment, values)
    methods = {BASELINE: Method()} if BASELINE in experiment.methods else {}
    update = {"name": f"{experiment.name}-best", "methods": methods | point.methods, "seeds": seeds}
    return same_teacher(hypermodel, point.model_copy(update=update))


def same_teacher(hypermodel: DistillationHyperModel, point: Experiment) -> Experiment:
    """Lets a point have the teacher that the trials had: its file, where the point would train another one."""
    before, after = hypermodel.experiment.teacher_training(), point.teacher_training()
    if before is None or after is None or not differences(before, after):
        return point
    return hypermodel.with_its_teacher(point)
