"""The command that computes what the teacher gives once and for all."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from spkd_keras.cli.app import app
from spkd_keras.cli.console import answers, clear_errors, keras_prints_to_stderr, say, starting_tensorflow
from spkd_keras.cli.options import File, Methods, Out, Overrides, read_experiment
from spkd_keras.cli.progress import ProgressObserver
from spkd_keras.experiment import load_experiment

if TYPE_CHECKING:
    from spkd_keras.cache import TeacherCache


@app.command()
def cache(
    file: File,
    out: Out = Path("runs"),
    overrides: Overrides = None,
    methods: Methods = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what is in the cache as JSON.")] = False,
) -> None:
    """Compute the teacher's activations once, so that `spkd run` trains the students without it.

    What is kept follows from the methods, and from `teacher.cache` in the experiment: `views` (augmented views of each
    image that take turns over the epochs; fixed views are another recipe than new ones in every epoch), `store`
    (float16, float32), `sketch` (size of a random projection, for similarity_preserving). `spkd run` trains from it
    where the experiment, or `--set teacher.cache={}`, asks for it. A teacher that has to be trained is trained first.
    """
    with clear_errors():
        overrides = list(overrides or ())
        teacher = load_experiment(file, overrides).teacher
        if teacher is not None and teacher.cache is None:
            overrides.append("teacher.cache={}")
        experiment = read_experiment(file, overrides, methods, None)
        with starting_tensorflow():
            from spkd_keras.training import cache_teacher
        with ProgressObserver() as observer, keras_prints_to_stderr():
            found = cache_teacher(experiment, out, observer)
        if as_json:
            print(json.dumps({"folder": str(found.folder), **dataclasses.asdict(found.manifest)}, indent=2))
        else:
            _show(found)


def _show(found: "TeacherCache") -> None:
    manifest = found.manifest
    say(f"{found.folder}: {manifest.images:,} images, {manifest.views} view(s) of each, {manifest.store}")
    mebibytes = manifest.entries * manifest.bytes_an_entry / 2**20
    say(f"  {manifest.bytes_an_entry:,} bytes a view, {mebibytes:,.1f} MiB in all")
    for tensor in manifest.tensors:
        shape = "x".join(map(str, tensor.shape))
        sketched = f", a random projection of {tensor.sketched_from} values" if tensor.sketched_from else ""
        say(f"  {tensor.name.removeprefix('/')}: {shape}{sketched}; {_bits(manifest.same_in_every_batch[tensor.name])}")
    for name, errors in manifest.sketches.items():
        table = Table(title=f"{escape(name.removeprefix('/'))} on one batch", title_justify="left", box=box.SIMPLE)
        for column in ("sketch", "bytes a view", "error of the similarity matrix"):
            table.add_column(column, justify="right")
        for error in errors:
            size = "none" if error == errors[-1] else str(error.size)
            table.add_row(size, f"{error.bytes_an_image:,}", f"{error.error:.2%}")
        answers.print(table)


def _bits(same: bool) -> str:
    return (
        "an image has the same bits in every batch"
        if same
        else "the last bits of an image depend on its batch, so a training is not the same bits as with the teacher"
    )
