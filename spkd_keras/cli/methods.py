"""The command that lists losses and published methods."""

import functools
import json
from typing import Annotated

import typer
from rich.padding import Padding

from spkd_keras.cli.app import app
from spkd_keras.cli.console import answers, clear_errors
from spkd_keras.experiment import loss_facts, preset_methods, presets
from spkd_keras.report import loss_in_words


@app.command()
def methods(as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False) -> None:
    """List the losses that a term can have, and the published methods that an experiment can name."""
    with clear_errors():
        if as_json:
            print(json.dumps({"losses": loss_facts(), "methods": presets()}, indent=2))
            return
        say = functools.partial(answers.print, markup=False, highlight=False)
        for name, facts in loss_facts().items():
            answers.print(f"[bold]{name}[/bold]  {facts['reference']}", highlight=False)
            say(Padding(facts["formula"], (0, 0, 0, 4)))
            line = f"published weight {facts['weight']}; {facts['across']}; cost a step {facts['cost']}"
            say(Padding(line, (0, 0, 0, 4)))
        say("\nb images, d embedding values, c channels, n positions, k classes, q projections.")
        say("\nPublished methods, by name in an experiment (methods: [student, kd, sp]):")
        for name, method in preset_methods().items():
            say(Padding(f"{name}: {loss_in_words(method)}", (0, 0, 0, 4)))
        say("\nTerms of your own: methods: {mine: [{loss: similarity_preserving, weight: 100.0, student: stage3}]}.")
