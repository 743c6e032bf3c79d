"""Writing the page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spkd_keras import report
from spkd_keras.experiment import ExperimentError
from spkd_keras.page.contents import COST_COLUMNS, section
from spkd_keras.run_files import Run

LARGEST_PAGE = 3_000_000  # bytes


def write_page(runs: Sequence[Run], out: Path, trials: Sequence[Run] = ()) -> Path:
    """Writes `results.html`: tables, curves, similarity matrices and costs, with nothing to be loaded from elsewhere.

    Args:
        runs: of `report.read_runs`.
        out: folder, made if it does not exist.
        trials: of `report.read_trials`.

    Returns:
        The path of the page.

    Raises:
        ExperimentError: if a file of the runs is damaged, the folder cannot be written to, or there are too many runs
            for one page.
    """
    results = report.summarise(runs, trials)
    sections = [section(result, f"experiment-{index}") for index, result in enumerate(results)]
    path, page = out / "results.html", _fitting(sections)
    try:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ExperimentError(
            f"The report cannot be written to {out} ({error.strerror}). Choose another with --out."
        ) from error
    return path


def _fitting(sections: list[dict[str, Any]]) -> str:
    """Renders the page; leaves out similarity matrices, from the last experiment on, until it is small enough."""
    page = _render(sections)
    for one in reversed(sections):
        if len(page.encode()) < LARGEST_PAGE:
            return page
        one.update(similarities=[], left_out=bool(one["similarities"]))
        page = _render(sections)
    if len(page.encode()) < LARGEST_PAGE:
        return page
    raise ExperimentError(
        f"The page of these {len(sections)} experiments would have {len(page.encode()) / 1e6:.1f} MB, and must have "
        f"less than {LARGEST_PAGE / 1e6:g}. Report on fewer of them at a time."
    )


def _render(sections: Sequence[dict[str, Any]]) -> str:
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("spkd_keras.page", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return templates.get_template("template.html").render(
        sections=sections, cost_columns=COST_COLUMNS, explanation=report.EXPLANATION
    )
