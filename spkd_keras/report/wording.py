"""Results as rows of tables and as sentences, the same ones on the screen, in Markdown and on the page."""

import statistics
from collections.abc import Sequence

from spkd_keras.experiment import TEACHER
from spkd_keras.report.results import ExperimentResult, MethodResult, shown, sign_test
from spkd_keras.report.weight_curves import WeightCurve

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


def errors_in_percent(result: ExperimentResult) -> dict[str, list[float]]:
    """Returns the test errors for each seed by method, as figures have them."""
    return {shown(method.method): [100 * error for error in method.errors] for method in result.methods}


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
