"""The commands that prepare data sets and show them."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from spkd_keras.cli.app import app
from spkd_keras.cli.console import answers, clear_errors, keras_prints_to_stderr, notice, say, starting_tensorflow
from spkd_keras.experiment import Data, ExperimentError, override, validated

SHOWN_IMAGES = 32
data_app = typer.Typer(no_args_is_help=True, help="Prepare data sets, and look at them.")
app.add_typer(data_app, name="data")

Name = Annotated[
    str,
    typer.Argument(help="digits, image_folder, or a name of TFDS, such as cifar10 or dtd/fold3.", show_default=False),
]


@data_app.command()
def prepare(
    name: Annotated[
        str,
        typer.Argument(help="cinic10, or a name of TFDS, such as cifar10 or dtd/fold3.", show_default=False),
    ],
    manual_dir: Annotated[
        Path | None,
        typer.Option(help="Folder with the set's archives, instead of a download.", show_default=False),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Where to write. Default: TFDS_DATA_DIR, else ~/tensorflow_datasets.", show_default=False),
    ] = None,
) -> None:
    """Download a data set of TFDS, or take its archives from a folder, and prepare it for training."""
    with clear_errors():
        with starting_tensorflow():
            from spkd_keras.data.prepare import prepare as prepare_set
            from spkd_keras.training.build import telling
        with telling("data"), keras_prints_to_stderr():
            builder = prepare_set(name, data_dir, manual_dir, notice)
        splits = ", ".join(f"{split} {info.num_examples:,}" for split, info in builder.info.splits.items())
        say(f"{name} is in {builder.data_dir}: {splits} images")


@data_app.command()
def show(
    name: Name,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A field of an experiment's data: augmentation=cifar. Repeatable."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to draw the images. Default: NAME.png here.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Show a data set's parts and classes, and draw some training images, augmented as they are trained on."""
    with clear_errors():
        plain: dict[str, Any] = {"name": name}
        for assignment in overrides or ():
            override(plain, assignment)
        spec = validated(Data, {"batch_size": 2} | plain, "data")
        out = out or Path(f"{spec.name.replace('/', '-')}.png")
        with starting_tensorflow():
            facts = _drawn(spec, out)
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    table = Table(box=box.SIMPLE)
    for index, column in enumerate(("part", "images", "of a class", "from")):
        table.add_column(column, justify="right" if index in (1, 2) else "left")
    for part, values in facts["parts"].items():
        counts = values["of_class"].values()
        of_class = f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
        table.add_row(part, f"{values['images']:,}", of_class, escape(values["from"]))
    answers.print(table)
    shape = "x".join(map(str, facts["image_shape"]))
    told = f"Images {shape}. {len(facts['class_names'])} classes: {', '.join(facts['class_names'])}\nDrawn: {out}"
    answers.print(told, markup=False, highlight=False)


def _drawn(spec: Data, out: Path) -> dict[str, Any]:
    """Draws a batch of training images and returns what there is to say of the set."""
    import numpy as np

    from spkd_keras import data, plots
    from spkd_keras.storage import check_writable
    from spkd_keras.training import build

    if out.is_dir():
        raise ExperimentError(f"--out takes the PNG file to draw. Received: the folder {out}. Give {out / 'NAME.png'}.")
    check_writable(out.parent)
    splits = build.load_data(spec)
    count = min(SHOWN_IMAGES, len(splits.train))
    batches = data.training_batches(splits.train, count, 0, data.EpochClock(), build.augmentation(spec))
    pixels, labels = next(batches.as_numpy_iterator())
    names = splits.train.class_names
    labels = np.argmax(labels, axis=-1) if labels.ndim == 2 else labels  # of the largest share where they are mixed
    plots.draw_images(pixels, [names[label] for label in labels], out)
    parts = {}
    for part in ("train", "validation", "test"):
        images = getattr(splits, part)
        if images is not None:
            counts = np.bincount(images.labels, minlength=len(names)).tolist()
            of_class = dict(zip(names, counts, strict=True))
            parts[part] = {"images": len(images), "from": splits.origin[part], "of_class": of_class}
    return {
        "name": spec.name,
        "image_shape": list(splits.train.image_shape),
        "class_names": list(names),
        "parts": parts,
        "drawn": str(out),
    }
