"""The command that searches what varies in an experiment."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from spkd_keras.cli.app import app
from spkd_keras.cli.console import answers, clear_errors, keras_prints_to_stderr, notice, say, starting_tensorflow
from spkd_keras.cli.options import File, Methods, Out, Overrides, Seeds, integers, items
from spkd_keras.cli.progress import ProgressObserver
from spkd_keras.experiment import check_objective, check_tuner, label, load_search, points

if TYPE_CHECKING:
    from spkd_keras.search import Search, SearchResult
    from spkd_keras.search.confirmation import Confirmation

SHOWN = 20  # trials in the table
TRIALS = "trials.json"

Importance = dict[str, tuple[float, float]] | None


@app.command()
def tune(
    file: File,
    trials: Annotated[int, typer.Option(min=1, help="Points to try at most; with more, a finished search goes on.")],
    tuner: Annotated[str, typer.Option(help="random, hyperband, bayesian or grid.")] = "random",
    objective: Annotated[str, typer.Option(help="val_accuracy or val_loss, on the held-out images.")] = "val_accuracy",
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that train side by side on this machine. 0: this one alone.")
    ] = 0,
    out: Out = Path("runs"),
    overrides: Overrides = None,
    methods: Methods = None,
    seeds: Seeds = None,
    confirm: Annotated[
        bool | None,
        typer.Option(
            "--confirm/--no-confirm",
            help="Run the given and the best point with every seed. Default: if there are several seeds.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Search what varies in an experiment, by its error on held-out images, and write the best as `best.yaml`.

    A field varies where the file has `{choice: [16, 22]}`, `{float: [1, 10000], log: true}` or `{int: [1, 4]}` in place
    of its value. The first trial is the given point: `default` in these, else the published value of a range, or the
    first of a choice.

    Whatever ended it, the same command continues. With KERASTUNER_TUNER_ID, KERASTUNER_ORACLE_IP and
    KERASTUNER_ORACLE_PORT set, the same command is the chief (an id with `chief` in it) or a worker of a search over
    machines that share the folder OUT.
    """
    with clear_errors():
        check_tuner(tuner)
        check_objective(objective)
        experiment, space = load_search(file, overrides or (), None if methods is None else items(methods))
        if seeds is not None:
            experiment = experiment.select(seeds=integers(seeds))
        with starting_tensorflow():
            from spkd_keras.search import Search, SearchFailedError
            from spkd_keras.training import RunsFailedError
        with ProgressObserver() as observer, keras_prints_to_stderr():
            search = Search(experiment, space, out, trials=trials, tuner=tuner, objective=objective, observer=observer)
            result = search.run(workers)
        if result is None:
            notice("This worker is done. The chief has the results.")
            return
        mattered = _show(search, result, as_json)
        if result.best is None:
            _conclude(search, result, mattered, None, as_json)
            raise SearchFailedError(f"All {len(result.trials)} trials failed. The first: {result.trials[0].reason}")
        wanted = len(experiment.seeds) > 1 if confirm is None else confirm
        confirmation = _confirmed(search, result) if wanted else None
        _conclude(search, result, mattered, confirmation, as_json)
        if confirmation is not None and confirmation.failures:
            raise RunsFailedError(result.folder, confirmation.failures)


def _confirmed(search: "Search", result: "SearchResult") -> "Confirmation | None":
    from spkd_keras.search.confirmation import confirm

    with ProgressObserver() as observer, keras_prints_to_stderr():
        return confirm(search.hypermodel, result.trials, search.experiment.seeds, search.folder, observer)


def _show(search: "Search", result: "SearchResult", as_json: bool) -> Importance:
    """Prints the trials, which stand whatever becomes of a confirmation, and returns what mattered in them."""
    from spkd_keras.search.importance import importance

    mattered = importance(result.trials, search.space)
    _write(search, result, mattered, None)
    if as_json:
        return mattered
    answers.print(_table(search, result))
    if len(result.trials) > SHOWN:
        say(f"The first {SHOWN} of {len(result.trials)} trials; --json has all.")
    if result.exhausted:
        say(result.exhausted)
    for trial in result.trials:
        if trial.reason is not None:
            say(f"{trial.name} ({points(trial.values)}) failed: {trial.reason}")
    return mattered


def _conclude(
    search: "Search",
    result: "SearchResult",
    mattered: Importance,
    confirmation: "Confirmation | None",
    as_json: bool,
) -> None:
    """Draws the trials, says what is best, and what was written."""
    from spkd_keras.search.importance import draw

    figures = draw(result.trials, search.space, mattered, result.folder)
    answer = _write(search, result, mattered, confirmation)
    if as_json:
        print(json.dumps(answer, indent=2))
        return
    for line in answer["verdict"]:
        say(line)
    written = [*([result.best] if result.best else []), result.folder / TRIALS, *figures]
    say(f"Written: {', '.join(map(str, written))}")


def _write(
    search: "Search", result: "SearchResult", mattered: Importance, confirmation: "Confirmation | None"
) -> dict[str, Any]:
    """Writes the results as JSON, and returns them."""
    from spkd_keras.search.confirmation import verdict
    from spkd_keras.storage import write_json

    answer: dict[str, Any] = {
        "folder": str(result.folder),
        "trials": [trial._asdict() for trial in result.trials],
        "importance": mattered,
        "best": None if result.best is None else str(result.best),
        "confirmation": None
        if confirmation is None
        else {**confirmation._asdict(), "differences": confirmation.differences},
        "verdict": verdict(search.space, search.hypermodel.seed, result.trials, confirmation),
    }
    write_json(result.folder / TRIALS, answer)
    return answer


def _table(search: "Search", result: "SearchResult") -> Table:
    """Narrow enough for 80 columns as long as few things vary."""
    from spkd_keras.search.importance import short_names

    names = short_names(search.space)
    table = Table(
        title=f"{escape(search.experiment.name)}: trials, errors on held-out images",
        title_justify="left",
        box=box.SIMPLE,
    )
    columns = ["trial", "error, %", "epochs", "para-\nmeters", *names.values()]
    for index, column in enumerate(columns):
        table.add_column(escape(column), justify="right" if index else "left", overflow="fold")
    for trial in result.trials[:SHOWN]:
        error = trial.status.lower() if trial.error is None else f"{100 * trial.error:.2f}"
        varied = [_cell(trial.values[name]) if name in trial.values else "" for name in names]
        counts = ["" if count is None else f"{count:,}" for count in (trial.epochs, trial.parameters)]
        table.add_row(trial.name.removeprefix("trial "), error, *counts, *map(escape, varied))
    return table


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else label(value)
