"""What was run, in the words of the experiment's file: data, networks and the loss of each method."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spkd_keras.experiment import TEACHER
from spkd_keras.experiment.sections import Method, Section
from spkd_keras.report.results import ExperimentResult, teachers
from spkd_keras.run_files import FOLD, Run

PLAIN = "float32"
# What nobody looks for in a sentence, or is in it already.
LEFT_OUT: Any = {**dict.fromkeys(("name", "path", "model", "mean", "std", "loss", "weight"), True), "cache": {"path"}}


def settings(result: ExperimentResult) -> list[str]:
    """Returns sentences on what was run; where runs differ in it, each of what there is."""
    students = [run for run in result.runs if run.method != TEACHER]
    if not students:
        return []
    taught = [run for run in students if _has_terms(run)]
    told = [f"Data: {_each(_data(run, result.unit) for run in students)}{_each(map(_tested_classes, students))}."]
    networks = f"Networks: student {_each(_network(run.spec.student) for run in students)}"
    if taught:
        networks += f", teacher {_each(_network(run.spec.teacher) for run in taught)}"
        known = teachers(taught)
        networks += ", one for all" if len(known) == 1 and None not in known else ""
    precisions = _each(run.spec.precision for run in students)
    told.append(networks + (f", in {precisions}." if precisions != PLAIN else "."))
    losses = [
        f"{method.method}: {_each(loss_in_words(run.spec.methods[run.method]) for run in runs)}"
        for method in result.methods
        if (runs := [run for run in students if run.method == method.method and _has_terms(run)])
    ]
    if losses:
        told.append(f"Losses: {'; '.join(losses)}.")
    return told


def _each(texts: Iterable[str]) -> str:
    return " or ".join(dict.fromkeys(filter(None, texts)))


def _has_terms(run: Run) -> bool:
    return bool(run.spec.methods[run.method].terms)


def _data(run: Run, unit: str) -> str:
    spec = run.spec.data
    name = FOLD.sub(r"\g<stem>", spec.name) if unit == "folds" else spec.name
    return name + _arguments(spec, batch_size=spec.batch_size)


def _tested_classes(run: Run) -> str:
    """Says so where some classes have no test image, as in a part of a set; nothing of a run that has not ended."""
    errors = (run.summary or {}).get("test_error_by_class") or []
    tested = sum(error is not None for error in errors)
    return "" if tested == len(errors) else f" with test images of {tested} of its {len(errors)} classes"


def _network(spec: Any) -> str:
    return (spec.model or Path(spec.path).name) + _arguments(spec)


def loss_in_words(method: Method) -> str:
    """Says what a method minimises: "0.1 student_loss + 0.9 soft_targets (temperature 4)"."""
    labels = "student_loss" if method.student_loss_weight == 1 else f"{method.student_loss_weight:g} student_loss"
    terms = [f"{term.weight:g} {term.loss}{_arguments(term)}" for term in method.terms]
    return " + ".join([labels, *terms] if method.student_loss_weight else terms)


def _arguments(spec: Section, **always: Any) -> str:
    """Returns in brackets what a section says beyond the defaults, and what is always told."""
    plain = always | spec.model_dump(exclude_defaults=True, exclude=LEFT_OUT)
    return f" ({', '.join(map(_words, plain.items()))})" if plain else ""


def _words(item: tuple[Any, Any]) -> str:
    key, value = item
    if isinstance(value, dict):
        return " ".join([str(key), *map(_words, value.items())])
    if isinstance(value, list | tuple):
        value = "+".join(map(str, value))
    return f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
