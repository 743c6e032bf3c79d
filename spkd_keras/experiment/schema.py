"""What an experiment consists of, and what its values may be."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import Field

from spkd_keras.experiment.problems import ExperimentError, unknown, validated
from spkd_keras.experiment.sections import (
    CacheSpec,
    Checkpoints,
    Data,
    Method,
    Network,
    Published,
    Schedule,
    Section,
    Teacher,
)

BASELINE = "student"  # the method without terms, with which every other is compared
TEACHER = "teacher"  # the method of the run that trains the teacher
TEACHER_SEED = 0
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$"

Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Experiment(Section):
    """Data, networks, a schedule, methods and seeds: what `spkd run` runs.

    Every method is run with every seed, from the same initial student for the same seed. `precision` is what networks
    compute in; weights, pixels, logits and losses are float32 in each of them. `published` is what others measured.
    """

    name: str = Field(pattern=NAME_PATTERN)
    data: Data
    teacher: Teacher | None = None
    student: Network
    schedule: Schedule = Schedule()
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    methods: dict[Annotated[str, Field(pattern=NAME_PATTERN)], Method] = Field(min_length=1)
    seeds: list[Seed] = Field(default=[0], min_length=1)
    checkpoints: Checkpoints = Checkpoints()
    published: Published | None = None

    @pydantic.model_validator(mode="after")
    def _check_whole(self) -> "Experiment":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"`seeds` must differ, received {self.seeds}")
        if self.student.path is not None:
            raise ValueError("`student` needs `model`: every run starts from a new student")
        with_terms = [name for name, method in self.methods.items() if method.terms]
        if self.teacher is None and with_terms:
            raise ValueError(f"needs a `teacher`, since there are methods with terms: {', '.join(with_terms)}")
        cache = None if self.teacher is None else self.teacher.cache
        if cache and (self.data.mixup or self.data.cutmix or self.data.randaugment):
            raise ValueError(
                "`teacher.cache` needs images that are augmented one by one: no mixup, cutmix, randaugment"
            )
        if cache and cache.views > 1 and self.data.augmentation == "none":
            raise ValueError(f"`teacher.cache.views` must be 1 without augmentation, received {cache.views}")
        if TEACHER in self.methods and self.teacher is not None:
            raise ValueError(f"`methods` cannot have one named `{TEACHER}`, the teacher's own run")
        if self.methods.get(BASELINE, Method()) != Method():
            raise ValueError(f"the method `{BASELINE}` is the baseline, trained on the labels alone: `{BASELINE}: []`")
        for name in self.published.test_error if self.published else ():
            if name not in (*self.methods, TEACHER):
                raise ValueError(f"published.test_error: {unknown('method', name, [*self.methods, TEACHER])}")
        return self

    @property
    def dtype(self) -> str:
        """The dtype of computation that `precision` means: "float32", "bfloat16" or "float16"."""
        return self.precision.removeprefix("mixed_")

    @property
    def teacher_dtype(self) -> str | None:
        """The dtype of a copy of the teacher; None for the teacher as it is."""
        own = None if self.teacher is None else self.teacher.dtype
        return own or (None if self.dtype == "float32" else self.dtype)

    @property
    def asks_teacher(self) -> bool:
        """Whether any method has terms: the teacher is trained and loaded for them alone."""
        return self.teacher is not None and any(method.terms for method in self.methods.values())

    @property
    def teacher_cache(self) -> CacheSpec | None:
        """The cache that the methods' terms take the teacher from; None if none is asked for, or there are no terms."""
        return self.teacher.cache if self.teacher is not None and self.asks_teacher else None

    @property
    def fixed_views(self) -> int | None:
        """How many augmented views of an image methods with terms see, where a cache keeps them; None for new ones.

        The student alone, which needs no cache, sees a new one in every epoch in any case.
        """
        spec = self.teacher_cache
        return spec.views if spec is not None and self.data.augmentation != "none" else None

    def single(self, method: str, seed: int) -> "Experiment":
        """Returns the part that one run is about: one method with one seed."""
        published = self.published and self.published.of([method])
        return self.model_copy(
            update={"methods": {method: self.methods[method]}, "seeds": [seed], "published": published}
        )

    def teacher_training(self) -> "Experiment | None":
        """Returns the run that trains the teacher, as a student without terms; None if there is none to train."""
        if self.teacher is None or self.teacher.model is None:
            return None
        network = Network(model=self.teacher.model, **self.teacher.arguments)
        schedule = validated(Schedule, {**self.schedule.model_dump(), **self.teacher.schedule}, "teacher.schedule")
        return self.model_copy(
            update={
                "teacher": None,
                "student": network,
                "schedule": schedule,
                "methods": {TEACHER: Method()},
                "seeds": [TEACHER_SEED],
                "published": self.published and self.published.of([TEACHER]),
            }
        )

    def select(self, methods: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> "Experiment":
        """Returns the experiment with some of its methods, or with other seeds.

        Raises:
            ExperimentError: if a method is not in it, or the seeds are not valid.
        """
        for method in methods or ():
            if method not in self.methods:
                raise ExperimentError(unknown("method", method, self.methods))
        chosen = {name: method for name, method in self.methods.items() if methods is None or name in methods}
        plain = self.model_dump() | {"methods": {name: method.model_dump() for name, method in chosen.items()}}
        published = self.published and self.published.of([*chosen, TEACHER])
        plain["published"] = published and published.model_dump()
        return validated(Experiment, plain | ({} if seeds is None else {"seeds": list(seeds)}), self.name)

    def to_yaml(self) -> str:
        """Returns the whole experiment as YAML, defaults included."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


def differences(old: Experiment, new: Experiment) -> list[str]:
    """Returns what differs and affects a run's result, as `data.batch_size: 64 -> 128`."""
    asked = any(method.terms for experiment in (old, new) for method in experiment.methods.values())
    teacher: Any = {"cache": {"path"}} if asked else True  # what has no terms asks none
    without: Any = {"name": True, "checkpoints": True, "published": True, "teacher": teacher}
    before, after = (_flat(experiment.model_dump(exclude=without)) for experiment in (old, new))
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for name, item in items for key, leaf in _flat(item, f"{prefix}.{name}").items()}
    return {prefix.removeprefix("."): value}
