"""Results as rows of tables and as sentences, the same ones on the screen, in Markdown and on the page."""

import statistics
from collections.abc import Mapping, Sequence

from spkd_keras.experiment import TEACHER
from spkd_keras.report.results import ExperimentResult, MethodResult, figure_name, sign_test
from spkd_keras.report.weight_curves import WeightCurve

SURE = 0.05  # probability of a sign test
BEST = "test error at the best validation epoch, %"
EXPLANATION = (
    "Errors are of the test images after the last epoch. Differences are between runs with the same seed; below zero "
    "is better. The probability p is that of signs as uneven as these were either as likely (sign test, two-sided). "
    f"Two methods are told apart if it is below {SURE:g}, which takes six seeds at least. Where fewer seeds all agree, "
    "this is said, and means no more than that. Minutes are the clock's, whatever else the machine was doing."
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
# Columns that are left out where nothing is known of any method.
WHERE_KNOWN = (BEST, "published, %", "epochs", "training images", "minutes a run")


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


def columns_of(result: ExperimentResult) -> list[str]:
    """Returns the `COLUMNS` with seeds or folds in their names, whichever the medians are over."""
    return [column.replace("seeds", result.unit).replace("seed", _one(result.unit)) for column in COLUMNS]


def table(result: ExperimentResult) -> tuple[list[str], list[list[str]]]:
    """Returns the names of all columns, and a row for each method; of some columns, only where something is known."""
    rows = [cells(method) for method in result.methods]
    found = [(column, [row[index] for row in rows]) for index, column in enumerate(columns_of(result))]
    published_errors = [_number(method.published_error, ".2f") for method in result.methods]
    found.insert(3, ("published, %", published_errors))  # beside what was measured
    found.append(("epochs", [_number(method.epochs, "d") for method in result.methods]))
    found.append(("training images", [_number(method.images, ",d") for method in result.methods]))
    found.append(("minutes a run", [_minutes(method.wall_seconds) for method in result.methods]))
    kept = {column: values for column, values in found if any(values) or column not in WHERE_KNOWN}
    return list(kept), [list(row) for row in zip(*kept.values(), strict=True)]


def errors_in_percent(result: ExperimentResult) -> dict[str, list[float]]:
    """Returns the test errors for each seed by method, as figures have them."""
    return {figure_name(method.method): [100 * error for error in method.errors] for method in result.methods}


def published(result: ExperimentResult) -> list[str]:
    """Says what others reported, and where; nothing where there is nothing."""
    found: dict[str, list[str]] = {}
    for method in result.methods:
        if method.published and method.published_error is not None:
            found.setdefault(method.published.source, []).append(f"{method.method} {method.published_error:.2f}")
    return [f"Published test error, %: {', '.join(errors)} ({source})." for source, errors in found.items()]


def medians(result: ExperimentResult) -> str:
    """Says what the numbers in the table are."""
    told = f"Medians over the {result.unit}, ranges in brackets."
    if result.unit == "folds":
        told += " Folds share images, so that p is smaller than it should be."
    return told


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
    if curve.differing:
        line += f" Not all of them are of the same {' and '.join(curve.differing)}."
    elif curve.measured == "held-out":  # test images choose nothing
        line += f" {_lowest(medians)}"
    if curve.left_out:
        line += f" Left out, with other seeds alone: {', '.join(f'{weight:g}' for weight in curve.left_out)}."
    for weight, errors in sorted(curve.again.items()):
        line += f" Run again with {weight:g}: {', '.join(f'{100 * error:.2f} %' for error in errors)}."
    return line


def _lowest(medians: Mapping[float, float]) -> str:
    """Says where the error was lowest, and whether that is at the end of what was tried."""
    lowest = [weight for weight, median in sorted(medians.items()) if median == min(medians.values())]
    told = f"Lowest at {' and '.join(f'{weight:g}' for weight in lowest)}"
    ends = {min(medians): "the smallest", max(medians): "the largest"}
    return f"{told}, {ends[lowest[0]]} that was tried." if len(lowest) == 1 and lowest[0] in ends else f"{told}."


def compared(differences: Sequence[float], one: str, other: str, unit: str = "seeds") -> str:
    """Compares one with another, whichever way it falls.

    They are told apart by a sign test below 0.05. Few seeds cannot give so small a probability: where they all agree,
    this is said.

    Args:
        differences: of the errors, one's less the other's, for each seed.
        one: name of the first.
        other: name of the second.
        unit: "seeds" or "folds".
    """
    better, worse = (sum(sign * difference < 0 for difference in differences) for sign in (1, -1))
    count, probability = len(differences), sign_test(differences)
    points, p = f"{100 * statistics.median(differences):+.2f} points in the median", f"sign test: p = {probability:.2g}"
    differs = f"had {'fewer' if better > worse else 'more'} errors than {other}"
    if max(better, worse) == count and probability >= SURE:
        those = f"each of {count} {unit}" if count > 1 else f"the one {_one(unit)}"
        return f"{one} {differs} with {those}: {points} ({p}, the least that {count} can give)."
    if probability >= SURE:
        differs = f"is not told apart from {other}" if better + worse else f"had as many errors as {other}"
    equal = f", {count - better - worse} equal" if better + worse < count else ""
    return f"{one} {differs}: {points} of {_count(count, unit)} ({better} better, {worse} worse{equal}; {p})."


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
    return f"{count} {_one(unit) if count == 1 else unit}"


def _one(unit: str) -> str:
    return unit.removesuffix("s")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _minutes(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) / 60:.1f}" if seconds else ""
