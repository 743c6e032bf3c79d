"""From run folders to tables and figures. Reads files only, and no TensorFlow."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spkd_keras.experiment import BASELINE, TEACHER, ExperimentError, load_experiment

# What a report reads of a summary. There is no best epoch where nothing was held out.
READ_KEYS = {
    "test_error": int | float,
    "test_error_best": int | float | None,
    "parameters": int | float,
    "multiply_adds": int | float,
}


class Run(NamedTuple):
    """A run's folder and what is in its summary; None where the run is not finished."""

    folder: Path
    experiment: str
    method: str
    seed: int
    summary: dict[str, Any] | None


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
    """

    method: str
    seeds: list[int]
    errors: list[float]
    best_errors: list[float]
    differences: list[float]
    parameters: int
    multiply_adds: int


class ExperimentResult(NamedTuple):
    """All methods of one experiment, the teacher first, then the baseline."""

    name: str
    folder: Path
    methods: list[MethodResult]
    unfinished: list[str]


def read_runs(folder: str | Path) -> list[Run]:
    """Finds the runs in a folder: a run's own, an experiment's, or one with several experiments.

    Raises:
        ExperimentError: if there are none, or a file in them is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ExperimentError(
            f"The folder does not exist: {folder}. Give the folder that `spkd run` wrote, runs/<name>."
        )
    runs = []
    for file in sorted(folder.rglob("experiment.yaml")):
        experiment = load_experiment(file)
        method, seed = next(iter(experiment.methods)), experiment.seeds[0]
        if file.parent.name == f"{method}-seed{seed}":  # else an experiment that the user keeps here
            summary = _read_summary(file.with_name("summary.json"))
            runs.append(Run(file.parent, experiment.name, method, seed, summary))
    if not runs:
        raise ExperimentError(f"There are no runs in {folder}. Give the folder that `spkd run` wrote, runs/<name>.")
    return runs


