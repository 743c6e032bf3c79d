"""Writing `RESULTS.md` and its figures."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spkd_keras.experiment import ExperimentError
from spkd_keras.report.results import ExperimentResult, sign_test, similarities, summarise
from spkd_keras.report.settings import settings
from spkd_keras.report.wording import EXPLANATION, errors_in_percent, medians, remarks, table
from spkd_keras.run_files import Run


def markdown(results: Sequence[ExperimentResult], figures: Sequence[Mapping[str, str]] = ()) -> str:
    """Returns the results as a Markdown page.

    Args:
        results: of `summarise`.
        figures: for each result what is to be seen, and the name of the file.
    """
    shown = figures or [{}] * len(results)
    parts = [f"# Results\n\n{EXPLANATION}\n"]
    for index, result in enumerate(results):
        parts.append(f"## {result.title}\n")
        parts.append(" ".join([*settings(result), medians(result)]) + "\n")
        columns, rows = table(result)
        parts.append("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n")
        parts.extend(f"- {line}" for line in remarks(result))
        if result.unfinished:
            parts.append(f"- Not finished: {', '.join(result.unfinished)}.")
        parts.extend(f"\n![{what} of {result.name}]({file})" for what, file in shown[index].items())
        parts.append("")
    return "\n".join(parts)


def as_json(results: Sequence[ExperimentResult]) -> list[dict[str, Any]]:
    """Returns the results as plain data."""
    return [
        {
            "experiment": result.name,
            "folder": str(result.folder),
            "methods": [
                {
                    **method._asdict(),
                    "published": method.published and method.published.model_dump(),
                    "sign_test": sign_test(method.differences) if method.differences else None,
                }
                for method in result.methods
            ],
            "comparisons": [{**one._asdict(), "sign_test": sign_test(one.differences)} for one in result.comparisons],
            "warnings": result.warnings,
            "unfinished": result.unfinished,
            "weights": [curve._asdict() for curve in result.weights],
            "unit": result.unit,
        }
        for result in results
    ]


def write_report(
    runs: Sequence[Run], out: Path, trials: Sequence[Run] = ()
) -> tuple[list[ExperimentResult], list[Path]]:
    """Writes `RESULTS.md` and the figures.

    Args:
        runs: of `read_runs`.
        out: folder, made if it does not exist.
        trials: of `read_trials`.

    Returns:
        The results, and the files that were written.

    Raises:
        ExperimentError: if the folder cannot be written to.
    """
    results = summarise(runs, trials)
    figures: list[dict[str, str]] = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        written = [out / "RESULTS.md"]
        for result, stem in zip(results, _stems([result.name for result in results]), strict=True):
            figures.append({})
            for shown, files in {
                "Test errors by seed": _draw_errors(result, out / f"{stem}-errors"),
                "Similarity matrices": _draw_similarities(result, out / f"{stem}-similarity"),
            }.items():
                if files:
                    figures[-1][shown] = files[0].name
                    written.extend(files)
        written[0].write_text(markdown(results, figures), encoding="utf-8")
    except OSError as error:
        raise ExperimentError(
            f"The report cannot be written to {out} ({error.strerror}). Choose another with --out."
        ) from error
    return results, written


def _stems(names: Sequence[str]) -> list[str]:
    """Returns a name for each result's files: its own, with a number where experiments in several folders have one."""
    stems: list[str] = []
    for name in names:
        numbered = (f"{name}-{number}" for number in itertools.count(1))
        free = (stem for stem in numbered if stem not in (*names, *stems))
        stems.append(name if names.count(name) == 1 else next(free))
    return stems


def _draw_errors(result: ExperimentResult, path: Path) -> list[Path]:
    """Draws the errors of every method, if there are some to compare."""
    from spkd_keras import plots

    errors = errors_in_percent(result)
    return plots.errors_by_seed(errors, "test error, %", path) if len(errors) > 1 else []


def _draw_similarities(result: ExperimentResult, path: Path) -> list[Path]:
    """Draws the teacher and every method with the first seed."""
    from spkd_keras import plots

    matrices, labels = similarities(result)
    return plots.similarity_matrices(matrices, labels, path) if matrices else []
