"""Figures."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

MOST_COLUMNS = 4
PANEL_INCHES = 3.0


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
    import matplotlib
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
    paths = [path.with_name(path.name + suffix) for suffix in (".png", ".svg")]
    # A fixed salt and no date, so that the same matrices give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "spkd_keras"}):
        figure.savefig(paths[0], dpi=120)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths
