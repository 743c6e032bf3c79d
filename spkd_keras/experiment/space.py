"""What a search varies, as data in an experiment's file: `{choice: [...]}`, `{float: [low, high]}`, `{int: ...}`."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import yaml

from spkd_keras.experiment.presets import preset_methods
from spkd_keras.experiment.problems import ExperimentError, number_hint, shown, unknown

KINDS = ("choice", "float", "int")
MOST_STEPS = 10_000  # of a range; KerasTuner writes them all into the file of each trial
OPTIONS = {"choice": ("default",), "float": ("log", "step", "default"), "int": ("log", "step", "default")}

Path = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One thing that varies.

    Attributes:
        path: of the field in the experiment.
        kind: "choice", "float" or "int".
        values: of a choice, as they stand in the file; low and high of a range.
        log: whether a range is sampled by its logarithm.
        step: between the values of a range: added, or with `log` a factor; None for any value.
        default: the value of the first trial.
        method: the method that it belongs to, where the method varies too; None if it always counts.
    """

    path: Path
    kind: str
    values: tuple[Any, ...]
    log: bool = False
    step: float | None = None
    default: Any = None
    method: str | None = None

    @property
    def name(self) -> str:
        """The field's dotted path, as `--set` takes it."""
        return ".".join(map(str, self.path))

    @property
    def options(self) -> tuple[Any, ...]:
        """The values of a choice, or of a range with steps, as KerasTuner takes them: of one plain type, else text."""
        values = tuple(self.every())
        types = {type(value) for value in values}
        plain = len(types) == 1 and types <= {str, int, float}
        return values if plain else tuple(label(value) for value in values)

    def option(self, value: Any) -> Any:
        """Returns what KerasTuner has for a value."""
        return self.options[self.values.index(value)] if self.kind == "choice" else value

    def value(self, option: Any) -> Any:
        """Returns the value that is meant by what KerasTuner has."""
        return self.values[self.options.index(option)] if self.kind == "choice" else option

    def every(self) -> list[Any]:
        """Returns all values in turn, the default too where it lies between two steps.

        Raises:
            ExperimentError: if it is a range of floats without a step.
        """
        if self.kind == "choice":
            return list(self.values)
        if self.step is None and (self.kind == "float" or self.log):
            raise ExperimentError(f"`{self.name}`: every value is needed here. Give a `choice`, or a `step`.")
        low, high = self.values
        step = self.step or 1
        values = [low * step**index if self.log else low + step * index for index in range(self.steps())]
        if self.kind == "float":  # three steps of 0.1 are 0.3, and not 0.30000000000000004
            values = [min(high, float(f"{value:.12g}")) for value in values]
        return values if self.default in (None, *values) else sorted([*values, self.default])

    def steps(self) -> int:
        """Returns how many values a range has by its step."""
        low, high = self.values
        step = self.step or 1
        beyond = math.log(high / low, step) if self.log else (high - low) / step
        return math.floor(min(beyond, 1e18) + 1e-8) + 1  # a step may be next to nothing

    def position(self, value: Any) -> float:
        """Returns where a value is, from 0 for the first or lowest to 1 for the last or highest."""
        if self.kind == "choice":
            return self.values.index(value) / max(1, len(self.values) - 1)
        low, high = self.values
        if self.log:
            return math.log(value / low) / math.log(high / low)
        return float((value - low) / (high - low))

    def marks(self) -> list[Any]:
        """Returns the values that an axis names: all of a choice; lowest, middle and highest of a range."""
        if self.kind == "choice":
            return list(self.values)
        low, high = self.values
        return [low, math.sqrt(low * high) if self.log else (low + high) / 2, high]

    def ends(self) -> tuple[Any, ...]:
        """Returns the values that tell whether all of them can be: those of a choice, or the lowest and the highest."""
        if self.kind == "choice" or self.step is None:
            return self.values
        values = self.every()
        return values[0], values[-1]


def label(value: Any) -> str:
    """Returns a value as one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def is_space(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether this is a range or a choice and not a value: `{float: [1, 2], log: true}`.

    A mapping of methods may have one that is named `float`: the others in it are then more than plain values.
    """
    if not isinstance(value, Mapping) or not any(kind in value for kind in KINDS):
        return False
    options = [option for key, option in value.items() if key not in (*KINDS, "default")]
    listed = len(value) == 1 or any(isinstance(value.get(kind), list | Mapping) for kind in KINDS)
    return listed and not any(isinstance(option, list | Mapping) for option in options)


