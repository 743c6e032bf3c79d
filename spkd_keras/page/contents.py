"""What is on the page, as plain data for its template."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from spkd_keras import report
from spkd_keras.experiment import BASELINE, TEACHER
from spkd_keras.page import figures
from spkd_keras.page.looks import Look, looks_of, methods_by_weight
from spkd_keras.run_files import Run, read_history

SHOWN_CLASSES = 20  # those that change most, where there are more


class Figure(NamedTuple):
    """An `<svg>` element and what stands below it."""

    svg: str
    caption: str


def section(result: report.ExperimentResult, identity: str) -> dict[str, Any]:
    """Returns what the page says of one experiment.

    Args:
        result: of `report.summarise`.
        identity: of the section on the page.
    """
    own = [run for run in result.runs if run.summary]
    columns, rows = _without_costs(*report.table(result))
    names = {method.method: report.figure_name(method.method) for method in result.methods}
    looks = looks_of([*names, *(method for curve in result.weights for method in curve.methods)])
    return {
        "id": identity,
        "name": result.title,
        "warnings": result.warnings,
        "verdicts": report.verdicts(result) or ["Nothing to compare: it takes the student alone, and a method."],
        "comparisons": report.comparisons(result),
        "columns": columns,
        "rows": rows,
        "settings": report.settings(result),
        "medians": report.medians(result),
        "published": report.published(result),
        "unfinished": result.unfinished,
        "errors": _errors(result, looks, identity),
        "curves": _learning_curves(own, result.unit, names, looks, identity),
        "similarities": _similarities(result, identity),
        "weights": _weight_curves(result.weights, own, looks, identity),
        "classes": _classes(result, looks, identity),
        "costs": [_cost(method.method, own) for method in result.methods] if own else [],
        "conditions": _conditions(own),
    }


def _without_costs(columns: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The costs have a table of their own, and a narrow one is read on a phone."""
    kept = [index for index, name in enumerate(columns) if name not in ("parameters", "multiply-adds", "minutes a run")]
    return [columns[index] for index in kept], [[row[index] for index in kept] for row in rows]


def _learning_curves(
    runs: Sequence[Run], unit: str, names: dict[str, str], looks: dict[str, Look], identity: str
) -> Figure | None:
    """The held-out error where every run has one, else the error on the training images."""
    histories: dict[str, list[list[dict[str, float]]]] = {}
    for run in runs:
        rows = read_history(run)
        if rows and run.method != TEACHER:
            histories.setdefault(run.method, []).append(rows)
    rows_of_all = [row for found in histories.values() for rows in found for row in rows]
    key = "val_accuracy" if all("val_accuracy" in row for row in rows_of_all) else "accuracy"
    if not rows_of_all or not all(key in row for row in rows_of_all):
        return None
    curves = {}
    for method in (name for name in names if name in histories):
        epochs = max(map(len, histories[method]))  # a band is over runs of one length: of others there is a warning
        errors = [[100 * (1 - row[key]) for row in rows] for rows in histories[method] if len(rows) == epochs]
        curves[names[method]] = np.array(errors)
    measured = "held-out images" if key == "val_accuracy" else "training images"
    ends = ", ".join(f"{name} {np.median(errors[:, -1]):.1f} %" for name, errors in curves.items())
    caption = f"Error on the {measured} after each epoch: median of the {unit}, and their range. At the end: {ends}."
    svg = figures.learning_curves(curves, f"error on {measured}, %", looks, f"{identity}-curves", caption)
    return Figure(svg, caption)


def _errors(result: report.ExperimentResult, looks: dict[str, Look], identity: str) -> Figure | None:
    errors = report.errors_in_percent(result)
    if len(errors) < 2:
        return None
    told = ", ".join(
        f"{report.figure_name(method.method)} {100 * statistics.median(method.errors):.2f} %"
        for method in result.methods
    )
    caption = f"Test error of each of the {result.unit}, and a line at the median: {told}."
    return Figure(figures.errors_by_seed(errors, "test error, %", looks, f"{identity}-errors", caption), caption)


def _similarities(result: report.ExperimentResult, identity: str) -> list[Figure]:
    """The teacher, the student alone and the distilled ones, of the first seed that has a picture, on one scale."""
    matrices, labels = report.similarities(result)
    if not matrices:
        return []
    scale = (
        min(float(matrix.min()) for matrix in matrices.values()),
        max(float(matrix.max()) for matrix in matrices.values()),
    )
    found = []
    for index, (name, matrix) in enumerate(matrices.items()):
        same = labels[:, None] == labels[None, :]
        apart = ~np.eye(len(labels), dtype=bool)
        inside, between = (float(matrix[which].mean()) if which.any() else 0.0 for which in (same & apart, ~same))
        caption = f"{name}: {inside:.3f} within a class, {between:.3f} between classes, in the mean"
        alone = f"Similarity matrix of test images sorted by class. {caption}."
        svg = figures.similarity_matrix(matrix, labels, scale, f"{identity}-similarity-{index}", alone)
        found.append(Figure(svg, caption))
    return [*found, Figure(figures.colour_scale(scale, f"{identity}-scale"), "Class of the test image at both sides.")]


