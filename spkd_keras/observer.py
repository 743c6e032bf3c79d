"""Being told how an experiment goes."""

from collections.abc import Callable
from functools import partial
from typing import Any


class Observer:
    """Is told how an experiment goes. Does nothing; override what is of interest."""

    def planned(self, runs: list[str], finished: list[str]) -> None:
        """All runs by name, and those among them that were finished before."""

    def checking(self, what: str) -> None:
        """Something is tried before it is run."""

    def checked(self, findings: list[dict[str, str]], seconds: float | None) -> None:
        """What the check found, the worst first, and what the runs will take if that was measured."""

    def cached(self, done: int, entries: int) -> None:
        """So many entries of the teacher's cache are computed."""

    def started(self, run: str, epochs: int) -> None:
        """A run begins."""

    def noticed(self, text: str) -> None:
        """Something that the user should know and that does not stop anything."""

    def advanced(self, run: str, epochs_done: float) -> None:
        """A run is within an epoch. Told about once a second."""

    def progressed(self, run: str, epochs_done: int, logs: dict[str, float]) -> None:
        """A run has done some epochs."""

    def completed(self, run: str, summary: dict[str, Any]) -> None:
        """A run is done."""

    def tried(self, run: str, results: dict[str, float]) -> None:
        """A trial of a search is done, with these values on the held-out images."""

    def failed(self, run: str, reason: str) -> None:
        """A run ended with an error; the others go on."""


# The names of all that an observer is told.
EVENTS = tuple(name for name in vars(Observer) if not name.startswith("_"))


class Renamed(Observer):
    """Tells another observer, with other names for the runs; `planned` it leaves to whoever knows of all runs.

    Args:
        observer: is told.
        rename: gives a run's name there.
        held_out: whether a finished run is told of by its error on held-out images, as a trial is.
    """

    NAMING = ("started", "advanced", "progressed", "completed", "tried", "failed")

    def __init__(self, observer: Observer, rename: Callable[[str], str], held_out: bool = False) -> None:
        for event in set(EVENTS) - {"planned"}:
            tell = getattr(observer, event)
            setattr(self, event, partial(self._tell, tell, rename) if event in self.NAMING else tell)
        if held_out:
            setattr(self, "completed", self.tried)  # noqa: B010  (as the others are)

    @staticmethod
    def _tell(tell: Callable[..., None], rename: Callable[[str], str], run: str, *details: Any) -> None:
        tell(rename(run), *details)
