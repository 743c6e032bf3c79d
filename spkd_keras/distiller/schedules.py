"""Changing the weight of a term from epoch to epoch."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import keras


@dataclasses.dataclass(frozen=True)
class WeightSchedule:
    """A factor for a term's weight, for each epoch; the parts multiply. The default is constant.

    Args:
        warm_up: epochs over which the factor grows linearly, as (epoch + 1) / (warm_up + 1).
        decay: "cosine": (1 + cos(pi epoch / epochs)) / 2, towards 0; "none".
        until: epoch, counted from 0, from which the factor is 0; None for never.

    Raises:
        ValueError: if an argument is out of range.
    """

    warm_up: int = 0
    decay: Literal["none", "cosine"] = "none"
    until: int | None = None

    def __post_init__(self) -> None:
        if type(self.warm_up) is not int or self.warm_up < 0:
            raise ValueError(f"`warm_up` must be an integer of at least 0. Received: warm_up={self.warm_up!r}.")
        if self.decay not in ("none", "cosine"):
            raise ValueError(f'`decay` must be "none" or "cosine". Received: decay={self.decay!r}.')
        if self.until is not None and (type(self.until) is not int or self.until < 1):
            raise ValueError(f"`until` must be an integer of at least 1, or None. Received: until={self.until!r}.")

    def factor(self, epoch: int, epochs: int) -> float:
        """Returns the factor of an epoch, counted from 0, of so many."""
        if self.until is not None and epoch >= self.until:
            return 0.0
        decayed = (1 + math.cos(math.pi * epoch / epochs)) / 2 if self.decay == "cosine" else 1.0
        return min(1.0, (epoch + 1) / (self.warm_up + 1)) * decayed


class TermWeightSchedule(keras.callbacks.Callback):
    """Sets the weights of a Distiller's terms at the beginning of each epoch: the term's own times a factor.

    What it sets depends on the epoch alone, so that a resumed training goes on with the same weights. At the end of the
    training each of these terms has its own weight again.

    Args:
        schedules: by the names of terms.
        epochs: of the whole training, where a `fit` is a part of it; None for those of `fit`.

    Raises:
        ValueError: if one is no `WeightSchedule`.
    """

    def __init__(self, schedules: Mapping[str, WeightSchedule], epochs: int | None = None) -> None:
        super().__init__()
        for name, schedule in schedules.items():
            if not isinstance(schedule, WeightSchedule):
                raise ValueError(f"`schedules` must have a WeightSchedule for '{name}'. Received: {schedule!r}.")
        self.schedules, self.epochs = dict(schedules), epochs
        self.weights: dict[str, float] = {}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Checks the names.

        Raises:
            ValueError: if the Distiller has no such term.
        """
        del logs
        self.weights = {term.name: term.weight for term in self.model.terms}
        unknown = sorted(set(self.schedules) - set(self.weights))
        if unknown:
            raise ValueError(f"The Distiller has the terms {', '.join(self.weights)}. Received: {', '.join(unknown)}.")

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the weights."""
        del logs
        epochs = self.epochs or self.params["epochs"]
        for name, schedule in self.schedules.items():
            self.model.term_weights[name].assign(self.weights[name] * schedule.factor(epoch, epochs))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Gives the terms their own weights again."""
        del logs
        self.give_back()

    def give_back(self) -> None:
        """Gives the terms their own weights again, for what is trained or evaluated later without a schedule."""
        for name in self.schedules.keys() & self.weights.keys():
            self.model.term_weights[name].assign(self.weights[name])


@contextmanager
def given_back(callbacks: Any) -> Iterator[None]:
    """Whatever ends a `fit`, gives the terms whose weights these callbacks schedule their own again.

    Keras (3.12 to 3.15) ends no callbacks after an error, and one that restores the best epoch's weights restores
    those of the terms too.
    """
    own = callbacks.callbacks if isinstance(callbacks, keras.callbacks.CallbackList) else callbacks or []
    try:
        yield
    finally:
        for callback in keras.tree.flatten(own):
            if isinstance(callback, TermWeightSchedule):
                callback.give_back()
