"""Saying what is wrong with an experiment, in one line."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args, get_origin

import pydantic
from pydantic import BaseModel


class ExperimentError(ValueError):
    """Something is wrong with what the user gave: a file, a value, a folder. The message is one clear line."""


class ClearError(Exception):
    """Something failed that the user could not know before. The message is one clear line, for a user."""


def validated(kind: type[Any], plain: Mapping[str, Any], source: str) -> Any:
    """Returns `kind` made from plain data.

    Raises:
        ExperimentError: naming the place, what was expected, what was received, and the nearest valid key.
    """
    try:
        return kind.model_validate(plain)
    except pydantic.ValidationError as error:
        problems = [_problem(kind, problem) for problem in error.errors()]
        raise ExperimentError("\n".join(f"{source}: {problem}" for problem in dict.fromkeys(problems))) from None


def _problem(kind: type[BaseModel], problem: Any) -> str:
    place = list(problem["loc"])
    if place and place[-1] == "[key]":  # pydantic's mark for a key that is not valid
        place.pop()
    where = ".".join(map(str, place))
    if problem["type"] == "extra_forbidden":
        model = _model_at(kind, place[:-1]) or kind
        return unknown("key", str(place[-1]), model.model_fields, where=".".join(map(str, place[:-1])))
    if problem["type"] == "missing":
        return f"`{where}` is missing. It must be given."
    if problem["type"] == "value_error":
        return f"{f'`{where}` ' if where else ''}{str(problem['ctx']['error']).removesuffix('.')}."
    expected = problem["msg"][0].lower() + problem["msg"][1:]
    if problem["type"] in ("model_type", "dict_type"):
        expected = "must be a mapping (key: value)"
    if problem["type"] == "string_pattern_mismatch":  # the one pattern that there is, of names
        expected = "must be of letters, digits and _ . + -, and begin with a letter or a digit"
    numeric = problem["type"] in ("float_type", "int_type")
    hint = number_hint(problem["input"], problem["type"] == "int_type") if numeric else ""
    return f"`{where}`: {expected}. Received: {shown(problem['input'])}{hint}."


def number_hint(value: Any, whole: bool) -> str:
    """Returns how to write what looks like a number and is text for YAML: 1e-4, and 1.0e3 too; else nothing."""
    found = re.fullmatch(r"([+-]?\d+)(?:\.(\d*))?e([+-]?)(\d+)", str(value), re.IGNORECASE)
    if found is None or not isinstance(value, str) or (whole and not float(value).is_integer()):
        return ""
    digits, places, sign, exponent = found.groups()
    written = f"{float(value):.0f}" if whole else f"{digits}.{places or 0}e{sign or '+'}{exponent}"
    return "" if written == value else f" (YAML reads {value} as text; write {written})"


def _model_at(annotation: Any, place: Sequence[Any]) -> type[BaseModel] | None:
    """Returns the model that is meant at a place, looking through optional values, dictionaries and lists."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not place:
            return annotation
        field = annotation.model_fields.get(str(place[0]))
        return field and _model_at(field.annotation, place[1:])
    rest = place[1:] if get_origin(annotation) in (dict, list) else place
    return next((found for inner in get_args(annotation) if (found := _model_at(inner, rest))), None)


def unknown(what: str, name: str, valid: Iterable[str], where: str = "") -> str:
    """Says that a name is not among the valid ones, and which is nearest."""
    valid = list(valid)
    nearest = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    hint = f" Did you mean `{nearest[0]}`?" if nearest else ""
    return f"unknown {what} `{name}`{f' in `{where}`' if where else ''}.{hint} Valid: {', '.join(valid)}."


def shown(value: Any) -> str:
    """Returns a value with its type, for a message."""
    return f"{value!r} ({type(value).__name__})" if value is not None else "nothing"
