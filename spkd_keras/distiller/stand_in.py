"""A teacher that is not there: what is known of it, and batches that carry what it gave."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras

from spkd_keras.distiller.taps import Tap


class Cached(NamedTuple):
    """Images with what the teacher gave for them, in the place of the images x of a batch (x, y).

    Attributes:
        images: as the student takes them.
        teacher: tensors by the key of the place in the teacher, as `Tap.key` gives it.
    """

    images: Any
    teacher: dict[str, Any]


def unpacked(data: Any) -> tuple[Any, Any, Any]:
    """Returns x, y and sample_weight of a batch, None for those that it lacks.

    Raises:
        ValueError: if it is a `Cached` alone, which Keras takes for a pair of x and y.
    """
    if isinstance(data, Cached):
        raise ValueError(
            "A batch must be a tuple, (Cached(images, values), labels), or (Cached(images, values),) without labels. "
            "Received: a Cached alone."
        )
    return keras.utils.unpack_x_y_sample_weight(data)


@dataclasses.dataclass(frozen=True)
class StandIn:
    """Takes the teacher's place in a Distiller that trains on batches of `Cached`.

    Attributes:
        name: of the teacher.
        fingerprint: of the teacher.
        shapes: of the tensors in the batches, the batch's dimension None, by the key of the place.
        sketched: the keys of which there are random projections only.
        defaults: the keys that are meant where a term names none, by the loss' `default_tap`.
        dtype: in which the teacher computed, where a copy of it in another dtype did; None for the teacher as it was.
        gives_probabilities: whether its output is that of a softmax or a sigmoid.
    """

    name: str
    fingerprint: str
    shapes: Mapping[str, tuple[int | None, ...]]
    sketched: frozenset[str] = frozenset()
    defaults: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    dtype: str | None = None
    gives_probabilities: bool = False

    def resolve(self, names: str | tuple[str, ...] | None, default_tap: str, sketch_will_do: bool) -> tuple[Tap, ...]:
        """Finds the places that a term names.

        Raises:
            ValueError: if one is not there, or only as a sketch that will not do.
        """
        if names is None:
            wanted = tuple(Tap.of_key(key) for key in self.defaults.get(default_tap, ()))
        else:
            wanted = tuple(Tap(name) for name in (names if isinstance(names, tuple) else (names,)))
        missing = [str(tap) for tap in wanted if tap.key not in self.shapes]
        if missing or not wanted:
            raise ValueError(
                f"The cache of the teacher '{self.name}' must have {', '.join(missing) or f'the {default_tap}'}. "
                f"It has: {', '.join(str(Tap.of_key(key)) for key in self.shapes)}. Compute it anew for these terms."
            )
        sketched = sorted(self.sketched & {tap.key for tap in wanted})
        if sketched and not sketch_will_do:
            raise ValueError(
                f"The cache has a random projection of {', '.join(sketched)} only, which keeps inner products between "
                "images and nothing else. Compute it anew without `sketch` for losses other than SimilarityPreserving."
            )
        return wanted


class Absent:
    """Has the outputs of a tapped teacher, as far as shapes go, and cannot be run."""

    def __init__(self, stand_in: StandIn, places: list[Tap]) -> None:
        self.stand_in = stand_in
        self.output = {"taps": [keras.KerasTensor(stand_in.shapes[place.key]) for place in places]}

    def __call__(self, x: Any, training: bool) -> dict[str, Any]:
        """Says what is missing."""
        raise ValueError(
            f"The teacher '{self.stand_in.name}' is not there, so batches must carry what it gave: x must be "
            f"`Cached(images, values)`, as `TeacherCache.batches` gives it. Received: {type(x).__name__}."
        )