def _weight_curves(
    curves: Sequence[report.WeightCurve], runs: Sequence[Run], looks: dict[str, Look], identity: str
) -> list[Figure]:
    found = []
    for index, curve in enumerate(curves):
        caption = report.tell_weights(curve)
        errors = {weight: [100 * error for error in some] for weight, some in curve.errors.items()}
        labels = (f"weight of {curve.term}", f"{curve.measured} error, %")
        baseline = [100 * error for error in curve.baseline]
        shown = (methods_by_weight(curve, runs), looks)
        svg = figures.weight_curve(errors, baseline, labels, shown, f"{identity}-weight-{index}", caption)
        found.append(Figure(svg, caption))
    return found


def _classes(result: report.ExperimentResult, looks: dict[str, Look], identity: str) -> Figure | None:
    """The change of each class' test error against the same-seed student, of the methods that are compared with it."""
    compared = [method.method for method in result.methods if method.differences]
    runs = [run for run in result.runs if run.method in (BASELINE, *compared) and run.summary]
    by_class: dict[tuple[str, int], Any] = {
        (run.method, run.seed): run.summary["test_error_by_class"]
        for run in runs
        if run.summary and run.summary.get("test_error_by_class")
    }
    classes = [list(map(str, (run.summary or {})["class_names"])) for run in runs if (run.method, run.seed) in by_class]
    if any(own != classes[0] for own in classes):
        return None
    names = classes[0] if classes else []
    changes: dict[str, np.ndarray] = {}
    for method in compared:
        pairs = [
            (errors, by_class.get((BASELINE, seed))) for (name, seed), errors in by_class.items() if name == method
        ]
        own = [np.array(one, float) - np.array(other, float) for one, other in pairs if other is not None]
        if own:
            changes[method] = 100 * np.median(own, axis=0)  # a class without images is NaN
    every = np.array(list(changes.values()))
    measured = np.flatnonzero(~np.isnan(every).any(axis=0)) if changes else np.array([])
    if not measured.size:
        return None
    most = np.max(np.abs(np.nan_to_num(every)), axis=0)
    chosen = sorted(measured[np.argsort(-most[measured], kind="stable")][:SHOWN_CLASSES])
    told = []
    for method, values in changes.items():
        best, worst = (int(chosen[int(pick(values[chosen]))]) for pick in (np.argmin, np.argmax))
        told.append(
            f"{method}: from {values[best]:+.1f} points ({names[best]}) to {values[worst]:+.1f} ({names[worst]})"
        )
    some = f" The {len(chosen)} of {len(names)} classes that change most." if len(chosen) < len(measured) else ""
    caption = (
        f"Test error of each class against the student alone, median of the {result.unit} that both have. "
        f"{'. '.join(told)}.{some} Below zero is better."
    )
    shown = {method: values[chosen].tolist() for method, values in changes.items()}
    svg = figures.changes_by_class(shown, [names[index] for index in chosen], looks, f"{identity}-classes", caption)
    return Figure(svg, caption)


def _cost(method: str, runs: Sequence[Run]) -> list[str]:
    """A row of the table of costs: sizes, and medians over the runs."""
    summaries = [run.summary for run in runs if run.method == method and run.summary]

    def median(key: str, scale: float, form: str) -> str:
        values = [summary[key] for summary in summaries if summary.get(key)]
        return f"{statistics.median(values) / scale:{form}}" if values else ""

    return [
        method,
        median("parameters", 1, ",.0f"),
        median("multiply_adds", 1e6, ",.1f"),
        median("wall_seconds", 60, ",.1f"),
        median("images_per_second", 1, ",.0f"),
        median("peak_memory_bytes", 2**30, ".2f"),
    ]


COST_COLUMNS = (
    "method",
    "parameters",
    "million multiply-adds",
    "minutes a run",
    "training images a second",
    "GiB of memory",
)


def _conditions(runs: Sequence[Run]) -> list[str]:
    """On what and with what the runs were done."""
    found: dict[str, None] = {}
    for run in runs:
        summary = run.summary or {}
        devices = [str(device).rpartition("device:")[2] for device in summary.get("devices") or []]
        versions = summary.get("versions") or {}
        words = [*devices, f"{summary['threads']} threads"] if summary.get("threads") else devices
        words += [f"{name} {versions[name]}" for name in ("spkd_keras", "tensorflow", "keras") if name in versions]
        if words:
            found[", ".join(words)] = None
        if summary.get("earlier_conditions"):
            found[f"{run.folder.name} went on under other conditions: {'; '.join(summary['earlier_conditions'])}"] = (
                None
            )
    return list(found)
