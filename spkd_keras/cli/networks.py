"""The command that shows networks."""

import functools
import inspect
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from spkd_keras.cli.app import app
from spkd_keras.cli.console import answers, clear_errors, keras_prints_to_stderr, say, starting_tensorflow
from spkd_keras.experiment import ExperimentError, Network, override, validated


@app.command()
def models(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A family, for example mobilenet; `keras_applications.<Name>`; a .keras file; or a run's folder. "
            "Default: list all.",
            show_default=False,
        ),
    ] = None,
    width: Annotated[float | None, typer.Option(help="Multiplier of the channels.", show_default=False)] = None,
    depth: Annotated[int | None, typer.Option(help="Number of layers.", show_default=False)] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes.", show_default=False)] = None,
    image: Annotated[
        str | None,
        typer.Option(metavar="HxWxC", help="Size of the images, for example 96x96x3.", show_default=False),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other argument, for example head=fixed. Repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """List the families of networks; or show one's parameters, multiply-adds and taps."""
    with clear_errors():
        arguments: dict[str, Any] = {
            "width": width,
            "depth": depth,
            "num_classes": classes,
            "image_shape": _shape(image),
        }
        arguments = {key: value for key, value in arguments.items() if value is not None}
        for assignment in overrides or ():
            override(arguments, assignment)
        if name is None and arguments:
            raise ExperimentError(f"Give the network's NAME with {', '.join(arguments)}, for example wide_resnet.")
        with starting_tensorflow():
            if name is None:
                _list(as_json)
            else:
                _show(name, arguments, as_json)


def _shape(text: str | None) -> list[int] | None:
    if text is None:
        return None
    sides = text.split("x")
    if len(sides) != 3 or not all(side.isdecimal() for side in sides):
        raise ExperimentError(f"--image takes HEIGHTxWIDTHxCHANNELS, for example 96x96x3. Received: {text}.")
    return [int(side) for side in sides]


def _show(name: str, arguments: dict[str, Any], as_json: bool) -> None:
    from spkd_keras.training import build, describe

    file = _file(name)
    network = validated(Network, {"path": str(file)} if file else {"model": name, **arguments}, name)
    if file and arguments:
        raise ExperimentError(f"{name} is a file and takes no arguments. Received: {', '.join(arguments)}.")
    with build.telling("network"), keras_prints_to_stderr():
        facts = describe(build.construct(network, "network"))
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    answers.print(
        f"{facts['name']}: images {_product(facts['image_shape'])}, {facts['num_classes']} classes\n"
        f"  parameters    {facts['parameters']:,} ({facts['trainable_parameters']:,} trainable)\n"
        f"  multiply-adds {facts['multiply_adds']:,} for an image\n"
        f"  float32 size  {facts['float32_bytes'] / 2**20:.2f} MiB",
        markup=False,
        highlight=False,
    )
    table = Table(box=box.SIMPLE)
    for column in ("tap", "shape", ""):
        table.add_column(column)
    for tap, shape in facts["taps"].items():
        table.add_row(escape(tap), _product(shape), "default of losses on activations" * (tap == facts["default_tap"]))
    answers.print(table)
    if facts["default_tap"] is None:
        say("Losses on activations have no default here: name one of these in the term, for teacher and student.")


def _file(name: str) -> Path | None:
    """Returns the file that is meant, of a run's folder its student's; None for a family's name."""
    from spkd_keras.models import BUILDERS

    path = Path(name)
    if name in BUILDERS or not (path.suffix == ".keras" or path.exists()):
        return None
    inside = path / "student.keras"
    return inside if inside.is_file() else path


def _product(shape: list[int]) -> str:
    return "x".join(map(str, shape))


def _list(as_json: bool) -> None:
    from spkd_keras.models import BUILDERS, applications
    from spkd_keras.training import describe

    families: dict[str, dict[str, Any]] = {}
    for name, builder in BUILDERS.items():
        parameters = inspect.signature(builder).parameters.values()
        families[name] = {
            "arguments": {parameter.name: parameter.default for parameter in parameters},
            "taps": list(describe(builder())["taps"]),
        }
    if as_json:
        print(json.dumps({"families": families, "keras_applications": applications()}, indent=2))
        return
    shared = set.intersection(*(set(family["arguments"]) for family in families.values()))
    table = Table(box=box.SIMPLE)
    for column in ("family", "arguments of its own", "taps"):
        table.add_column(column, overflow="fold")
    for name, family in families.items():
        own = [f"{key}={value}" for key, value in family["arguments"].items() if key not in shared]
        table.add_row(escape(name), escape(", ".join(own)), ", ".join(family["taps"]))
    answers.print(table)
    wrap = functools.partial(answers.print, markup=False, highlight=False)
    wrap(f"All take {', '.join(key for key in next(iter(families.values()))['arguments'] if key in shared)}.")
    wrap(f"Also, as keras_applications.<Name>, with preprocessing and a new classifier: {', '.join(applications())}.")