def _read_summary(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        for key, kind in READ_KEYS.items():
            if not isinstance(summary[key], kind):
                raise TypeError(f"{key} is {summary[key]!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise ExperimentError(
            f"{file} is damaged ({error!r}). Delete it, and `spkd run` does that run again."
        ) from error
    return summary


def summarise(runs: Sequence[Run]) -> list[ExperimentResult]:
    """Returns the results of each experiment among the runs."""
    results = []
    for name, root in dict.fromkeys((run.experiment, run.folder.parent) for run in runs):
        own = [run for run in runs if (run.experiment, run.folder.parent) == (name, root)]
        finished = {(run.method, run.seed): run.summary for run in own if run.summary}
        methods = sorted({method for method, _ in finished}, key=lambda m: (m != TEACHER, m != BASELINE, m))
        results.append(
            ExperimentResult(
                name,
                root,
                [_method_result(method, finished) for method in methods],
                [run.folder.name for run in own if run.summary is None],
            )
        )
    return results


def _method_result(method: str, finished: dict[tuple[str, int], dict[str, Any]]) -> MethodResult:
    summaries = {seed: summary for (name, seed), summary in sorted(finished.items()) if name == method}
    some = next(iter(summaries.values()))
    compared = method not in (BASELINE, TEACHER)
    return MethodResult(
        method,
        seeds=list(summaries),
        errors=[summary["test_error"] for summary in summaries.values()],
        best_errors=[s["test_error_best"] for s in summaries.values() if s["test_error_best"] is not None],
        differences=[
            summary["test_error"] - finished[BASELINE, seed]["test_error"]
            for seed, summary in summaries.items()
            if compared and (BASELINE, seed) in finished
        ],
        parameters=some["parameters"],
        multiply_adds=some["multiply_adds"],
    )


# Medians over the seeds, ranges in brackets.
COLUMNS = (
    "method",
    "seeds",
    "test error, %",
    "against the same-seed student, points",
    "test error at the best validation epoch, %",
    "parameters",
    "multiply-adds",
)


def cells(result: MethodResult) -> list[str]:
    """Returns the row of a table with the `COLUMNS`."""
    return [
        result.method,
        str(len(result.seeds)),
        _percent(result.errors),
        _percent(result.differences, sign="+"),
        _percent(result.best_errors),
        f"{result.parameters:,}",
        f"{result.multiply_adds:,}",
    ]


def verdicts(result: ExperimentResult) -> list[str]:
    """Says of each method whether it helped, whichever way it falls."""
    lines = []
    for method in result.methods:
        if not method.differences:
            continue
        median = statistics.median(method.differences)
        outcome = "it helped" if median < 0 else "no difference" if median == 0 else "it harmed"
        better = sum(difference < 0 for difference in method.differences)
        probability = sign_test(method.differences)
        lines.append(
            f"{method.method}: {outcome}: {100 * median:+.2f} points in the median, fewer errors than the student "
            f"alone in {better} of {len(method.differences)} seeds (sign test: p = {probability:.2g})."
        )
    return lines


def sign_test(differences: Sequence[float]) -> float:
    """Returns the probability of signs as uneven as these if either were as likely, two-sided; ties do not count.

    With n seeds it cannot be below 2 / 2^n: three that agree give 0.25, six 0.03.
    """
    from scipy.stats import binomtest

    signs = [difference < 0 for difference in differences if difference]
    return float(binomtest(sum(signs), len(signs)).pvalue) if signs else 1.0


def compared(differences: Sequence[float], one: str, other: str) -> str:
    """Says whether one beat another, whichever way it falls.

    Args:
        differences: of the errors, one's less the other's, for each seed.
        one: name of the first.
        other: name of the second.
    """
    median = statistics.median(differences)
    outcome = "beat" if median < 0 else "ended level with" if median == 0 else "did not beat"
    better = sum(difference < 0 for difference in differences)
    return (
        f"{one} {outcome} {other}: {100 * median:+.2f} points of error in the median, fewer errors in {better} of "
        f"{len(differences)} seeds (sign test: p = {sign_test(differences):.2g})."
    )


def costs(result: ExperimentResult) -> list[str]:
    """Says what the networks cost, the teacher's and the students'."""
    sizes = {(method.parameters, method.multiply_adds): method.method for method in reversed(result.methods)}
    return [
        f"{'teacher' if name == TEACHER else 'student'}: {parameters:,} parameters, {multiply_adds:,} multiply-adds"
        for (parameters, multiply_adds), name in reversed(sizes.items())
    ]


def markdown(results: Sequence[ExperimentResult], figures: Mapping[Path, str] | None = None) -> str:
    """Returns the results as a Markdown page.

    Args:
        results: of `summarise`.
        figures: file name of the similarity figure for each experiment's folder.
    """
    parts = ["# Results\n"]
    for result in results:
        parts.append(f"## {result.name}\n")
        parts.append("Medians over the seeds, ranges in brackets.\n")
        parts.append("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
        parts.append("\n".join(f"| {' | '.join(cells(method))} |" for method in result.methods) + "\n")
        parts.extend(f"- {line}" for line in verdicts(result))
        if result.unfinished:
            parts.append(f"- Not finished: {', '.join(result.unfinished)}.")
        if figures and result.folder in figures:
            parts.append(f"\n![Similarity matrices of {result.name}]({figures[result.folder]})")
        parts.append("")
    return "\n".join(parts)


def as_json(results: Sequence[ExperimentResult]) -> list[dict[str, Any]]:
    """Returns the results as plain data."""
    return [
        {
            "experiment": result.name,
            "folder": str(result.folder),
            "methods": [
                {**method._asdict(), "sign_test": sign_test(method.differences) if method.differences else None}
                for method in result.methods
            ],
            "unfinished": result.unfinished,
        }
        for result in results
    ]


def write_report(runs: Sequence[Run], out: Path) -> tuple[list[ExperimentResult], list[Path]]:
    """Writes `RESULTS.md` and the figures.

    Args:
        runs: of `read_runs`.
        out: folder, made if it does not exist.

    Returns:
        The results, and the files that were written.

    Raises:
        ExperimentError: if the folder cannot be written to.
    """
    results = summarise(runs)
    figures: dict[Path, str] = {}
    names = [result.name for result in results]
    try:
        out.mkdir(parents=True, exist_ok=True)
        written = [out / "RESULTS.md"]
        for index, result in enumerate(results):
            # Experiments in two folders may have one name.
            stem = result.name if names.count(result.name) == 1 else f"{result.name}-{index + 1}"
            own = [run for run in runs if run.folder.parent == result.folder]
            figure = _draw_similarities(result, own, out / f"{stem}-similarity")
            if figure:
                figures[result.folder] = figure[0].name
                written.extend(figure)
        written[0].write_text(markdown(results, figures), encoding="utf-8")
    except OSError as error:
        raise ExperimentError(
            f"The report cannot be written to {out} ({error.strerror}). Choose another with --out."
        ) from error
    return results, written


def _draw_similarities(result: ExperimentResult, runs: Sequence[Run], path: Path) -> list[Path]:
    """Draws the teacher and every method with the first seed."""
    from spkd_keras import plots

    order = [method.method for method in result.methods if method.method != TEACHER]
    seeds = sorted(run.seed for run in runs if run.summary and run.method in order)
    if not seeds:
        return []
    matrices: dict[str, Any] = {}
    for method in order:
        for run in runs:
            file = run.folder / "similarity.npz"
            if (run.method, run.seed) == (method, seeds[0]) and file.exists():
                arrays = _read_arrays(file)
                labels = arrays["labels"]
                if "teacher" in arrays:
                    matrices.setdefault("teacher", arrays["teacher"])
                matrices["student alone" if method == BASELINE else method] = arrays["student"]
    if not matrices:
        return []
    matrices = {name: matrices[name] for name in sorted(matrices, key=lambda name: name != "teacher")}
    return plots.similarity_matrices(matrices, labels, path)


def _read_arrays(file: Path) -> dict[str, Any]:
    import numpy as np

    try:
        with file.open("rb") as content, np.load(content) as archive:
            arrays = dict(archive)
        arrays["labels"], arrays["student"]
    except Exception as error:  # whatever a damaged archive makes zipfile and NumPy raise
        raise ExperimentError(
            f"{file} is damaged ({error!r}). Delete it and the summary.json beside it, and `spkd run` writes it again."
        ) from error
    return arrays


def _percent(values: Sequence[float], sign: str = "") -> str:
    """Median and range, in percent."""
    if not values:
        return ""
    median, low, high = (f"{100 * value:{sign}.2f}" for value in (statistics.median(values), min(values), max(values)))
    return median if len(values) == 1 else f"{median} ({low} to {high})"
