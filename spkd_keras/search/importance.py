"""How much each thing that varied mattered, and the figures of a search."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spkd_keras import plots
from spkd_keras.experiment import Space, label
from spkd_keras.search.results import TrialResult

FEWEST = 5  # trials, for a forest
ENOUGH = 10  # trials a dimension; with fewer it is a hint
REPEATS = 30


def short_names(space: Space) -> dict[str, str]:
    """Returns the last word of each dimension's path, or the whole path where that word is not enough."""
    last = [str(dimension.path[-1]) for dimension in space.dimensions]
    return {
        dimension.name: word if last.count(word) == 1 else dimension.name
        for dimension, word in zip(space.dimensions, last, strict=True)
    }


def importance(trials: Sequence[TrialResult], space: Space) -> dict[str, tuple[float, float]] | None:
    """Returns the permutation importance of each dimension for a random forest that predicts the validation error.

    It is by how much the forest's mean absolute error on its own trials grows when a dimension is shuffled, mean and
    standard deviation over the shuffles, in points. A dimension that a trial had no use for has its default there.

    Returns:
        By the dimensions' names; None if there are fewer than five completed trials, or only one thing varied.

    Reference: Breiman, Machine Learning 45, 2001, section 10.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    done = [trial for trial in trials if trial.error is not None]
    if len(done) < FEWEST or len(space.dimensions) < 2:
        return None
    places = np.array([[d.position(t.values.get(d.name, d.default)) for d in space.dimensions] for t in done])
    errors = 100 * np.array([trial.error for trial in done])
    forest = RandomForestRegressor(n_estimators=100, random_state=0).fit(places, errors)
    found = permutation_importance(
        forest, places, errors, scoring="neg_mean_absolute_error", n_repeats=REPEATS, random_state=0
    )
    return {
        dimension.name: (float(mean), float(deviation))
        for dimension, mean, deviation in zip(
            space.dimensions, found.importances_mean, found.importances_std, strict=True
        )
    }


def draw(
    trials: Sequence[TrialResult], space: Space, mattered: dict[str, tuple[float, float]] | None, folder: Path
) -> list[Path]:
    """Draws the trials, and what mattered by `importance`, into the folder of a search; returns the files."""
    done = [trial for trial in trials if trial.error is not None]
    if not done:
        return []
    names = short_names(space)
    axes = {names[d.name]: [(d.position(value), _mark(value)) for value in d.marks()] for d in space.dimensions}
    lines = [
        [d.position(trial.values[d.name]) if d.name in trial.values else None for d in space.dimensions]
        for trial in done
    ]
    errors = [trial.error for trial in done if trial.error is not None]
    written = plots.parallel_coordinates(axes, lines, errors, folder / "trials-parallel")
    if mattered is not None:
        hint = "" if len(done) >= ENOUGH * len(names) else ": few, so this is a hint"
        title = f"from {len(done)} trials{hint}"
        written += plots.importances(
            {names[name]: value for name, value in mattered.items()}, title, folder / "importance"
        )
    return written


def _mark(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else label(value)
