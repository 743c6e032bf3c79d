"""How far the runs are, on the terminal."""

from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from spkd_keras.cli.console import notice, notices
from spkd_keras.observer import Observer


class ProgressObserver(Observer):
    """Shows how far the runs are, on the terminal; a line for each finished run anywhere."""

    def __init__(self) -> None:
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=notices,
        )
        self.current: dict[str, TaskID] = {}

    def __enter__(self) -> "ProgressObserver":
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bars.tasks:  # else nothing was planned, and an error is alone on the screen
            self.bars.stop()

    def planned(self, runs: list[str], finished: list[str]) -> None:
        """Shows a bar for all runs, and names those that were finished before."""
        if finished:
            notices.print(f"Finished before: {', '.join(finished)}", highlight=False, markup=False)
        self.bars.start()
        self.total = self.bars.add_task("runs", total=len(runs), completed=len(finished), note="")

    def checking(self, what: str) -> None:
        """Says what is tried."""
        self.bars.update(self.total, note=f"checking {escape(what)}")

    def checked(self, findings: list[dict[str, str]], seconds: float | None) -> None:
        """Prints what was found, and what the runs will take."""
        self.bars.update(self.total, note="")
        for finding in findings:
            notice(f"{finding['severity']}: {finding['place']}: {finding['found']} {finding['advice']}".rstrip())
        if seconds is not None:
            notice(f"Expected, one run after the other: {duration(seconds)}")

    def cached(self, done: int, entries: int) -> None:
        """Says how much of the teacher's cache is computed."""
        note = "" if done == entries else f"caching the teacher, {done / entries:.0%}"
        self.bars.update(self.total, note=note)

    def started(self, run: str, epochs: int) -> None:
        """Shows a bar for the run."""
        if run in self.current:  # the process that was at it is gone
            self.bars.remove_task(self.current[run])
        self.current[run] = self.bars.add_task(run, total=epochs, note="preparing")

    def noticed(self, text: str) -> None:
        """Prints it."""
        notice(text)

    def advanced(self, run: str, epochs_done: float) -> None:
        """Moves the run's bar within an epoch."""
        self.bars.update(self.current[run], completed=round(epochs_done, 1))

    def progressed(self, run: str, epochs_done: int, logs: dict[str, float]) -> None:
        """Moves the run's bar, with the error so far."""
        accuracy = logs.get("val_accuracy", logs.get("accuracy"))
        note = (
            ""
            if accuracy is None
            else f"{'validation' if 'val_accuracy' in logs else 'training'} error {1 - accuracy:.1%}"
        )
        self.bars.update(self.current[run], completed=epochs_done, note=note)

    def completed(self, run: str, summary: dict[str, Any]) -> None:
        """Prints a line for the run in the place of its bar."""
        self._end(run)
        notice(
            f"{run}: test error {summary['test_error']:.2%}, "
            f"{summary['epochs']} epochs in {summary['wall_seconds']:.0f} s"
        )

    def tried(self, run: str, results: dict[str, float]) -> None:
        """Prints a line for the trial in the place of its bar."""
        self._end(run)
        notice(f"{run}: validation error {results['validation_error']:.2%}, {results['epochs']} epochs")

    def failed(self, run: str, reason: str) -> None:
        """Prints why, in the place of the run's bar."""
        self._end(run)
        notice(f"{run} failed: {reason}")

    def _end(self, run: str) -> None:
        task = self.current.pop(run, None)
        if task is not None:
            self.bars.remove_task(task)
        self.bars.advance(self.total)


def duration(seconds: float) -> str:
    """Returns a time to be expected, in a unit that suits it."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
