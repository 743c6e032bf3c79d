"""Figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MOST_COLUMNS = 4
PANEL_INCHES = 3.0
CONTACT_COLUMNS = 8
MOST_NAMED_CLASSES = 60  # in a confusion matrix
MOST_NUMBERED_CLASSES = 20
LONGEST_NAME = 36  # characters: longer ones leave a figure no room
UNUSED = -0.12  # where a line crosses an axis that does not count for it


def similarity_matrices(matrices: Mapping[str, np.ndarray], labels: np.ndarray, path: Path) -> list[Path]:
    """Draws row-normalised similarity matrices side by side, on one colour scale.

    Where a network tells the classes apart, its matrix has bright blocks along the diagonal.

    Args:
        matrices: of shape (b, b), by title.
        labels: class of each row, sorted, shape (b,).
        path: of the files, without suffix.

    Returns:
        The paths of the PNG and the SVG file.

    Reference: Tung & Mori, ICCV 2019, the figure of activation similarities.
    """
    from matplotlib.figure import Figure

    columns = min(len(matrices), MOST_COLUMNS)
    rows = -(-len(matrices) // columns)
    low = min(float(matrix.min()) for matrix in matrices.values())
    high = max(float(matrix.max()) for matrix in matrices.values())
    classes, starts, counts = np.unique(labels, return_index=True, return_counts=True)
    figure = Figure(figsize=(PANEL_INCHES * columns + 0.8, PANEL_INCHES * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel in panels[len(matrices) :]:
        panel.set_axis_off()
    for panel, (title, matrix) in zip(panels, matrices.items(), strict=False):
        image = panel.imshow(matrix, vmin=low, vmax=high, cmap="viridis", interpolation="nearest")
        panel.set_title(title)
        panel.set_xticks(starts + (counts - 1) / 2, [str(label) for label in classes], fontsize=7)
        panel.set_yticks(starts + (counts - 1) / 2, [str(label) for label in classes], fontsize=7)
        panel.tick_params(length=0)
    panels[0].set_ylabel("class of the test image")
    figure.colorbar(image, ax=list(panels), label="similarity, rows of length one", shrink=0.8)
    return _saved(figure, path)


def errors_by_seed(errors: Mapping[str, Sequence[float]], label: str, path: Path) -> list[Path]:
    """Draws the errors of methods: a row for each, with a dot for each seed and a line at their median.

    Args:
        errors: by method, from the top, in percent, for each seed.
        label: of the errors.
        path: of the files, without suffix.

    Returns:
        The paths of the PNG and the SVG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 1.0 + 0.4 * len(errors)), layout="constrained")
    panel = figure.subplots()
    draw_errors(panel, errors, [("tab:blue", "o")] * len(errors))
    panel.set_xlabel(label)
    panel.grid(axis="x", linewidth=0.5, color="0.9")
    return _saved(figure, path)


def draw_errors(panel: Any, errors: Mapping[str, Sequence[float]], looks: Sequence[tuple[str, str]]) -> None:
    """Draws the rows of `errors_by_seed` into a Matplotlib panel, each in its colour and with its marker."""
    for row, (values, (colour, marker)) in enumerate(zip(errors.values(), looks, strict=True)):
        median = float(np.median(values))
        panel.plot([median, median], [row - 0.32, row + 0.32], color=colour, linewidth=2.2, solid_capstyle="butt")
        # Faces that let those below shine through, and edges in the full colour, which is seen on any paper.
        dots = {"marker": marker, "markersize": 5, "markerfacecolor": (colour, 0.5), "markeredgecolor": colour}
        panel.plot(values, [row] * len(values), linestyle="none", **dots)
    panel.set_yticks(range(len(errors)), list(map(shortened, errors)))
    panel.set_ylim(len(errors) - 0.4, -0.6)


def shortened(name: str) -> str:
    """Returns a name that fits into a figure: of a long one, both ends."""
    ends = (LONGEST_NAME - 1) // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:ends]}…{name[-ends:]}"


