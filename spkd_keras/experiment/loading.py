"""Reading an experiment from its file, with overrides from the command line."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from spkd_keras.experiment.presets import expand_methods
from spkd_keras.experiment.problems import ExperimentError, shown, validated
from spkd_keras.experiment.schema import NAME_PATTERN, Experiment
from spkd_keras.experiment.space import is_space, spaces
from spkd_keras.messages import one_line

MERGE = "tag:yaml.org,2002:merge"


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, made to refuse what it takes in silence or does not tell the place of.

    It takes the last of several equal keys and data that contain themselves, and lets the errors of Python through
    where a value is not what it looks like or is marked as: `2024-13-45`, `!!int abc`.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.name = "file"  # where an error is, and not `<unicode string>`
        self.deep_construct = True  # what contains itself cannot be made at once

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:
            problem = f"{node.value!r} is no {node.tag.rpartition(':')[2]} ({error})"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: list[Any] = []
        for inner, _ in node.value:
            if inner.tag == MERGE:  # `<<`, which PyYAML takes apart
                continue
            key = self.construct_object(inner, deep=True)
            if key in keys:
                problem = f"the key `{key}` is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, inner.start_mark)
            keys.append(key)
        return super().construct_mapping(node, deep)


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Reads and checks an experiment.

    Args:
        path: of a YAML file.
        overrides: `KEY=VALUE`, with a dotted path as key (`methods.sp.terms.0.weight`) and YAML as value.

    Raises:
        ExperimentError: if the file is missing or no YAML, or a key or value is not valid.
    """
    plain = read_plain(path, overrides)
    varying = next((".".join(map(str, place)) for place, _ in spaces(plain)), None)
    if varying is not None:
        raise ExperimentError(
            f"{path}: `{varying}` varies. `spkd tune` searches it; give it one value here: --set {varying}=VALUE."
        )
    return check_plain(plain, str(path))


def read_plain(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Reads an experiment's file, with its overrides and its methods in full, as plain data that is not checked yet.

    Raises:
        ExperimentError: if the file is missing or no YAML, or its name would be the experiment's and cannot be.
    """
    path = Path(path)
    try:
        plain = _parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = sorted(str(other) for other in path.parent.glob("*.y*ml"))
        hint = f"There is {', '.join(near)}." if near else "Give the path of a YAML file."
        raise ExperimentError(f"The experiment file does not exist: {path}. {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ExperimentError(f"The experiment file cannot be read: {path}: {error}.") from error
    except yaml.YAMLError as error:
        raise ExperimentError(f"{path} is not valid YAML: {one_line(error)}") from error
    if not isinstance(plain, dict):
        raise ExperimentError(f"{path} must be a mapping with data, teacher, student, ... Received: {shown(plain)}.")
    is_named = "name" in plain
    plain = {"name": path.stem, **_unshared(plain)}
    _expand(plain)  # so that an override finds `terms`
    for text in overrides:
        override(plain, text)
    _expand(plain)  # an override may have set a list
    if not is_named and plain["name"] == path.stem and not re.match(NAME_PATTERN, path.stem):
        raise ExperimentError(
            f"{path} has no `name:`, so the experiment's is the file's, which it cannot have. Received: {path.stem!r}. "
            "Give `name:`, of letters, digits and _ . + -, in the file, or rename the file."
        )
    return plain


def _parsed(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except RecursionError:
        raise yaml.YAMLError("lists or mappings are nested too deeply") from None


def _unshared(value: Any) -> Any:
    """Returns a copy in which what YAML's `*alias` names stands for itself, so that an override changes one place.

    `copy.deepcopy` keeps what is shared as it is.
    """
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _expand(plain: dict[str, Any]) -> None:
    if not is_space(plain.get("methods")):
        expand_methods(plain)


def check_plain(plain: dict[str, Any], source: str) -> Experiment:
    """Returns the experiment of plain data.

    Raises:
        ExperimentError: if a key or value is not valid.
    """
    experiment: Experiment = validated(Experiment, plain, source)
    try:
        experiment.teacher_training()  # the teacher's schedule is checked with it
    except ExperimentError as error:
        raise ExperimentError(f"{source}: {error}") from None
    return experiment


def override(plain: dict[str, Any], assignment: str) -> None:
    """Sets one value of plain data in place.

    Args:
        plain: as read from YAML.
        assignment: `KEY=VALUE`, with a dotted path as key and YAML as value.

    Raises:
        ExperimentError: if it is no assignment, or its place cannot be.
    """
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise ExperimentError(f"--set takes KEY=VALUE, for example data.batch_size=64. Received: {assignment}.")
    try:
        value = _parsed(text)
    except yaml.YAMLError as error:
        raise ExperimentError(f"--set {key}: the value is not valid YAML: {one_line(error)}") from error
    place: Any = plain
    parts = key.split(".")
    for index, part in enumerate(parts):
        here = ".".join(parts[:index]) or "the experiment"
        if isinstance(place, list):
            if not part.isdecimal() or int(part) >= len(place):
                raise ExperimentError(f"--set {key}: {here} is a list of {len(place)} items. Received: item {part}.")
        elif not isinstance(place, dict):
            raise ExperimentError(f"--set {key}: {here} is {shown(place)}, which has no {part}.")
        at: Any = int(part) if isinstance(place, list) else part
        if index == len(parts) - 1:
            place[at] = value
        else:
            if not isinstance(place, list) and place.get(at) is None:  # `cache: null` too is one without keys
                place[at] = {}
            place = place[at]
