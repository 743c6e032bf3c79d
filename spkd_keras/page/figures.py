"""The figures of the page, each as an `<svg>` element.

All take `identity`, the figure's id on the page, and `description`, for those who do not see it. Errors are in percent;
`looks` are by method.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spkd_keras.page.looks import OTHER, STUDENT_ALONE, Look
from spkd_keras.page.svg import GRID, INK, SOFT, inline, page_style
from spkd_keras.plots import draw_errors, shortened

MARKED_EPOCHS = 6  # of a learning curve: more would hide its dash
LEGEND_CHARACTERS = 64  # that fit beside each other, with eight for each line that is shown
SIMILARITY_LEVELS = 64  # colours of a matrix: more cannot be told apart, and make the file larger


def learning_curves(
    curves: Mapping[str, np.ndarray], label: str, looks: Mapping[str, Look], identity: str, description: str
) -> str:
    """Draws the error over the epochs: the median of the seeds as a line, their range as a band.

    `curves` are by method, of shape (seeds, epochs).
    """
    with page_style():
        figure, panel = _panel(4.8, 3.2)
        for index, (method, errors) in enumerate(curves.items()):
            epochs, look = np.arange(1, errors.shape[1] + 1), looks[method]
            low, high = errors.min(axis=0), errors.max(axis=0)
            panel.fill_between(epochs, low, high, color=look.colour, alpha=0.18, linewidth=0)
            every = -(-len(epochs) // MARKED_EPOCHS)
            first = index * every // len(curves)  # markers of lines that lie on each other do not
            median, marks = np.median(errors, axis=0), {"marker": look.marker, "markersize": 4.5}
            line = {"color": look.colour, "linestyle": look.dash, "linewidth": 1.6, "label": method}
            panel.plot(epochs, median, markevery=(first, every), **line, **marks)
        panel.set_xlabel("epoch")
        panel.set_ylabel(label)
        panel.xaxis.get_major_locator().set_params(integer=True)
        _legend(figure, panel)
        return inline(figure, identity, description)


def errors_by_seed(
    errors: Mapping[str, Sequence[float]], label: str, looks: Mapping[str, Look], identity: str, description: str
) -> str:
    """Draws the errors of methods, a row for each from the top: a dot for each seed, and a line at their median."""
    with page_style():
        figure, panel = _panel(4.8, 0.8 + 0.3 * len(errors))
        draw_errors(panel, errors, [(looks[method].colour, looks[method].marker) for method in errors])
        panel.set_xlabel(label)
        panel.grid(visible=False, axis="y")
        return inline(figure, identity, description)


def similarity_matrix(
    matrix: np.ndarray, labels: np.ndarray, scale: tuple[float, float], identity: str, description: str
) -> str:
    """Draws a similarity matrix, shape (b, b).

    `labels`, sorted, of shape (b,), are the classes of its rows; `scale` has the values of the lowest and the highest
    colour.
    """
    low, high = scale
    span = max(high - low, 1e-12)
    levels = np.round((matrix - low) / span * (SIMILARITY_LEVELS - 1)) / (SIMILARITY_LEVELS - 1)
    classes, starts, counts = np.unique(labels, return_index=True, return_counts=True)
    with page_style():
        figure, panel = _panel(2.6, 2.6)
        panel.grid(visible=False)
        panel.imshow(levels, vmin=0, vmax=1, cmap="viridis", interpolation="none")
        named = slice(None, None, max(1, -(-len(classes) // 10)))
        places, names = (starts + (counts - 1) / 2)[named], [str(label) for label in classes[named]]
        panel.set_xticks(places, names, fontsize=7)
        panel.set_yticks(places, names, fontsize=7)
        panel.tick_params(length=0)
        return inline(figure, identity, description)


def colour_scale(scale: tuple[float, float], identity: str) -> str:
    """Draws what the colours of similarity matrices mean."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    with page_style():
        figure, panel = _panel(2.6, 0.6)
        colours = ScalarMappable(Normalize(*scale), "viridis")
        figure.colorbar(colours, cax=panel, orientation="horizontal", label="similarity, rows of length one")
        return inline(figure, identity, f"Colours from {scale[0]:.2f}, dark blue, to {scale[1]:.2f}, yellow")


