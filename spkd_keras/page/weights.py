"""Runs that differ in the weight of one term alone: how sensitive is the error to it?"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

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


def weight_curves(runs: Sequence[Run]) -> list[WeightCurve]:
    """Finds the terms that were tried with several weights above zero, all else being equal."""
    groups: dict[str, dict[tuple[float, int], Run]] = {}
    for run in runs:
        terms = run.spec.methods[run.method].terms
        for index, term in enumerate(terms):
            if run.summary and term.weight > 0:
                groups.setdefault(_all_else(run, index), {}).setdefault((term.weight, run.seed), run)
    curves = []
    for key, found in groups.items():
        if len({weight for weight, _ in found}) > 1:
            first = next(iter(found.values()))
            index = json.loads(key)["index"]
            baseline = [
                other
                for other in runs
                if other.summary and not other.spec.methods[other.method].terms and _settings(other) == _settings(first)
            ]
            curves.append(_curve(first.spec.methods[first.method].terms[index].loss, found, baseline))
    return curves


def _curve(term: str, found: dict[tuple[float, int], Run], baseline: Sequence[Run]) -> WeightCurve:
    every = [*found.values(), *baseline]
    held_out = all((run.summary or {}).get("validation_error") is not None for run in every)
    key = "validation_error" if held_out else "test_error"
    errors: dict[float, list[float]] = {}
    for (weight, _), run in sorted(found.items()):
        errors.setdefault(weight, []).append((run.summary or {})[key])
    of_seed = {run.seed: (run.summary or {})[key] for run in baseline}
    methods = list(dict.fromkeys(run.method for _, run in sorted(found.items())))
    return WeightCurve(term, methods, "held-out" if held_out else "test", errors, list(of_seed.values()))


def _settings(run: Run) -> dict[str, Any]:
    return run.spec.model_dump(mode="json", exclude={"name", "methods", "seeds", "checkpoints", "published"})


def _all_else(run: Run, index: int) -> str:
    method = run.spec.methods[run.method].model_dump(mode="json")
    del method["terms"][index]["weight"]
    return json.dumps({"settings": _settings(run), "method": method, "index": index}, sort_keys=True)
