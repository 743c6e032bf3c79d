"""The command line `spkd`. Imports what is heavy inside the commands."""

import functools
import json
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import spkd_keras
from spkd_keras.experiment import ExperimentError, load_experiment
from spkd_keras.observer import Observer

if TYPE_CHECKING:
    from spkd_keras.report import ExperimentResult

DONE, FAILED, WRONG_USE = 0, 1, 2

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
answers = Console()
notices = Console(stderr=True)
show_tracebacks = False


def _version(wanted: bool) -> None:
    if wanted:
        print(f"spkd_keras {spkd_keras.__version__}")
        raise typer.Exit(DONE)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    tracebacks: Annotated[bool, typer.Option("--traceback", help="Show where in the code an error arose.")] = False,
) -> None:
    """Compress image classifiers by similarity-preserving knowledge distillation.

    A small network (student) learns from the labels and from a large one (teacher). An experiment is a YAML file
    that names the data, the two networks, and the methods to compare. Start with:

    `spkd run experiments/digits.yaml`

    It trains the teacher, then the student alone and with each method, from the same seeds, and ends with a table
    of test errors, a picture, and every student as a `.keras` file under `runs/digits`. A run that is interrupted
    continues when the same command is given again.

    Exit codes: 0 done, 1 failed, 2 wrong use.
    """
    global show_tracebacks
    show_tracebacks = tracebacks


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
    with _clear_errors():
        experiment = load_experiment(file, overrides or ())
        experiment = experiment.select(
            None if methods is None else _items(methods), None if seeds is None else _integers(seeds)
        )
        with notices.status("Starting TensorFlow"):
            _start_tensorflow()
            from spkd_keras.training import run_experiment
        with _ProgressObserver() as observer:
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
    with _clear_errors():
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


class _ProgressObserver(Observer):
    """Shows how far the runs are, on the terminal; a line for each finished run anywhere."""

    def __init__(self) -> None:
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=notices,
        )

    def __enter__(self) -> "_ProgressObserver":
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bars.tasks:  # else nothing was planned, and an error is alone on the screen
            self.bars.stop()

    def planned(self, runs: list[str], finished: list[str]) -> None:
        if finished:
            notices.print(f"Finished before: {', '.join(finished)}", highlight=False, markup=False)
        self.bars.start()
        self.total = self.bars.add_task("runs", total=len(runs), completed=len(finished), note="")

    def started(self, run: str, epochs: int) -> None:
        self.current = self.bars.add_task(run, total=epochs, note="preparing")

    def progressed(self, run: str, epochs_done: int, logs: dict[str, float]) -> None:
        accuracy = logs.get("val_accuracy", logs.get("accuracy"))
        note = (
            ""
            if accuracy is None
            else f"{'validation' if 'val_accuracy' in logs else 'training'} error {1 - accuracy:.1%}"
        )
        self.bars.update(self.current, completed=epochs_done, note=note)

    def completed(self, run: str, summary: dict[str, Any]) -> None:
        self.bars.remove_task(self.current)
        self.bars.advance(self.total)
        notices.print(
            f"{run}: test error {summary['test_error']:.2%}, "
            f"{summary['epochs']} epochs in {summary['wall_seconds']:.0f} s",
            highlight=False,
        )


def _start_tensorflow() -> None:
    """Imports TensorFlow without what it prints meanwhile, which is for its developers."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what TensorFlow's C++ code logs; its exceptions stay
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    with _quiet_standard_error():
        import tensorflow  # noqa: F401


@contextmanager
def _quiet_standard_error() -> Iterator[None]:
    """Holds back what is written to file descriptor 2, by C++ code too, and shows it only if there is an error."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Ends with one line and an exit code instead of a traceback."""
    try:
        yield
    except ExperimentError as error:
        _fail(str(error), WRONG_USE, error)
    except KeyboardInterrupt as error:
        _fail("Interrupted. The same command continues where it stopped.", FAILED, error)
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        _fail(f"{type(error).__name__}: {text} (`spkd --traceback ...` shows where)", FAILED, error)


def _fail(message: str, code: int, error: BaseException) -> None:
    if show_tracebacks:
        traceback.print_exception(error)
    for line in message.splitlines():
        print(f"spkd: {line}", file=sys.stderr)
    raise typer.Exit(code)


def main() -> None:
    """Runs the command line."""
    app(prog_name="spkd")


if __name__ == "__main__":
    main()
