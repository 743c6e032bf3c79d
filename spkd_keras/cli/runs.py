"""The commands that run experiments and report on them."""

import json
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from spkd_keras.cli.app import app
from spkd_keras.cli.console import (
    answers,
    clear_errors,
    keras_prints_to_stderr,
    notice,
    quiet_standard_error,
    say,
    starting_tensorflow,
)
from spkd_keras.cli.launcher import is_worker, start_workers
from spkd_keras.cli.options import File, Methods, Out, Overrides, Seeds, read_experiment
from spkd_keras.cli.progress import ProgressObserver
from spkd_keras.experiment import ExperimentError

if TYPE_CHECKING:
    from spkd_keras.report import ExperimentResult
    from spkd_keras.training import Devices


@app.command()
def run(
    file: File,
    out: Out = Path("runs"),
    overrides: Overrides = None,
    methods: Methods = None,
    seeds: Seeds = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side, each in a process of its own.")] = 1,
    check: Annotated[bool, typer.Option(help="Try new methods on two batches first, as `spkd check` does.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Run although the check says that it cannot work.")] = False,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="Share every batch between devices: mirrored (of this machine) or multiworker (of all processes that "
            "TF_CONFIG or SLURM names, each of which gives this command).",
            show_default=False,
        ),
    ] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="How many of this machine: GPUs, or logical ones on its processor.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Start so many processes on this machine, as --strategy multiworker has them."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Run an experiment: train the teacher once, then every method with every seed, and report.

    Ctrl-C or SIGTERM writes the state of the run and ends with exit code 130 or 143. Whatever ended it, the same
    command continues, and gives what an uninterrupted run would have given.
    """
    with clear_errors():
        experiment = read_experiment(file, overrides, methods, seeds)
        if workers is not None and not is_worker():
            raise typer.Exit(start_workers(workers, strategy))
        if devices is not None and strategy is None:
            raise ExperimentError("--devices needs --strategy, for example --strategy mirrored --devices 2.")
        with starting_tensorflow():
            from spkd_keras.training import RunsFailedError, run_experiment
        found = _find_devices(strategy, devices)
        failed = None
        with ProgressObserver() as observer, keras_prints_to_stderr():
            try:
                root = run_experiment(experiment, out, observer, jobs=jobs, check=check, force=force, devices=found)
            except RunsFailedError as error:
                failed, root = error, error.root
        if found.chief and (failed is None or any(root.glob("*/summary.json"))):
            _report(root, root / "report", as_json)
        if failed is not None:
            raise failed


def _find_devices(strategy: str | None, count: int | None) -> "Devices":
    """Finds the devices; says so first where it has to wait for other processes."""
    from spkd_keras.training import devices_for, processes_for

    with quiet_standard_error():
        processes = processes_for(strategy)
    waiting: AbstractContextManager[None] = nullcontext()
    if processes > 1:
        notice(f"Waiting for the {processes} processes that TF_CONFIG names. Ctrl-C ends this one.")
        waiting = _ending_at_once()
    with waiting, quiet_standard_error():
        return devices_for(strategy, count)


@contextmanager
def _ending_at_once() -> Iterator[None]:
    """Lets Ctrl-C end the process by the system's own hand: while TensorFlow 2.21 waits, Python sees no signal.

    No other thread helps, since the call keeps Python's lock. TensorFlow takes SIGTERM over itself meanwhile.
    """
    before = signal.getsignal(signal.SIGINT)
    if before != signal.SIG_IGN:  # as in the background of a script
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@app.command()
def report(
    runs: Annotated[Path, typer.Argument(help="Folder with runs: runs, or runs/EXPERIMENT.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report. Default: RUNS/report.", show_default=False)
    ] = None,
    html: Annotated[bool, typer.Option("--html", help="Write results.html too, a page with everything on it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Make tables and figures from the folders of runs.

    The page has learning curves, similarity matrices, curves over a term's weight, changes class by class and costs,
    in one file that loads nothing else. Experiments named NAME-fold1, NAME-fold2, ... on the folds of one data set are
    taken together too.
    """
    with clear_errors():
        _report(runs, out or runs / "report", as_json, html)


def _report(runs: Path, out: Path, as_json: bool, html: bool = False) -> None:
    from spkd_keras import report as reports

    found, trials = reports.read_runs(runs), reports.read_trials(runs)
    results, written = reports.write_report(found, out, trials)
    if html:
        from spkd_keras.page import write_page

        written.append(write_page(found, out, trials))
    if as_json:
        print(json.dumps(reports.as_json(results), indent=2))
        return
    for result in results:
        answers.print(_table(result))
        pooled = [reports.medians(result)] if result.unit == "folds" else []
        for line in [*reports.settings(result), *pooled, *reports.remarks(result), *reports.costs(result)]:
            say(f"  {line}")
        if result.unfinished:
            say(f"  Not finished: {', '.join(result.unfinished)}.")
        if any((run.folder / "student.keras").exists() for run in result.runs):
            say(f"  Students: {result.folder}/{'*/' if result.unit == 'folds' else ''}<method>-seed<k>/student.keras")
    say(f"Written: {', '.join(map(str, written))}")


def _table(result: "ExperimentResult") -> Table:
    """Narrow enough for 80 columns: a range goes below its median."""
    from spkd_keras import report as reports

    title = f"{escape(result.title)}: medians over the {result.unit}, ranges in brackets"
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    columns = reports.columns_of(result)[: reports.COLUMNS.index("parameters")]
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    for method in result.methods:
        table.add_row(*(escape(cell.replace(" (", "\n(")) for cell in reports.cells(method)[: len(columns)]))
    return table
