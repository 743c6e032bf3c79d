"""From an experiment's file with ranges and choices in it to its points, each an ordinary experiment."""

import copy
import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spkd_keras.experiment.loading import check_plain, read_plain
from spkd_keras.experiment.presets import expand_methods
from spkd_keras.experiment.problems import ExperimentError, shown, unknown, validated
from spkd_keras.experiment.schema import BASELINE, Experiment
from spkd_keras.experiment.sections import Published, Schedule
from spkd_keras.experiment.space import Dimension, is_space, label, published_weight, put, read_dimension, spaces

METHOD = ("methods",)  # the path of the method itself, where it varies
# What may vary. All trials share one teacher and one split of the data.
VARYING_ROOTS = ("methods", "student", "schedule", "precision")
VARYING_FIELDS = (
    "data.batch_size",
    "data.augmentation",
    "data.mixup",
    "data.cutmix",
    "data.randaugment",
    "teacher.dtype",
)
OBJECTIVES = {"val_accuracy": "max", "val_loss": "min"}
TUNERS = ("random", "hyperband", "bayesian", "grid")


@dataclasses.dataclass(frozen=True)
class Space:
    """What varies in an experiment.

    Attributes:
        dimensions: the method first if it varies, then as in the file.
        methods: the methods that are searched; one, or those among which the search chooses.
    """

    dimensions: tuple[Dimension, ...]
    methods: tuple[str, ...]

    def first(self) -> dict[str, Any]:
        """Returns the values of the first trial: the given or published ones."""
        values = {dimension.name: dimension.default for dimension in self.dimensions}
        return self.active(values)

    def active(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the values that count: not those of methods that are not chosen."""
        method = self.method(values)
        return {d.name: values[d.name] for d in self.dimensions if d.method in (None, method)}

    def method(self, values: Mapping[str, Any]) -> str:
        """Returns the method of a point."""
        return str(values.get(METHOD[0], self.methods[0]))

    def corners(self) -> Iterator[tuple[Dimension | None, dict[str, Any]]]:
        """Yields the first point, then it with each other value of a choice and end of a range, and what is another."""
        first = {dimension.name: dimension.default for dimension in self.dimensions}
        yield None, first
        for dimension in self.dimensions:
            method = {} if dimension.method is None else {METHOD[0]: dimension.method}
            for value in dimension.ends():
                if label(value) != label(dimension.default):
                    yield dimension, first | method | {dimension.name: value}

    def at(self, experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
        """Returns the experiment of a point, with its one method.

        Raises:
            ExperimentError: if the experiment cannot be with these values.
        """
        plain = experiment.model_dump()
        method = self.method(values)
        plain["methods"] = {method: plain["methods"][method]}
        for dimension in self.dimensions:
            if dimension.path != METHOD and dimension.method in (None, method):
                put(plain, dimension.path, copy.deepcopy(values[dimension.name]))
        changed = {d.name: values[d.name] for d in self.dimensions if values.get(d.name, d.default) != d.default}
        return validated(Experiment, plain, points(changed) or "the first point")


def points(values: Mapping[str, Any]) -> str:
    """Returns the values of a point as text."""
    return ", ".join(f"{name}={label(value)}" for name, value in values.items())


def load_search(
    path: str | Path, overrides: Sequence[str] = (), methods: Sequence[str] | None = None
) -> tuple[Experiment, Space]:
    """Reads and checks an experiment in which something varies.

    Args:
        path: of a YAML file.
        overrides: as of `load_experiment`; they may set ranges too.
        methods: the methods that are meant; None for all that the file has.

    Returns:
        The experiment at the first point, with its methods, or those of them that are meant and the baseline; and what
        varies.

    Raises:
        ExperimentError: as `load_experiment`; if nothing varies, or something does that cannot; or a value of a choice,
            or an end of a range, is not valid.
    """
    plain = read_plain(path, overrides)
    published = plain.pop("published", None)  # of the experiment as it stands; a point of a search is another one
    if published is not None:
        validated(Published, published, f"{path}: published")
    chosen = _methods(plain)
    if methods is not None:
        chosen = _selected(plain, chosen, methods)
    for place, _ in spaces(plain):
        _check_may_vary(place)
    found = [read_dimension(place, space, _published(plain, place)) for place, space in spaces(plain)]
    for dimension in found:
        put(plain, dimension.path, copy.deepcopy(dimension.default))
    experiment = check_plain(plain, str(path))
    searched = chosen or _only(experiment)
    dimensions = [_belonging(dimension, searched) for dimension in found]
    if len(searched) > 1:
        dimensions.insert(0, Dimension(METHOD, "choice", tuple(searched), default=searched[0]))
    if not dimensions:
        raise ExperimentError(
            f"{path}: nothing varies. Give a field a range or a choice, for example "
            "--set 'methods.sp.terms.0.weight={float: [1, 10000], log: true}'."
        )
    _check_whole(path, experiment)
    space = Space(tuple(dimensions), tuple(searched))
    for _, values in space.corners():
        space.at(experiment, values)  # refuses what cannot be
    return experiment, space


class StudentSpec(NamedTuple):
    """One of several students.

    Attributes:
        name: by what varies, `width-0.5`.
        values: what varies.
        experiment: with this student, under this name.
    """

    name: str
    values: dict[str, Any]
    experiment: Experiment


def load_students(
    path: str | Path,
    overrides: Sequence[str] = (),
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> tuple[Experiment, list[StudentSpec]]:
    """Reads and checks an experiment whose student varies.

    Args:
        path: of a YAML file.
        overrides: as of `load_experiment`; they may set choices too.
        methods: only these; None for all.
        seeds: instead of the file's.

    Returns:
        The experiment with its first student, and all students in the order of the file.

    Raises:
        ExperimentError: as `load_search`; if something else than the student varies, or there is no teacher or nothing
            held out.
    """
    plain = read_plain(path, overrides)
    found = [(place, read_dimension(place, space)) for place, space in spaces(plain)]
    for _, dimension in found:
        if dimension.path[0] != "student":
            raise ExperimentError(f"`{dimension.name}` cannot vary here: students are compared under one budget.")
    if not found:
        raise ExperimentError(
            f"{path}: the student does not vary. Give it a choice, for example "
            "--set 'student.width={choice: [0.25, 0.5, 1]}'."
        )
    students: list[StudentSpec] = []
    for combination in itertools.product(*(dimension.every() for _, dimension in found)):
        values = {dimension.name: value for (_, dimension), value in zip(found, combination, strict=True)}
        one = copy.deepcopy(plain)
        for (place, _), value in zip(found, combination, strict=True):
            put(one, place, copy.deepcopy(value))
        experiment = check_plain(one, f"{path}: {points(values)}").select(methods, seeds)
        if not students:
            _check_comparable(path, experiment)
        name = _slug(values)
        if name in (student.name for student in students):
            name = f"{name}-{len(students)}"
        students.append(StudentSpec(name, values, experiment.model_copy(update={"name": name})))
    return students[0].experiment.model_copy(update={"name": str(plain["name"])}), students


def _check_comparable(path: str | Path, experiment: Experiment) -> None:
    if experiment.teacher is None:
        raise ExperimentError(f"{path}: students are compared with their teacher. `teacher` must be given.")
    if experiment.data.validation == 0:
        raise ExperimentError(f"{path}: held-out images decide. `data.validation` must be above 0.")


def _slug(values: Mapping[str, Any]) -> str:
    """Returns values as a name that a folder may have."""
    parts = []
    for name, value in values.items():
        word = name.split(".")[-1]
        text = " ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, Mapping) else value
        parts.append(str(text) if name == "student" else f"{word} {text}")
    return re.sub(r"[^A-Za-z0-9_.+]+", "-", " ".join(parts)).strip("-")


def _methods(plain: dict[str, Any]) -> list[str]:
    """Writes in full, in place, methods that are a choice; returns their names, none if they are not."""
    methods = plain.get("methods")
    if not is_space(methods):
        return []
    for key in methods:
        if key != "choice":
            raise ExperimentError(unknown("key", str(key), ("choice",), where="methods"))
    content = methods["choice"]
    if not isinstance(content, list | dict) or not content:
        raise ExperimentError(
            "`methods`: `choice` must be a list of published methods, or a mapping of methods, with at least one. "
            f"Received: {shown(content)}."
        )
    plain["methods"] = content
    expand_methods(plain)
    return list(plain["methods"])


def _selected(plain: dict[str, Any], chosen: list[str], methods: Sequence[str]) -> list[str]:
    """Leaves the methods that are asked for in place, and the baseline; returns those that are searched."""
    known = plain.get("methods")
    if not isinstance(known, dict):
        return chosen
    for method in methods:
        if method not in known:
            raise ExperimentError(unknown("method", method, known))
    plain["methods"] = {name: content for name, content in known.items() if name in (*methods, BASELINE)}
    return [name for name in known if name in methods]


def _only(experiment: Experiment) -> list[str]:
    """Returns the one method that is searched where the file has no choice among methods."""
    others = [name for name in experiment.methods if name != BASELINE] or [BASELINE]
    if len(others) > 1:
        raise ExperimentError(
            f"A search trains one method a trial. Received: {', '.join(others)}. Name one with --methods {others[0]}, "
            f"or let the search choose: `methods: {{choice: [{', '.join(others)}]}}`."
        )
    return others


def _published(plain: Mapping[str, Any], place: tuple[str | int, ...]) -> float | None:
    """Returns what was published for a weight of a term of a published method, or for a field of the schedule."""
    if len(place) == 2 and place[0] == "schedule" and place[1] in Schedule.model_fields:
        default = Schedule.model_fields[str(place[1])].default
        return default if type(default) in (int, float) else None
    if len(place) != 5 or place[0] != "methods" or place[2] != "terms" or place[4] != "weight":
        return None
    terms = plain["methods"][place[1]]["terms"]
    if not isinstance(terms, list) or not all(isinstance(term, Mapping) for term in terms):
        return None  # which the schema refuses
    return published_weight(str(place[1]), terms, int(place[3]))


def _check_may_vary(place: tuple[str | int, ...]) -> None:
    name = ".".join(map(str, place))
    if place[0] in Experiment.model_fields and place[0] not in VARYING_ROOTS and name not in VARYING_FIELDS:
        raise ExperimentError(
            f"`{name}` cannot vary: all trials have the same teacher, data and seeds. What can: fields of "
            f"{', '.join(VARYING_ROOTS)}; {', '.join(VARYING_FIELDS)}."
        )


def _belonging(dimension: Dimension, searched: Sequence[str]) -> Dimension:
    """Says which method a dimension belongs to."""
    if dimension.path[0] != "methods":
        return dimension
    method = str(dimension.path[1])
    if method not in searched:
        raise ExperimentError(
            f"`{dimension.name}` varies, and the search is over {', '.join(searched)}. Name the method with --methods "
            f"{method}, or let the search choose."
        )
    return dataclasses.replace(dimension, method=method if len(searched) > 1 else None)


def _check_whole(path: str | Path, experiment: Experiment) -> None:
    if experiment.data.validation == 0:
        raise ExperimentError(f"{path}: a search chooses by held-out images. `data.validation` must be above 0.")
    if experiment.teacher is not None and experiment.teacher.cache is not None:
        raise ExperimentError(
            f"{path}: a search runs the teacher itself, since what the trials compare may differ. Leave "
            "`teacher.cache` out: --set teacher.cache=null."
        )


def check_tuner(tuner: str) -> None:
    """Checks a tuner's name.

    Raises:
        ExperimentError: if there is none of this name.
    """
    if tuner not in TUNERS:
        raise ExperimentError(f"--tuner: {unknown('tuner', tuner, TUNERS)}")


def check_objective(objective: str) -> None:
    """Checks an objective's name.

    Raises:
        ExperimentError: if it is none of those of the held-out images.
    """
    if objective not in OBJECTIVES:
        what = unknown("objective", objective, OBJECTIVES)
        raise ExperimentError(f"--objective: {what} A search chooses by held-out images alone.")
