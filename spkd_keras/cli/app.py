"""The application that the commands belong to."""

from typing import Annotated

import typer

import spkd_keras
from spkd_keras.cli import console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"spkd_keras {spkd_keras.__version__}")
        raise typer.Exit(console.DONE)


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

    Exit codes: 0 done, 1 failed, 2 wrong use, 130 or 143 interrupted by Ctrl-C or SIGTERM.
    """
    console.show_tracebacks = tracebacks