def weight_curve(
    errors: Mapping[float, Sequence[float]],
    baseline: Sequence[float],
    labels: tuple[str, str],
    looks: tuple[Mapping[float, str], Mapping[str, Look]],
    identity: str,
    description: str,
) -> str:
    """Draws the error over the weight of a term, on a logarithmic axis: medians, ranges, and the student alone.

    `errors` are by weight, for each seed; `baseline` are those of the student alone, and may be none. `labels` are of
    the weight and of the error. `looks` is a pair: the method by weight, which may have none, and the looks by method.
    """
    weights, (methods, look_of) = sorted(errors), looks
    with page_style():
        figure, panel = _panel(4.8, 3.0)
        panel.plot(weights, [np.median(errors[weight]) for weight in weights], color=SOFT, linewidth=1.2)
        for method in dict.fromkeys(methods.get(weight) for weight in weights):
            own = [weight for weight in weights if methods.get(weight) == method]
            medians = np.array([np.median(errors[weight]) for weight in own])
            ranges = np.array([[min(errors[weight]), max(errors[weight])] for weight in own])
            look = look_of[method] if method else OTHER
            style = {"color": look.colour, "marker": look.marker, "label": method or "other runs"}
            panel.errorbar(
                own, medians, np.abs(ranges.T - medians), linestyle="none", elinewidth=1.6, capsize=3, **style
            )
        if baseline:
            look = STUDENT_ALONE
            panel.axhline(float(np.median(baseline)), color=look.colour, linestyle=look.dash, label="student alone")
            panel.axhspan(min(baseline), max(baseline), color=look.colour, alpha=0.12, linewidth=0)
        _legend(figure, panel)
        panel.set_xscale("log")
        panel.set_xticks(weights, [f"{weight:g}" for weight in weights], minor=False)
        panel.set_xticks([], minor=True)
        panel.set_xlabel(labels[0])
        panel.set_ylabel(labels[1])
        return inline(figure, identity, description)


def changes_by_class(
    changes: Mapping[str, Sequence[float]],
    class_names: Sequence[str],
    looks: Mapping[str, Look],
    identity: str,
    description: str,
) -> str:
    """Draws how much the error of each class changes against the student alone.

    `changes` are by method, in points, one for each class; `class_names` are from the top.
    """
    with page_style():
        figure, panel = _panel(4.8, 1.1 + 0.26 * len(class_names))
        for index, (method, values) in enumerate(changes.items()):
            # One below the other, where they would hide each other, and apart from those of the next class.
            places = np.arange(len(class_names)) + min(0.16, 0.8 / len(changes)) * (index - (len(changes) - 1) / 2)
            colour, marker, _ = looks[method]
            panel.plot(values, places, linestyle="none", color=colour, marker=marker, markersize=5, label=method)
        panel.axvline(0, color=INK, linewidth=1)
        panel.set_yticks(range(len(class_names)), list(map(shortened, class_names)))
        panel.set_ylim(len(class_names) - 0.4, -0.6)
        panel.grid(visible=False, axis="x")
        panel.hlines(np.arange(len(class_names) - 1) + 0.5, *panel.get_xlim(), color=GRID, linewidth=0.5)
        panel.grid(visible=False, axis="y")
        # From the right, since long names of classes leave it less room than it needs.
        panel.set_xlabel("change of the error, points (left is better)", loc="right")
        _legend(figure, panel)
        return inline(figure, identity, description)


def _panel(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _legend(figure: Any, panel: Any) -> None:
    """Puts the legend above, in rows of up to three from left to right; Matplotlib fills columns."""
    handles, names = panel.get_legend_handles_labels()
    labels = list(map(shortened, names))
    columns = min(len(handles), 3, max(1, LEGEND_CHARACTERS // (max(map(len, labels)) + 8)))
    order = [index for column in range(columns) for index in range(column, len(handles), columns)]
    figure.legend(
        [handles[index] for index in order],
        [labels[index] for index in order],
        loc="outside upper center",
        ncols=columns,
        handlelength=2.6,
        columnspacing=1.2,
    )