def spaces(plain: Any, path: Path = ()) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yields what varies in plain data, with its path; all of a file is not a thing that varies."""
    if path and is_space(plain):
        yield path, plain
    elif isinstance(plain, Mapping):
        for key, value in plain.items():
            yield from spaces(value, (*path, key))
    elif isinstance(plain, list):
        for index, value in enumerate(plain):
            yield from spaces(value, (*path, index))


def put(plain: Any, path: Path, value: Any) -> None:
    """Sets the value at a path that exists."""
    for part in path[:-1]:
        plain = plain[part]
    plain[path[-1]] = value


def read_dimension(path: Path, space: Mapping[str, Any], published: float | None = None) -> Dimension:
    """Reads and checks a range or a choice.

    Args:
        path: where it stands.
        space: what stands there.
        published: the default, where it lies in the range and no other is given.

    Raises:
        ExperimentError: if it is not valid.
    """
    name = ".".join(map(str, path))
    kinds = [kind for kind in KINDS if kind in space]
    if len(kinds) > 1:
        raise ExperimentError(f"`{name}` must be one of {', '.join(KINDS)}. Received: {', '.join(kinds)}.")
    (kind,) = kinds
    for key in space:
        if key not in (kind, *OPTIONS[kind]):
            raise ExperimentError(unknown("key", str(key), (kind, *OPTIONS[kind]), where=name))
    if kind == "choice":
        return _choice(path, name, space)
    return _range(path, name, kind, space, published)


def _choice(path: Path, name: str, space: Mapping[str, Any]) -> Dimension:
    values = space["choice"]
    if not isinstance(values, list) or not values:
        raise ExperimentError(f"`{name}`: `choice` must be a list of at least one value. Received: {shown(values)}.")
    labels = [label(value) for value in values]
    if len(set(labels)) < len(labels):
        raise ExperimentError(f"`{name}`: the values of `choice` must differ. Received: {label(values)}.")
    if any(True for _ in spaces(values)):
        raise ExperimentError(f"`{name}`: a `choice` cannot have a range within. Received: {label(values)}.")
    default = space.get("default", values[0])
    if default not in values:
        raise ExperimentError(f"`{name}`: `default` must be one of the choice. Received: {shown(default)}.")
    return Dimension(path, "choice", tuple(values), default=default)


def _range(path: Path, name: str, kind: str, space: Mapping[str, Any], published: float | None) -> Dimension:
    number = (int,) if kind == "int" else (int, float)
    words = "integers" if kind == "int" else "numbers"
    ends = space[kind]
    if not isinstance(ends, list) or len(ends) != 2 or not all(_is(end, number) for end in ends):
        hint = next(filter(None, (number_hint(end, kind == "int") for end in _listed(ends))), "")
        raise ExperimentError(f"`{name}`: `{kind}` must be two {words}, [low, high]. Received: {shown(ends)}{hint}.")
    low, high = ends if kind == "int" else map(float, ends)
    if not low < high:
        raise ExperimentError(f"`{name}`: `{kind}` must be [low, high] with low below high. Received: {ends}.")
    log, step = space.get("log", False), space.get("step")
    if not isinstance(log, bool):
        raise ExperimentError(f"`{name}`: `log` must be true or false. Received: {shown(log)}.")
    if log and low <= 0:
        raise ExperimentError(f"`{name}`: a range with `log` must begin above 0. Received: {ends}.")
    least = 1 if log else 0
    if step is not None and not (_is(step, number) and step > least):
        kinds = f"one of the {words} above {least}"
        raise ExperimentError(f"`{name}`: `step` must be {kinds}. Received: {shown(step)}.")
    given = "default" in space
    default = space.get("default", published)
    if given and not (_is(default, number) and low <= default <= high):
        raise ExperimentError(f"`{name}`: `default` must be one of the {words} in {ends}. Received: {shown(default)}.")
    if not given and kind == "int" and default is not None:
        default = int(default) if float(default).is_integer() else None
    dimension = Dimension(path, kind, (low, high), log, step)
    if step is not None and dimension.steps() > MOST_STEPS:
        raise ExperimentError(
            f"`{name}`: a range has at most {MOST_STEPS:,} steps. Received: {dimension.steps():,}. Give a larger "
            "`step`, or leave it out."
        )
    default = _first(dimension, default)
    return dataclasses.replace(dimension, default=default if kind == "int" else float(default))


def _first(dimension: Dimension, default: float | None) -> Any:
    """Returns the default of a range: its middle where none is given, or the one that is lies outside."""
    low, high = dimension.values
    if default is None or not low <= default <= high:
        middle = math.sqrt(low * high) if dimension.log else (low + high) / 2
        if dimension.step is None:
            return round(middle) if dimension.kind == "int" else middle
        return min(dimension.every(), key=lambda value: abs(value - middle))
    if dimension.step is None:
        return default
    # One that is a step but for rounding is that step: else it would be tried twice.
    return next((value for value in dimension.every() if math.isclose(value, default)), default)


def _is(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool) and abs(value) != math.inf  # type: ignore[arg-type]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def published_weight(method: str, terms: list[Mapping[str, Any]], index: int) -> float | None:
    """Returns the weight that a term was published with, by the method's name, else by its losses; None if by neither.

    Args:
        method: its name.
        terms: all of them.
        index: of the term.
    """
    losses = [term.get("loss") for term in terms]
    known = {name: found.terms for name, found in preset_methods().items()}
    same = {name: found for name, found in known.items() if [term.loss for term in found] == losses}
    candidates = [same[method]] if method in same else list(same.values())
    return candidates[0][index].weight if candidates else None
