"""The files of runs: finding them, and reading what is in them. Imports no TensorFlow."""

import csv
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spkd_keras.experiment import Experiment, ExperimentError, damaged, load_experiment, read_record, walk

# What a report reads of a summary. There is no best epoch where nothing was held out.
READ_KEYS = {
    "test_error": int | float,
    "test_error_best": int | float | None,
    "parameters": int | float,
    "multiply_adds": int | float,
}
WITHOUT = "Delete it: a report goes without it."
SEARCHED = "-search"  # ends the name of a search's folder
CONFIRMATION = "confirmation"  # its folder of runs
FOLD = re.compile(r"(?P<stem>.+?)[/_.-]fold(?P<fold>\d+)")


class Run(NamedTuple):
    """A run's folder and what is in its summary; None where the run is not finished.

    `experiment` is the experiment's name, and `spec` the experiment with this run's method and seed alone.
    """

    folder: Path
    experiment: str
    method: str
    seed: int
    summary: dict[str, Any] | None
    spec: Experiment


def read_runs(folder: str | Path) -> list[Run]:
    """Finds the runs in a folder: a run's own, an experiment's, or one with several experiments.

    Raises:
        ExperimentError: if there are none, a folder cannot be read, or a file in them is damaged.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ExperimentError(f"{folder} is a file. Give the folder that `spkd run` wrote, runs/<name>.")
    if not folder.is_dir():
        raise ExperimentError(
            f"The folder does not exist: {folder}. Give the folder that `spkd run` wrote, runs/<name>."
        )
    runs = []
    for file in _files(folder, "experiment.yaml"):
        experiment = load_experiment(file)
        method, seed = next(iter(experiment.methods)), experiment.seeds[0]
        # What a search confirmed, it tells itself; else an experiment that the user keeps here.
        if file.parent.name == f"{method}-seed{seed}" and not _is_searched(file, folder):
            summary = _read_summary(file.with_name("summary.json"))
            runs.append(Run(file.parent, experiment.name, method, seed, summary, experiment))
    if not runs:
        raise ExperimentError(f"There are no runs in {folder}. Give the folder that `spkd run` wrote, runs/<name>.")
    return runs


def _is_searched(file: Path, folder: Path) -> bool:
    """Whether a file in the folder is in a part of it in which a search keeps its own runs."""
    places = file.parents[: len(file.relative_to(folder).parts) - 1]
    return any(place.name == CONFIRMATION and place.parent.name.endswith(SEARCHED) for place in places)


def read_trials(folder: str | Path) -> list[Run]:
    """Finds the trials of searches in a folder, those that trained to their end; their summaries have no test error.

    Raises:
        ExperimentError: if a folder cannot be read, or a file in them is damaged.
    """
    trials = []
    for file in _files(Path(folder), "outcome.json"):
        if not file.parent.name.startswith("trial_"):
            continue
        experiment = load_experiment(file.with_name("experiment.yaml"))
        method, seed = next(iter(experiment.methods)), experiment.seeds[0]
        outcome = read_record(file, WITHOUT)
        # One that failed has no error, and what Hyperband ended early is not of the whole schedule.
        if outcome is None or outcome.get("epochs") != experiment.schedule.epochs:
            continue
        try:
            outcome["validation_error"] = float(outcome["validation_error"])
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(file, repr(error), WITHOUT) from error
        trials.append(Run(file.parent, experiment.name, method, seed, outcome, experiment))
    return trials


def _files(folder: Path, name: str) -> list[Path]:
    """Finds the files of a name in and under a folder."""

    def refuse(error: OSError) -> None:
        if isinstance(error, FileNotFoundError):  # by another process, since its name was read
            return
        raise ExperimentError(
            f"{error.filename} cannot be read ({error.strerror}), and there may be runs in it. Make it readable, or "
            "give a folder without it."
        ) from error

    return sorted(root / name for root, files in walk(folder, refuse) if name in files)


def _read_summary(file: Path) -> dict[str, Any] | None:
    summary = read_record(file)
    if summary is None:
        return None
    for key, kind in READ_KEYS.items():
        if key not in summary:
            raise damaged(file, f"it has no {key}")
        if not isinstance(summary[key], kind) or not math.isfinite(summary[key] or 0):
            raise damaged(file, f"{key} is {summary[key]!r}")
    return summary


def read_history(run: Run) -> list[dict[str, float]]:
    """Returns what was measured after each epoch; nothing where the history is not kept.

    Raises:
        ExperimentError: if the file is damaged.
    """
    file = run.folder / "history.csv"
    if not file.exists():
        return []
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(lines)]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise damaged(file, repr(error), WITHOUT) from error


def read_similarities(file: Path) -> dict[str, Any]:
    """Returns the arrays `labels`, `student` and, of a run with a teacher, `teacher`.

    Raises:
        ExperimentError: if the file is damaged.
    """
    import numpy as np

    try:
        with file.open("rb") as content, np.load(content) as archive:
            arrays = dict(archive)
        arrays["labels"], arrays["student"]
    except Exception as error:  # whatever a damaged archive makes zipfile and NumPy raise
        cure = "Delete it and the summary.json beside it, and `spkd run` writes it again."
        raise damaged(file, repr(error), cure) from error
    return arrays


def folds(runs: Sequence[Run]) -> Iterator[tuple[str, Path, list[Run]]]:
    """Finds experiments that are folds of one: `<name>-fold<k>` on `<data>/fold<k>`, and otherwise the same.

    Only whole ones are taken together: each with the same methods, settings and one seed, all finished.

    Yields:
        The name without the fold, the folder of the folds' folders, and their runs, the fold in place of the seed.
    """
    groups: dict[tuple[str, Path, str], dict[int, list[Run]]] = {}
    for name, root in dict.fromkeys((run.experiment, run.folder.parent) for run in runs):
        own = [run for run in runs if (run.experiment, run.folder.parent) == (name, root)]
        named, data = FOLD.fullmatch(name), FOLD.fullmatch(own[0].spec.data.name)
        single = len({run.method for run in own}) == len(own)
        if named and data and named["fold"] == data["fold"] and single and all(run.summary for run in own):
            key = (named["stem"], root.parent, "\n".join(sorted(map(_without_fold, own))))
            groups.setdefault(key, {})[int(named["fold"])] = own
    for (stem, root, _), found in groups.items():
        if len(found) > 1:
            yield stem, root, [run._replace(seed=fold) for fold, own in sorted(found.items()) for run in own]


def _without_fold(run: Run) -> str:
    plain = run.spec.model_dump(mode="json", exclude={"name", "seeds", "checkpoints", "published"})
    plain["data"]["name"] = FOLD.sub(r"\g<stem>", run.spec.data.name)
    return json.dumps(plain, sort_keys=True)