def confusion_matrix(matrix: np.ndarray, class_names: Sequence[str], path: Path) -> list[Path]:
    """Draws a confusion matrix, each row as shares of its class, with the numbers of images where they can be read.

    Args:
        matrix: images by class (row) and predicted class (column), shape (classes, classes).
        class_names: one for each class.
        path: of the files, without suffix.

    Returns:
        The paths of the PNG and the SVG file.
    """
    from matplotlib.figure import Figure

    classes = len(class_names)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(12.0, 3.0 + 0.4 * classes)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    panel = figure.subplots()
    image = panel.imshow(shares, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    panel.set_xlabel("predicted class")
    panel.set_ylabel("class")
    if classes <= MOST_NAMED_CLASSES:
        panel.set_xticks(range(classes), list(class_names), fontsize=7, rotation=90)
        panel.set_yticks(range(classes), list(class_names), fontsize=7)
    if classes <= MOST_NUMBERED_CLASSES:
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                colour = "black" if shares[row, column] > 0.5 else "white"
                panel.text(column, row, str(count), ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=panel, label="share of the class", shrink=0.8)
    return _saved(figure, path)


def parallel_coordinates(
    axes: Mapping[str, Sequence[tuple[float, str]]],
    lines: Sequence[Sequence[float | None]],
    errors: Sequence[float],
    path: Path,
) -> list[Path]:
    """Draws the trials of a search: a line for each, from what varied to the error that it came to.

    Args:
        axes: the places, from 0 to 1, and the names of an axis' marks, by the axis' name.
        lines: for each trial its place on each axis; None where that did not count.
        errors: for each trial, a fraction. The best is drawn last, and thickest.
        path: of the files, without suffix.

    Returns:
        The paths of the PNG and the SVG file.
    """
    import matplotlib
    from matplotlib.figure import Figure

    names = [*axes, "validation error, %"]
    figure = Figure(figsize=(2.0 * len(names) + 1.5, 4.0), layout="constrained")
    panel = figure.subplots()
    low, high = min(errors), max(errors)
    span = (high - low) or 1.0
    colours = matplotlib.colormaps["viridis"]
    for index in sorted(range(len(errors)), key=lambda i: -errors[i]):
        place = (errors[index] - low) / span
        heights = [UNUSED if height is None else height for height in lines[index]]
        best = errors[index] == low
        panel.plot([*heights, place], color=colours(place), linewidth=2.5 if best else 1.0, marker="o", markersize=3)
    marks = {**axes, names[-1]: [(0.0, f"{100 * low:.2f}"), (1.0, f"{100 * high:.2f}")][: 1 if low == high else 2]}
    paper = {"facecolor": "white", "alpha": 0.7, "pad": 0.5, "linewidth": 0}
    for x, name in enumerate(names):
        if name in axes and any(line[x] is None for line in lines):
            marks[name] = [*marks[name], (UNUSED, "not used")]
        panel.axvline(x, color="0.7", linewidth=0.8, zorder=0)
        for height, text in marks[name]:
            panel.annotate(
                text, (x, height), xytext=(4, 0), textcoords="offset points", fontsize=7, va="center", bbox=paper
            )
    panel.set_xticks(range(len(names)), names, fontsize=7)
    panel.set_yticks([])
    panel.set_xlim(-0.1, len(names) - 0.5)
    panel.set_title(f"{len(errors)} trials, the best in bold", fontsize=9)
    return _saved(figure, path)


def importances(values: Mapping[str, tuple[float, float]], title: str, path: Path) -> list[Path]:
    """Draws how much each of several things matters.

    Args:
        values: mean and standard deviation by name.
        title: of the figure.
        path: of the files, without suffix.

    Returns:
        The paths of the PNG and the SVG file.
    """
    from matplotlib.figure import Figure

    names = sorted(values, key=lambda name: values[name][0])
    figure = Figure(figsize=(6.0, 1.2 + 0.4 * len(names)), layout="constrained")
    panel = figure.subplots()
    panel.barh(names, [values[n][0] for n in names], xerr=[values[n][1] for n in names], color="0.5")
    panel.set_xlabel("permutation importance, points of validation error", fontsize=8)
    panel.tick_params(labelsize=7)
    panel.set_title(title, fontsize=9)
    return _saved(figure, path)


def frontier(
    costs: Mapping[str, Mapping[str, Sequence[tuple[float, float, float, float]]]],
    fronts: Mapping[str, Sequence[tuple[float, float]]],
    limits: Mapping[str, float],
    worst: float,
    path: Path,
) -> list[Path]:
    """Draws the errors of students against what they cost, a panel for each cost.

    Args:
        costs: for each cost and each method (cost, median error, lowest, highest) of its students, errors as fractions.
        fronts: for each cost the (cost, error) that nothing undercuts.
        limits: the most that a cost may be, where there is such.
        worst: the most that the error may be.
        path: of the files, without suffix.

    Returns:
        The paths of the PNG and the SVG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PANEL_INCHES * 1.2 * len(costs), PANEL_INCHES * 1.2), layout="constrained")
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for panel, (cost, methods) in zip(panels, costs.items(), strict=True):
        for method, students in methods.items():
            x, median, low, high = np.array(sorted(students)).T
            ranges = 100 * np.array([median - low, high - median])
            panel.errorbar(x, 100 * median, ranges, marker="o", markersize=4, capsize=2, linewidth=0.8, label=method)
        front = np.array(sorted(fronts[cost]))
        panel.step(front[:, 0], 100 * front[:, 1], where="post", color="0.4", linestyle="--", label="Pareto set")
        panel.axhline(100 * worst, color="tab:red", linewidth=0.8, linestyle=":", label="constraint")
        if cost in limits:
            panel.axvline(limits[cost], color="tab:red", linewidth=0.8, linestyle=":")
        panel.set_xscale("log")
        panel.set_xlabel(cost, fontsize=8)
        panel.tick_params(labelsize=7, which="both")
    panels[0].set_ylabel("validation error, %", fontsize=8)
    panels[0].legend(fontsize=7)
    return _saved(figure, path)


def draw_images(pixels: np.ndarray, titles: Sequence[str], path: Path) -> None:
    """Draws images in rows of eight, each under its title, as a PNG file.

    Args:
        pixels: shape (n, height, width, 1 or 3), uint8; of more channels the first three are drawn.
        titles: one for each image.
        path: of the file, in a folder that exists.
    """
    from matplotlib.figure import Figure

    rows = -(-len(pixels) // CONTACT_COLUMNS)
    figure = Figure(figsize=(1.2 * CONTACT_COLUMNS, 1.4 * rows), layout="constrained")
    panels = figure.subplots(rows, CONTACT_COLUMNS, squeeze=False).flatten()
    for panel in panels:
        panel.set_axis_off()
    for panel, image, title in zip(panels, pixels, titles, strict=False):
        picture = image[..., :3] if image.shape[-1] >= 3 else image[..., 0]
        panel.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        panel.set_title(title, fontsize=7)
    figure.savefig(path, dpi=120, format="png")


def _saved(figure: Any, path: Path) -> list[Path]:
    """Writes a figure as PNG and as SVG."""
    import matplotlib

    paths = [path.with_name(path.name + suffix) for suffix in (".png", ".svg")]
    # A fixed salt and no date, so that the same figure gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "spkd_keras"}):
        figure.savefig(paths[0], dpi=120)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths
