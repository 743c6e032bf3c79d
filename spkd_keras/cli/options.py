"""What the commands about experiments have in common."""

from pathlib import Path
from typing import Annotated

import typer

from spkd_keras.experiment import Experiment, ExperimentError, load_experiment

File = Annotated[Path, typer.Argument(help="The experiment, a YAML file.", show_default=False)]
Out = Annotated[Path, typer.Option(help="Folder for the runs; each goes to OUT/EXPERIMENT/METHOD-seedK.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a value, for example methods.sp.terms.0.weight=100. Repeatable."
    ),
]
Methods = Annotated[str | None, typer.Option(help="Only these methods, for example sp,kd.")]
Seeds = Annotated[str | None, typer.Option(help="These seeds instead, for example 0,1.")]


def read_experiment(file: Path, overrides: list[str] | None, methods: str | None, seeds: str | None) -> Experiment:
    """Reads an experiment with what the options change.

    Raises:
        ExperimentError: if the file or an option is not valid.
    """
    experiment = load_experiment(file, overrides or ())
    return experiment.select(None if methods is None else items(methods), None if seeds is None else integers(seeds))


def items(text: str) -> list[str]:
    """Returns what commas separate."""
    return [item.strip() for item in text.split(",") if item.strip()]


def integers(text: str) -> list[int]:
    """Returns the integers that commas separate.

    Raises:
        ExperimentError: if something else is among them.
    """
    try:
        return [int(item) for item in items(text)]
    except ValueError:
        raise ExperimentError(f"--seeds takes integers, for example 0,1,2. Received: {text}.") from None
