"""The command that tries an experiment before it is run."""

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from spkd_keras.cli.app import app
from spkd_keras.cli.console import (
    WRONG_USE,
    answers,
    clear_errors,
    keras_prints_to_stderr,
    notices,
    say,
    starting_tensorflow,
)
from spkd_keras.cli.options import File, Methods, Out, Overrides, Seeds, read_experiment
from spkd_keras.cli.progress import duration
from spkd_keras.observer import Observer

if TYPE_CHECKING:
    from spkd_keras.training import Check


class _Status(Observer):
    """Says on one line what is being tried."""

    def __init__(self, status: Any) -> None:
        self.status = status

    def checking(self, what: str) -> None:
        self.status.update(f"Checking {what}")


@app.command()
def check(
    file: File,
    out: Out = Path("runs"),
    overrides: Overrides = None,
    methods: Methods = None,
    seeds: Seeds = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Try an experiment on two real batches: what is wrong with it, and what will it take?

    Nothing is trained or written. A teacher that `spkd run` trained under OUT is tried too. Exit code 2 if something
    was found that cannot work.
    """
    with clear_errors():
        experiment = read_experiment(file, overrides, methods, seeds)
        with starting_tensorflow():
            from spkd_keras.training import check_experiment, trained_teacher
        with notices.status("Checking") as status, keras_prints_to_stderr():
            teacher = trained_teacher(experiment, out)
            result = check_experiment(experiment, teacher=teacher, out=out, observer=_Status(status))
        if as_json:
            print(json.dumps(_plain(result), indent=2))
        else:
            _show(result, experiment.name)
        if any(finding.severity == "stop" for finding in result.findings):
            raise typer.Exit(WRONG_USE)


def _show(result: "Check", name: str) -> None:
    for finding in result.findings:
        style = {"stop": "bold red", "warning": "yellow"}.get(finding.severity, "")
        answers.print(f"{finding.severity}:", style=style, end=" ")
        say(str(finding))
    if not result.findings:
        say("Nothing wrong was found.")
    if result.teacher and result.teacher["accuracy"] is not None:
        facts = result.teacher
        say(
            f"Teacher: right on {facts['accuracy']:.1%} of {facts['images']} training images; gives {facts['outputs']}."
        )
    elif "teacher" in result.costs:
        say("Teacher: not trained yet. Its accuracy and the values of the terms are told when it is.")
    if result.parts:
        answers.print(_table(result))
    for method, terms in result.taps.items():
        for term, layers in terms.items():
            names = {role: ", ".join(places) for role, places in layers.items()}
            say(f"{method}: {term} compares the teacher's {names['teacher']} with the student's {names['student']}")
    for method, sent in result.gathered.items():
        if sent:
            say(f"{method}: several devices (`--strategy`) would send {sent / 1e6:.1f} MB of activations a step")
    for run, cost in result.costs.items():
        say(
            f"{run}: {1000 * cost.step_seconds:.0f} ms a step, {duration(cost.seconds)} a run, "
            f"{result.runs[run]} of them"
        )
    say(
        f"{name}: about {duration(result.seconds)} for all, {result.peak_memory / 2**30:.1f} GiB of memory, "
        f"{result.disk / 1e6:.1f} MB of disk"
    )


def _table(result: "Check") -> Table:
    table = Table(title="The loss on two batches, before training", title_justify="left", box=box.SIMPLE)
    for index, column in enumerate(("method", "part", "value", "weight", "share", "gradient norm", "pairs")):
        table.add_column(column, justify="right" if index > 1 else "left", no_wrap=column == "part")
    for method, rows in result.parts.items():
        for index, row in enumerate(rows):
            table.add_row(
                "" if index else method,
                row.name,
                f"{row.value:.3g}",
                f"{row.weight:g}",
                f"{row.share:.1%}",
                f"{row.gradient_norm:.3g}",
                f"{row.pairs:,}" if row.pairs else "",
            )
    return table


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """Has null for what is not finite, for which JSON has no word."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }


def _plain(result: "Check") -> dict[str, Any]:
    plain = dataclasses.asdict(result)
    plain["parts"] = {method: [_finite(row._asdict()) for row in rows] for method, rows in result.parts.items()}
    plain["costs"] = {run: cost._asdict() for run, cost in result.costs.items()}
    plain["findings"] = [finding._asdict() for finding in result.findings]
    return plain | {"seconds": result.seconds, "peak_memory": result.peak_memory, "disk": result.disk}
