"""The commands that run experiments and report on them."""

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from spkd_keras.cli.app import app
from spkd_keras.cli.console import answers, clear_errors, keras_prints_to_stderr, starting_tensorflow
from spkd_keras.cli.progress import ProgressObserver
from spkd_keras.experiment import ExperimentError, load_experiment

if TYPE_CHECKING:
    from spkd_keras.report import ExperimentResult


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="The experiment, a YAML file.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the runs; each goes to OUT/EXPERIMENT/METHOD-seedK.")] = Path(
        "runs"
    ),
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a value, for example methods.sp.terms.0.weight=100. Repeatable."
        ),
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Only these methods, for example sp,kd.")] = None,
    seeds: Annotated[str | None, typer.Option(help="These seeds instead, for example 0,1.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Run an experiment: train the teacher once, then every method with every seed, and report."""
    with clear_errors():
        experiment = load_experiment(file, overrides or ())
        experiment = experiment.select(
            None if methods is None else _items(methods), None if seeds is None else _integers(seeds)
        )
        with starting_tensorflow():
            from spkd_keras.training import run_experiment
        with ProgressObserver() as observer, keras_prints_to_stderr():
            root = run_experiment(experiment, out, observer)
        _report(root, root / "report", as_json)


@app.command()
def report(
    runs: Annotated[Path, typer.Argument(help="Folder with runs: runs, or runs/EXPERIMENT.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report. Default: RUNS/report.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Make tables and figures from the folders of runs."""
    with clear_errors():
        _report(runs, out or runs / "report", as_json)


def _report(runs: Path, out: Path, as_json: bool) -> None:
    from spkd_keras import report as reports

    results, written = reports.write_report(reports.read_runs(runs), out)
    if as_json:
        print(json.dumps(reports.as_json(results), indent=2))
        return
    for result in results:
        answers.print(_table(result))
        say = functools.partial(answers.print, markup=False, highlight=False, soft_wrap=True)
        for line in [*reports.verdicts(result), *reports.costs(result)]:
            say(f"  {line}")
        if result.unfinished:
            say(f"  Not finished: {', '.join(result.unfinished)}.")
        say(f"  Students: {result.folder}/<method>-seed<k>/student.keras")
    say(f"Written: {', '.join(map(str, written))}")


def _table(result: "ExperimentResult") -> Table:
    """Narrow enough for 80 columns: a range goes below its median."""
    from spkd_keras import report as reports

    table = Table(
        title=f"{escape(result.name)}: medians over the seeds, ranges in brackets", title_justify="left", box=box.SIMPLE
    )
    columns = reports.COLUMNS[: reports.COLUMNS.index("parameters")]
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    for method in result.methods:
        table.add_row(*(escape(cell.replace(" (", "\n(")) for cell in reports.cells(method)[: len(columns)]))
    return table


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _integers(text: str) -> list[int]:
    try:
        return [int(item) for item in _items(text)]
    except ValueError:
        raise ExperimentError(f"--seeds takes integers, for example 0,1,2. Received: {text}.") from None
