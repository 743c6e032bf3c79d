"""The command that compares students of many sizes."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from spkd_keras.cli.app import app
from spkd_keras.cli.console import (
    answers,
    clear_errors,
    keras_prints_to_stderr,
    quiet_standard_error,
    say,
    starting_tensorflow,
)
from spkd_keras.cli.options import File, Methods, Out, Overrides, Seeds, integers, items
from spkd_keras.cli.progress import ProgressObserver
from spkd_keras.experiment import BASELINE, ExperimentError, load_students, unknown
from spkd_keras.export.formats import FORMATS
from spkd_keras.frontier import COSTS, Candidate, Constraints, Decision, decide, pareto
from spkd_keras.frontier.decision import as_plain, percent_range, read_latency, read_size

if TYPE_CHECKING:
    from spkd_keras.frontier.students import Students

LETTERS = dict(zip(COSTS, ("p", "m", "b", "t"), strict=True))


@app.command()
def frontier(
    file: File,
    drop: Annotated[float, typer.Option(min=0, help="Points of error that a student may be above its teacher.")] = 1.0,
    size: Annotated[
        str | None, typer.Option(help="The most that the exported model may have: 2MB.", show_default=False)
    ] = None,
    latency: Annotated[
        str | None, typer.Option(help="The most that it may take for one image here: 5ms.", show_default=False)
    ] = None,
    format: Annotated[str, typer.Option(help="Of the exports: litert, onnx or saved_model.")] = "litert",  # noqa: A002
    out: Out = Path("runs"),
    overrides: Overrides = None,
    methods: Methods = None,
    seeds: Seeds = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs of a student side by side.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Find the smallest student that is good enough: train many under one budget, export them and measure them.

    The student's width, depth or all of it vary in the file: `student: {width: {choice: [0.25, 0.5, 1]}}`. Each is run
    with each method and seed. Held-out images decide; the test images have no part in it. What is finished is not
    repeated. What was measured is in `frontier` in each run's folder; `spkd export` makes the model to deliver.
    """
    with clear_errors():
        if format not in FORMATS:
            raise ExperimentError(f"--format: {unknown('format', format, FORMATS)}")
        constraints = Constraints(
            drop, None if size is None else read_size(size), None if latency is None else read_latency(latency)
        )
        chosen = None if methods is None else items(methods)
        experiment, specs = load_students(file, overrides or (), chosen, None if seeds is None else integers(seeds))
        with starting_tensorflow():
            from spkd_keras.frontier.students import train_students
            from spkd_keras.training import RunsFailedError
        with ProgressObserver() as observer, keras_prints_to_stderr():
            students = train_students(
                experiment, specs, out, observer, format=format, jobs=jobs, quiet=quiet_standard_error
            )
        decision = decide(students.candidates, students.teacher_error, constraints, students.lost)
        _show(students, decision, constraints, as_json)
        if students.failures:
            raise RunsFailedError(students.folder, students.failures)


def _show(students: "Students", decision: Decision, constraints: Constraints, as_json: bool) -> None:
    """Writes the answer, prints it, and draws it."""
    from spkd_keras.storage import write_json

    fronts = {cost: pareto(students.candidates, cost) for cost in COSTS}
    answer: dict[str, Any] = {
        "folder": str(students.folder),
        "teacher_error": students.teacher_error,
        "constraints": constraints._asdict(),
        "students": [as_plain(candidate) for candidate in students.candidates],
        "pareto": {cost: [[one.student, one.method] for one in front] for cost, front in fronts.items()},
        "met": decision.met,
        "chosen": decision.chosen and [decision.chosen.student, decision.chosen.method],
        "answer": decision.sentences,
        "failures": students.failures,
    }
    figures = _draw(students, fronts, constraints)
    write_json(students.folder / "frontier.json", answer)
    if as_json:
        print(json.dumps(answer, indent=2))
        return
    answers.print(_table(students, fronts))
    say(
        "Errors are on held-out images. On the front, which no other undercuts: p parameters, m multiply-adds, "
        "b bytes, t time."
    )
    for line in decision.sentences:
        say(line)
    say(f"Written: {', '.join(map(str, [students.folder / 'frontier.json', *figures]))}")


def _table(students: "Students", fronts: dict[str, list[Candidate]]) -> Table:
    table = Table(
        title=f"{escape(students.folder.name)}: medians over the seeds, ranges in brackets; the teacher's validation "
        f"error is {100 * students.teacher_error:.2f}%",
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 0),
    )
    columns = ("student", "method", "error, %", "against\nalone", "para-\nmeters", "multiply-\nadds")
    for index, column in enumerate((*columns, "bytes", "batch 1\nms", "front")):
        table.add_column(
            column, justify="right" if 1 < index < 8 else "left", overflow="fold", no_wrap=index not in (2, 3)
        )
    for one in students.candidates:
        letters = "".join(letter for cost, letter in LETTERS.items() if one in fronts[cost])
        times = one.latencies
        against = percent_range(one.differences) if one.differences else ""
        table.add_row(
            *map(escape, (one.student, "alone" if one.method == BASELINE else one.method)),
            *(text.replace("%", "").replace(" (", "\n(") for text in (percent_range(one.errors), against)),
            *(f"{count:,}" for count in (one.parameters, one.multiply_adds, one.size)),
            f"{one.latency:.3f}" + (f"\n({min(times):.3f} to\n{max(times):.3f})" if len(set(times)) > 1 else ""),
            letters,
        )
    return table


def _draw(students: "Students", fronts: dict[str, list[Candidate]], constraints: Constraints) -> list[Path]:
    from spkd_keras import plots

    if not students.candidates:
        return []
    methods = dict.fromkeys(candidate.method for candidate in students.candidates)
    drawn = {
        cost: {
            method: [
                (of(one), one.error, min(one.errors), max(one.errors))
                for one in students.candidates
                if one.method == method
            ]
            for method in methods
        }
        for cost, of in COSTS.items()
    }
    lines = {cost: [(COSTS[cost](one), one.error) for one in front] for cost, front in fronts.items()}
    worst = constraints.worst_error(students.teacher_error)
    return plots.frontier(drawn, lines, constraints.limits(), worst, students.folder / "frontier")
