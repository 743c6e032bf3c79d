"""Being told how an experiment goes."""

from typing import Any


class Observer:
    """Is told how an experiment goes. Does nothing; override what is of interest."""

    def planned(self, runs: list[str], finished: list[str]) -> None:
        """All runs by name, and those among them that were finished before."""

    def started(self, run: str, epochs: int) -> None:
        """A run begins."""

    def progressed(self, run: str, epochs_done: int, logs: dict[str, float]) -> None:
        """A run has done some epochs."""

    def completed(self, run: str, summary: dict[str, Any]) -> None:
        """A run is done."""
