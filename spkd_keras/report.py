"""From run folders to tables and figures. Reads files only, and no TensorFlow."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spkd_keras.experiment import BASELINE, TEACHER, ExperimentError, Published
from spkd_keras.run_files import Run, folds, read_similarities
from spkd_keras.run_files import read_runs as read_runs  # the first step of every report
from spkd_keras.run_files import read_trials as read_trials
from spkd_keras.weight_curves import WeightCurve, weight_curves


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


def table(result: ExperimentResult) -> tuple[list[str], list[list[str]]]:
    """Returns the names of all columns, and a row for each method; columns of which nothing is known are left out."""
    over = result.unit.removesuffix("s")
    columns = [column.replace("seeds", result.unit).replace("same-seed", f"same-{over}") for column in COLUMNS]
    rows = [cells(method) for method in result.methods]
    more = {
        "published, %": [_number(method.published_error, ".2f") for method in result.methods],
        "epochs": [_number(method.epochs, "d") for method in result.methods],
        "images seen": [_number(method.images, ",d") for method in result.methods],
        "minutes a run": [_minutes(method.wall_seconds) for method in result.methods],
    }
    for index, (column, found) in enumerate(more.items()):
        if any(found):
            place = 3 if index == 0 else len(columns)  # what was published stands beside what was measured
            columns.insert(place, column)
            for row, cell in zip(rows, found, strict=True):
                row.insert(place, cell)
    return columns, rows


def published(result: ExperimentResult) -> list[str]:
    """Says what others reported, and where; nothing where there is nothing."""
    found: dict[str, list[str]] = {}
    for method in result.methods:
        if method.published and method.published_error is not None:
            found.setdefault(method.published.source, []).append(f"{method.method} {method.published_error:.2f}")
    return [f"Published test error, %: {', '.join(errors)} ({source})." for source, errors in found.items()]


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
            f"alone in {better} of {len(method.differences)} {result.unit} (sign test: p = {probability:.2g})."
        )
    return lines


def remarks(result: ExperimentResult) -> list[str]:
    """Returns all that is said below the table: verdicts, what others reported, what the weights came to."""
    return [*verdicts(result), *published(result), *map(tell_weights, result.weights)]


def tell_weights(curve: WeightCurve) -> str:
    """Says what each weight of a term came to, in the median of its seeds, and which was lowest."""
    medians = {weight: statistics.median(errors) for weight, errors in curve.errors.items()}
    told = ", ".join(f"{weight:g}: {100 * median:.2f} %" for weight, median in medians.items())
    seeds = sorted({len(errors) for errors in curve.errors.values()})
    line = (
        f"Weight of {curve.term} ({', '.join(curve.methods)}) and the {curve.measured} error, median of "
        f"{' to '.join(map(str, seeds))} {'seed' if seeds == [1] else 'seeds'}. {told}. "
        f"Lowest at {min(medians, key=lambda weight: medians[weight]):g}."
    )
    return line + (f" Student alone: {_percent(curve.baseline)} %." if curve.baseline else "")


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
        parts.append(f"Medians over the {result.unit}, ranges in brackets.\n")
        columns, rows = table(result)
        parts.append("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n")
        parts.extend(f"- {line}" for line in remarks(result))
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
                {
                    **method._asdict(),
                    "published": method.published and method.published.model_dump(),
                    "sign_test": sign_test(method.differences) if method.differences else None,
                }
                for method in result.methods
            ],
            "unfinished": result.unfinished,
            "weights": [curve._asdict() for curve in result.weights],
            "unit": result.unit,
        }
        for result in results
    ]


def write_report(
    runs: Sequence[Run], out: Path, trials: Sequence[Run] = ()
) -> tuple[list[ExperimentResult], list[Path]]:
    """Writes `RESULTS.md` and the figures.

    Args:
        runs: of `read_runs`.
        out: folder, made if it does not exist.
        trials: of `read_trials`.

    Returns:
        The results, and the files that were written.

    Raises:
        ExperimentError: if the folder cannot be written to.
    """
    results = summarise(runs, trials)
    figures: dict[Path, str] = {}
    names = [result.name for result in results]
    try:
        out.mkdir(parents=True, exist_ok=True)
        written = [out / "RESULTS.md"]
        for index, result in enumerate(results):
            # Experiments in two folders may have one name.
            stem = result.name if names.count(result.name) == 1 else f"{result.name}-{index + 1}"
            own = [run for run in runs if (run.experiment, run.folder.parent) == (result.name, result.folder)]
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
                arrays = read_similarities(file)
                labels = arrays["labels"]
                if "teacher" in arrays:
                    matrices.setdefault("teacher", arrays["teacher"])
                matrices["student alone" if method == BASELINE else method] = arrays["student"]
    if not matrices:
        return []
    matrices = {name: matrices[name] for name in sorted(matrices, key=lambda name: name != "teacher")}
    return plots.similarity_matrices(matrices, labels, path)


def _percent(values: Sequence[float], sign: str = "") -> str:
    """Median and range, in percent."""
    if not values:
        return ""
    median, low, high = (f"{100 * value:{sign}.2f}" for value in (statistics.median(values), min(values), max(values)))
    return median if len(values) == 1 else f"{median} ({low} to {high})"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _minutes(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) / 60:.1f}" if seconds else ""
