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
