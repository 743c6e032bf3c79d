"""Runs and trials that differ in the weight of one term alone: how sensitive is the error to it?"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from spkd_keras.experiment.schema import TermSpec
from spkd_keras.run_files import Run


class WeightCurve(NamedTuple):
    """Errors by the weight of a term.

    Attributes:
        term: name of its loss.
        methods: names under which the runs went.
        measured: "held-out" where every run has a held-out error, by which weights are chosen; else "test".
        errors: by weight, a fraction for each seed.
        baseline: of the student alone with the same settings.
    """

    term: str
    methods: list[str]
    measured: str
    errors: dict[float, list[float]]
    baseline: list[float]


def weight_curves(own: Sequence[Run], others: Sequence[Run] = ()) -> list[WeightCurve]:
    """Finds the terms that were tried with several weights above zero, all else being equal.

    Args:
        own: runs of an experiment, of which each curve has at least one.
        others: runs of other experiments and trials of searches, which may lie on the same curves.
    """
    curves = []
    every = [run for run in [*own, *others] if run.summary]
    groups = _groups(every)
    for key in _groups([run for run in own if run.summary]):
        runs = groups[key]
        if len({weight for weight, _ in runs}) > 1:
            one = next(iter(runs.values()))
            alone = [run for run in every if not _terms(run) and _settings(run) == _settings(one)]
            curves.append(_curve(_terms(one)[json.loads(key)["index"]].loss, runs, alone))
    return curves


def _groups(runs: Sequence[Run]) -> dict[str, dict[tuple[float, int], Run]]:
    """Returns runs by all but the weight of one term, then by that weight and the seed; the first of equal ones."""
    groups: dict[str, dict[tuple[float, int], Run]] = {}
    for run in runs:
        for index, term in enumerate(_terms(run)):
            if term.weight > 0:
                groups.setdefault(_all_else(run, index), {}).setdefault((term.weight, run.seed), run)
    return groups


def _curve(term: str, runs: dict[tuple[float, int], Run], alone: Sequence[Run]) -> WeightCurve:
    held_out = all((run.summary or {}).get("validation_error") is not None for run in [*runs.values(), *alone])
    key = "validation_error" if held_out else "test_error"
    errors: dict[float, list[float]] = {}
    for (weight, _), run in sorted(runs.items()):
        errors.setdefault(weight, []).append((run.summary or {})[key])
    of_seed = {run.seed: (run.summary or {})[key] for run in alone}
    methods = list(dict.fromkeys(run.method for _, run in sorted(runs.items())))
    return WeightCurve(term, methods, "held-out" if held_out else "test", errors, list(of_seed.values()))


def _terms(run: Run) -> list[TermSpec]:
    return run.spec.methods[run.method].terms


def _settings(run: Run) -> dict[str, Any]:
    return run.spec.model_dump(mode="json", exclude={"name", "methods", "seeds", "checkpoints", "published"})


def _all_else(run: Run, index: int) -> str:
    method = run.spec.methods[run.method].model_dump(mode="json")
    del method["terms"][index]["weight"]
    return json.dumps({"settings": _settings(run), "method": method, "index": index}, sort_keys=True)
