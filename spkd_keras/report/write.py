"""Writing `RESULTS.md` and its figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spkd_keras.experiment import BASELINE, TEACHER, ExperimentError
from spkd_keras.report.results import ExperimentResult, sign_test, summarise
from spkd_keras.report.wording import remarks, table
from spkd_keras.run_files import Run, read_similarities


def markdown(results: Sequence[ExperimentResult], figures: Mapping[Path, str] | None = None) -> str:
    """Returns the results as a Markdown page.

    Args:
        results: of `summarise`.
        figures: file name of the similarity figure for each experiment's folder.
    """
    parts = ["# Results\n"]
    for result in results:
        parts.append(f"## {result.name}\n")
        parts.append(f"Medians over the {result.unit}, ranges in brackets.\n")
        columns, rows = table(result)
        parts.append("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n")
        parts.extend(f"- {line}" for line in remarks(result))
        if result.unfinished:
            parts.append(f"- Not finished: {', '.join(result.unfinished)}.")
        if figures and result.folder in figures:
            parts.append(f"\n![Similarity matrices of {result.name}]({figures[result.folder]})")
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
    figures: dict[Path, str] = {}
    names = [result.name for result in results]
    try:
        out.mkdir(parents=True, exist_ok=True)
        written = [out / "RESULTS.md"]
        for index, result in enumerate(results):
            # Experiments in two folders may have one name.
            stem = result.name if names.count(result.name) == 1 else f"{result.name}-{index + 1}"
            own = [run for run in runs if (run.experiment, run.folder.parent) == (result.name, result.folder)]
            figure = _draw_similarities(result, own, out / f"{stem}-similarity")
            if figure:
                figures[result.folder] = figure[0].name
                written.extend(figure)
        written[0].write_text(markdown(results, figures), encoding="utf-8")
    except OSError as error:
        raise ExperimentError(
            f"The report cannot be written to {out} ({error.strerror}). Choose another with --out."
        ) from error
    return results, written


def _draw_similarities(result: ExperimentResult, runs: Sequence[Run], path: Path) -> list[Path]:
    """Draws the teacher and every method with the first seed."""
    from spkd_keras import plots

    order = [method.method for method in result.methods if method.method != TEACHER]
    seeds = sorted(run.seed for run in runs if run.summary and run.method in order)
    if not seeds:
        return []
    matrices: dict[str, Any] = {}
    for method in order:
        for run in runs:
            file = run.folder / "similarity.npz"
            if (run.method, run.seed) == (method, seeds[0]) and file.exists():
                arrays = read_similarities(file)
                labels = arrays["labels"]
                if "teacher" in arrays:
                    matrices.setdefault("teacher", arrays["teacher"])
                matrices["student alone" if method == BASELINE else method] = arrays["student"]
    if not matrices:
        return []
    matrices = {name: matrices[name] for name in sorted(matrices, key=lambda name: name != "teacher")}
    return plots.similarity_matrices(matrices, labels, path)
