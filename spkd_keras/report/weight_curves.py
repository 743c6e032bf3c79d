"""Runs and trials that differ in the weight of one term alone: how sensitive is the error to it?"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from spkd_keras.experiment.sections import TermSpec
from spkd_keras.run_files import Run

KNOWN_BY = {"teacher_fingerprint": "teachers", "data_digest": "images"}  # of a run; a trial's summary has neither


class WeightCurve(NamedTuple):
    """Errors by the weight of a term.

    Attributes:
        term: name of its loss.
        methods: names under which the runs went.
        measured: "held-out" where every run has a held-out error, by which weights are chosen; else "test".
        seeds: that every weight was tried with.
        errors: by weight, a fraction for each of these seeds.
        baseline: of the student alone with the same settings, for those of these seeds that it has.
        left_out: weights that were tried with other seeds alone.
        again: by weight, what other runs with it and one of these seeds came to, where that is something else.
        differing: what is not the same for all of them, "teachers" or "images"; no weight is to be chosen by such.
    """

    term: str
    methods: list[str]
    measured: str
    seeds: list[int]
    errors: dict[float, list[float]]
    baseline: list[float]
    left_out: list[float]
    again: dict[float, list[float]]
    differing: list[str]


def weight_curves(own: Sequence[Run], others: Sequence[Run] = ()) -> list[WeightCurve]:
    """Finds the terms that were tried with several weights above zero and one seed, all else being equal.

    Args:
        own: runs of an experiment, of which each curve has at least one.
        others: runs of other experiments and trials of searches, which may lie on the same curves. Of equal ones the
            first counts, here before `own`: a trial, among which the weight was chosen, and not its run.
    """
    every = [run for run in [*others, *own] if run.summary]
    groups = _groups(every)
    curves = []
    for key in _groups([run for run in own if run.summary]):
        curve = _curve(json.loads(key)["index"], list(groups[key].values()), every)
        curves.extend([curve] if curve else [])
    return curves


def _groups(runs: Sequence[Run]) -> dict[str, dict[tuple[float, int], list[Run]]]:
    """Returns runs by all but the weight of one term, then by that weight and the seed."""
    groups: dict[str, dict[tuple[float, int], list[Run]]] = {}
    for run in runs:
        for index, term in enumerate(_terms(run)):
            if term.weight > 0:
                groups.setdefault(_all_else(run, index), {}).setdefault((term.weight, run.seed), []).append(run)
    return groups


def _curve(index: int, found: Sequence[Sequence[Run]], every: Sequence[Run]) -> WeightCurve | None:
    """Returns the curve of runs over the weight of one of their terms; None if it would have one weight alone.

    Args:
        index: of the term.
        found: the runs of each weight and seed, of which the first counts.
        every: where the student alone is looked for.
    """
    runs = [equal[0] for equal in found]
    alone = [run for run in every if not _terms(run) and _settings(run) == _settings(runs[0])]
    held_out = all(_entry(run, "validation_error") is not None for run in [*runs, *alone])
    key = "validation_error" if held_out else "test_error"  # which a trial of a search has not
    tried: dict[float, dict[int, Run]] = {}
    for run in runs:
        if _entry(run, key) is not None:
            tried.setdefault(_terms(run)[index].weight, {})[run.seed] = run
    every_weight = sorted(tried)
    seeds = _common_seeds(tried)
    tried = {weight: tried[weight] for weight in every_weight if set(seeds) <= set(tried[weight])}
    if len(tried) < 2:
        return None
    errors = {weight: [_entry(tried[weight][seed], key) for seed in seeds] for weight in sorted(tried)}
    methods = list(dict.fromkeys(tried[weight][seed].method for weight in sorted(tried) for seed in seeds))
    baseline = {run.seed: _entry(run, key) for run in alone if run.seed in seeds}
    again: dict[float, list[float]] = {}
    for first, *more in found:
        for error in dict.fromkeys(_entry(run, key) for run in more if first.seed in seeds):
            if error not in (None, _entry(first, key)):
                again.setdefault(_terms(first)[index].weight, []).append(error)
    left_out = [weight for weight in every_weight if weight not in tried]
    loss, measured = _terms(runs[0])[index].loss, "held-out" if held_out else "test"
    counted = [tried[weight][seed] for weight in errors for seed in seeds]
    differing = [what for key, what in KNOWN_BY.items() if len({_entry(run, key) for run in counted} - {None}) > 1]
    return WeightCurve(loss, methods, measured, seeds, errors, list(baseline.values()), left_out, again, differing)


def _common_seeds(tried: Mapping[float, Mapping[int, Run]]) -> list[int]:
    """Returns the seeds that as many weights as can be have in common, and of those as many as can be."""
    every = {seed for seeds in tried.values() for seed in seeds}
    weights_of = [[weight for weight, seeds in tried.items() if seed in seeds] for seed in sorted(every)]
    options = [set.intersection(*(set(tried[weight]) for weight in weights)) for weights in weights_of]
    best = max(zip(weights_of, options, strict=True), key=lambda both: tuple(map(len, both)), default=([], set()))
    return sorted(best[1])


def _entry(run: Run, key: str) -> Any:
    return (run.summary or {}).get(key)


def _terms(run: Run) -> list[TermSpec]:
    return run.spec.methods[run.method].terms


def _settings(run: Run) -> dict[str, Any]:
    settings = run.spec.model_dump(mode="json", exclude={"name", "methods", "seeds", "checkpoints", "published"})
    cache = settings["teacher"] and settings["teacher"]["cache"]
    if cache and cache["sketch"] is None and settings["data"]["augmentation"] == "none":
        settings["teacher"]["cache"] = None  # the same values, up to rounding, as of the teacher itself in a search
    return settings


def _all_else(run: Run, index: int) -> str:
    method = run.spec.methods[run.method].model_dump(mode="json")
    del method["terms"][index]["weight"]
    return json.dumps({"settings": _settings(run), "method": method, "index": index}, sort_keys=True)
