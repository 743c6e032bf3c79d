"""The command that exports a run's student."""

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from spkd_keras.cli.app import app
from spkd_keras.cli.console import answers, clear_errors, notice, quiet_standard_error, say, starting_tensorflow
from spkd_keras.experiment import ExperimentError, unknown
from spkd_keras.export.formats import FORMATS, INPUT_DTYPES, QUANTIZATIONS, UNSPECIFIED, file_name

if TYPE_CHECKING:
    from spkd_keras.export.run import FinishedRun

CALIBRATION_IMAGES = 256
LATENCY_IMAGES = 32


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A finished run's folder, runs/NAME/METHOD-seedK.", show_default=False)],
    formats: Annotated[str, typer.Option("--format", help="Of saved_model, litert and onnx, separated by commas.")],
    quantize: Annotated[
        str | None,
        typer.Option(help="float16 or int8, for LiteRT and ONNX. Default: float32.", show_default=False),
    ] = None,
    check: Annotated[int, typer.Option(min=1, help="Test images on which each export is compared.")] = 1000,
    max_drop: Annotated[
        float,
        typer.Option(
            min=0,
            help="Points of accuracy that it may lose on them: float16, int8, or float32 of a half-precision student.",
        ),
    ] = 2.0,
    input_dtype: Annotated[str, typer.Option("--input", help="Of the pixels: uint8 or float32.")] = "uint8",
    licence: Annotated[
        str | None,
        typer.Option(help="Of the weights, for the model card. Default: what the card has.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder. Default: RUN/export.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the model card as JSON.")] = False,
) -> None:
    """Export a student for inference, compare each file with it on test images, and write a model card."""
    with clear_errors():
        names = _formats(formats)
        if quantize is not None and quantize not in QUANTIZATIONS:
            raise ExperimentError(f"--quantize: {unknown('precision', quantize, QUANTIZATIONS)}")
        if quantize is not None and names == ["saved_model"]:
            raise ExperimentError("--quantize is for litert and onnx. A SavedModel is float32.")
        if input_dtype not in INPUT_DTYPES:
            raise ExperimentError(f"--input: {unknown('pixels', input_dtype, INPUT_DTYPES)}")
        with starting_tensorflow():
            from spkd_keras.export.run import FinishedRun
        finished = FinishedRun(run)
        out = out or run / "export"
        card = _exported(finished, names, quantize, check, max_drop / 100, input_dtype, licence, out)
        if as_json:
            print(json.dumps(card, indent=2))
            return
        answers.print(_table(card))
        written = card["exports"][-len(names) :]  # behind those of earlier commands
        say(f"Written to {out}: {', '.join(export['file'] for export in written)}, model_card.md, .json")


def _formats(text: str) -> list[str]:
    names = list(dict.fromkeys(item.strip() for item in text.split(",") if item.strip()))
    for name in names:
        if name not in FORMATS:
            raise ExperimentError(f"--format: {unknown('format', name, FORMATS)}")
    if not names:
        raise ExperimentError(f"--format takes one or more of {', '.join(FORMATS)}. Received: nothing.")
    return names


def _exported(
    finished: "FinishedRun",
    names: list[str],
    quantize: str | None,
    check: int,
    largest_drop: float,
    input_dtype: str,
    licence: str | None,
    out: Path,
) -> dict[str, Any]:
    """Exports, measures, and writes the card after each export, so that one that fails loses nothing of the others.

    The card forgets a file before it is replaced: after a kill it may say nothing of one, and never tells of another.
    """
    from spkd_keras.export import Exporter, load_runner
    from spkd_keras.export.card import earlier_licence, forget, write_card
    from spkd_keras.export.latency import measure
    from spkd_keras.export.run import resize_of, some
    from spkd_keras.models import fingerprint
    from spkd_keras.storage import check_writable
    from spkd_keras.training.build import telling

    check_writable(out)
    student, splits = finished.student(), finished.splits()
    pixels, labels = some(splits.test, check)
    calibration = some(splits.train, CALIBRATION_IMAGES)[0] if quantize == "int8" else None
    story, float32_bytes = finished.story(), 4 * student.count_params()
    card: dict[str, Any] = {}
    with telling("export"):
        exporter = Exporter(
            student,
            splits.test.class_names,
            input_dtype=input_dtype,
            resize=resize_of(splits.test),
            licence=licence or earlier_licence(out, fingerprint(student)) or UNSPECIFIED,
        )
        reference = exporter.reference(pixels, labels, f"test images of {finished.experiment.data.name}")
        for name in names:
            precision = None if name == "saved_model" else quantize
            if precision != quantize:
                notice("saved_model: float32, for there is no SavedModel in less precision")
            path = out / file_name(name, precision)
            notice(f"Exporting {path}")
            accepted = functools.partial(forget, out, path.name)
            with quiet_standard_error():  # what the converters print for their developers, from C++
                export = exporter.write(path, name, reference, precision, calibration, largest_drop, accepted)
                latency = measure(load_runner(path), pixels[:LATENCY_IMAGES])
            told = {**export.as_dict(), "latency": latency}
            card = write_card(out, story, exporter.metadata, told, float32_bytes)
    return card


def _table(card: dict[str, Any]) -> Table:
    """Narrow enough for 80 columns."""
    from spkd_keras.export.card import percent

    table = Table(title=escape(card["name"]), title_justify="left", box=box.SIMPLE)
    columns = ("file", "bytes", "logits\ndiffer", "right\n%", "batch 1\nms", "batch 32\nms")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for export in card["exports"]:
        check, times = export["check"], export["latency"]["batches"]
        table.add_row(
            escape(export["file"]),
            f"{export['bytes']:,}",
            f"{check['largest_difference']:.1e}",
            percent(check["export_accuracy"]),
            f"{times['1']['median_ms']:.2f}",
            f"{times['32']['median_ms']:.2f}",
        )
    return table
