"""Results as rows of tables and as sentences, the same ones on the screen, in Markdown and on the page."""

import statistics
from collections.abc import Sequence

from spkd_keras.experiment import TEACHER
from spkd_keras.report.results import ExperimentResult, MethodResult, shown, sign_test
from spkd_keras.report.weight_curves import WeightCurve

SURE = 0.05  # probability of a sign test
BEST = "test error at the best validation epoch, %"
EXPLANATION = (
    "Errors are of the test images after the last epoch. Differences are between runs with the same seed; below zero "
    "is better. Two methods are told apart if they differ the same way with every seed, or if signs as uneven as these "
    f"would have a probability below {SURE:g} were either as likely (sign test, two-sided). The students of an "
    "experiment share one teacher."
)
# Medians over the seeds, ranges in brackets.
COLUMNS = (
    "method",
    "seeds",
    "test error, %",
    "against the same-seed student, points",
    BEST,
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
    """Returns the names of all columns, and a row for each method; of some columns, only where something is known."""
    over = result.unit.removesuffix("s")
    columns = [column.replace("seeds", result.unit).replace("same-seed", f"same-{over}") for column in COLUMNS]
    rows = [cells(method) for method in result.methods]
    if not any(method.best_errors for method in result.methods):
        without = COLUMNS.index(BEST)
        del columns[without]
        for row in rows:
            del row[without]
    more = {
        "published, %": [_number(method.published_error, ".2f") for method in result.methods],
        "epochs": [_number(method.epochs, "d") for method in result.methods],
        "training images": [_number(method.images, ",d") for method in result.methods],
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
    """Compares each method with the student alone, whichever way it falls."""
    return [
        compared(method.differences, method.method, "the student alone", result.unit)
        for method in result.methods
        if method.differences
    ]


def comparisons(result: ExperimentResult) -> list[str]:
    """Compares the methods with each other."""
    return [compared(one.differences, one.one, one.other, result.unit) for one in result.comparisons]


def remarks(result: ExperimentResult) -> list[str]:
    """Returns all that is said below the table: warnings, comparisons, what others reported, what the weights gave."""
    weights = [tell_weights(curve) for curve in result.weights]
    return [*result.warnings, *verdicts(result), *comparisons(result), *published(result), *weights]


def tell_weights(curve: WeightCurve) -> str:
    """Says what each weight of a term came to, in the median of its seeds, and which was lowest."""
    medians = {weight: statistics.median(errors) for weight, errors in curve.errors.items()}
    told = ", ".join(f"{weight:g}: {100 * median:.2f} %" for weight, median in medians.items())
    line = f"Weight of {curve.term} ({', '.join(curve.methods)}) and the {curve.measured} error, "
    line += f"median of {_count(len(curve.seeds), 'seeds')}: {told}."
    if curve.baseline:
        line += f" Student alone: {100 * statistics.median(curve.baseline):.2f} %."
    if curve.measured == "held-out":  # test images choose nothing
        line += f" Lowest at {min(medians, key=lambda weight: medians[weight]):g}."
    return line


def compared(differences: Sequence[float], one: str, other: str, unit: str = "seeds") -> str:
    """Compares one with another, whichever way it falls.

    They are told apart if they differ the same way with every seed, or by a sign test below 0.05. Few seeds cannot give
    a small probability, and this is said.

    Args:
        differences: of the errors, one's less the other's, for each seed.
        one: name of the first.
        other: name of the second.
        unit: "seeds" or "folds".
    """
    better, worse = (sum(sign * difference < 0 for difference in differences) for sign in (1, -1))
    count, probability = len(differences), sign_test(differences)
    if better == worse == 0:
        outcome = "had as many errors as"
    elif max(better, worse) == count or probability < SURE:
        outcome = "had fewer errors than" if better > worse else "had more errors than"
    else:
        outcome = "is not told apart from"
    least = (
        f", the least that {_count(count, unit)} can give"
        if max(better, worse) == count and probability >= SURE
        else ""
    )
    equal = f", {count - better - worse} equal" if better + worse < count else ""
    return (
        f"{one} {outcome} {other}: {100 * statistics.median(differences):+.2f} points in the median of "
        f"{_count(count, unit)} ({better} better, {worse} worse{equal}; sign test: p = {probability:.2g}{least})."
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


def _count(count: int, unit: str) -> str:
    return f"{count} {unit.removesuffix('s') if count == 1 else unit}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _minutes(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) / 60:.1f}" if seconds else ""
