"""What methods came to over their seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spkd_keras.experiment import BASELINE, TEACHER, Published
from spkd_keras.report.weight_curves import WeightCurve, weight_curves
from spkd_keras.run_files import Run, folds, read_similarities


class MethodResult(NamedTuple):
    """What a method came to over its seeds. Errors are fractions of the test images, at the last epoch.

    Attributes:
        method: its name.
        seeds: of the finished runs.
        errors: for each seed.
        best_errors: at the epoch that was best on the held-out images; empty if none were held out.
        differences: error less the baseline's with the same seed, for the seeds that both have; below 0 is better.
        parameters: of the network.
        multiply_adds: of the network, for one image.
        epochs: of a run; None where the summaries do not say.
        images: that a run trained on, each as often as it was seen.
        wall_seconds: of training, for each seed.
        published: what others reported, with its source.
    """

    method: str
    seeds: list[int]
    errors: list[float]
    best_errors: list[float]
    differences: list[float]
    parameters: int
    multiply_adds: int
    epochs: int | None = None
    images: int | None = None
    wall_seconds: list[float] = []  # noqa: RUF012  (a tuple's default, which nobody changes)
    published: Published | None = None

    @property
    def published_error(self) -> float | None:
        """In percent."""
        return self.published.test_error.get(self.method) if self.published else None


class ExperimentResult(NamedTuple):
    """All methods of one experiment, the teacher first, then the baseline.

    Attributes:
        name: of the experiment.
        folder: with its runs.
        methods: what each came to.
        unfinished: names of the runs that have not ended.
        weights: errors by the weight of a term, where several were tried.
        unit: what medians are taken over: "seeds", or "folds" where the experiments of several folds are together.
    """

    name: str
    folder: Path
    methods: list[MethodResult]
    unfinished: list[str]
    weights: list[WeightCurve]
    unit: str = "seeds"


def summarise(runs: Sequence[Run], trials: Sequence[Run] = ()) -> list[ExperimentResult]:
    """Returns the results of each experiment among the runs, and of those that are folds of one, taken together.

    Args:
        runs: of `read_runs`.
        trials: of searches, `read_trials`, for the curves over weights.
    """
    results = []
    for name, root in dict.fromkeys((run.experiment, run.folder.parent) for run in runs):
        own = [run for run in runs if (run.experiment, run.folder.parent) == (name, root)]
        results.append(_result(name, root, own)._replace(weights=weight_curves(own, [*runs, *trials])))
    for name, root, own in folds(runs):
        results.append(_result(name, root, own)._replace(unit="folds"))
    return results


def _result(name: str, root: Path, runs: Sequence[Run]) -> ExperimentResult:
    finished = {(run.method, run.seed): run for run in runs if run.summary}
    methods = sorted({method for method, _ in finished}, key=lambda m: (m != TEACHER, m != BASELINE, m))
    unfinished = [run.folder.name for run in runs if run.summary is None]
    return ExperimentResult(name, root, [_method_result(method, finished) for method in methods], unfinished, [])


def _method_result(method: str, finished: dict[tuple[str, int], Run]) -> MethodResult:
    runs = {seed: run for (name, seed), run in sorted(finished.items()) if name == method}
    summaries = {seed: run.summary or {} for seed, run in runs.items()}
    errors = {key: run.summary["test_error"] for key, run in finished.items() if run.summary}
    some = next(iter(summaries.values()))
    compared = method not in (BASELINE, TEACHER)
    return MethodResult(
        method,
        seeds=list(summaries),
        errors=[errors[method, seed] for seed in summaries],
        best_errors=[s["test_error_best"] for s in summaries.values() if s["test_error_best"] is not None],
        differences=[
            errors[method, seed] - errors[BASELINE, seed]
            for seed in summaries
            if compared and (BASELINE, seed) in errors
        ],
        parameters=some["parameters"],
        multiply_adds=some["multiply_adds"],
        epochs=some.get("epochs"),
        images=some.get("images"),
        wall_seconds=[s["wall_seconds"] for s in summaries.values() if s.get("wall_seconds") is not None],
        published=next(iter(runs.values())).spec.published,
    )


def similarities(result: ExperimentResult, runs: Sequence[Run]) -> tuple[dict[str, Any], Any]:
    """Reads the similarity matrices of the first seed that has some.

    Args:
        result: of the experiment.
        runs: of the experiment.

    Returns:
        The matrices by method, the teacher's first, and the class of their rows; neither where none are kept.
    """
    students = [method.method for method in result.methods if method.method != TEACHER]
    files = {(run.method, run.seed): run.folder / "similarity.npz" for run in runs if run.method in students}
    seeds = sorted(seed for (_, seed), file in files.items() if file.exists())
    matrices: dict[str, Any] = {}
    labels = None
    for method in students if seeds else ():
        file = files.get((method, seeds[0]))
        if file is not None and file.exists():
            arrays = read_similarities(file)
            labels = arrays["labels"]
            if "teacher" in arrays:
                matrices.setdefault(TEACHER, arrays["teacher"])
            matrices[shown(method)] = arrays["student"]
    return {name: matrices[name] for name in sorted(matrices, key=lambda name: name != TEACHER)}, labels


def shown(method: str) -> str:
    """Returns a method's name as figures have it."""
    return "student alone" if method == BASELINE else method


def sign_test(differences: Sequence[float]) -> float:
    """Returns the probability of signs as uneven as these if either were as likely, two-sided; ties do not count.

    With n seeds it cannot be below 2 / 2^n: three that agree give 0.25, six 0.03.
    """
    from scipy.stats import binomtest

    signs = [difference < 0 for difference in differences if difference]
    return float(binomtest(sum(signs), len(signs)).pvalue) if signs else 1.0
