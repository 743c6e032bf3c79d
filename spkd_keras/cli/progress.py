"""How far the runs are, on the terminal."""

from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from spkd_keras.cli.console import notices
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

    def started(self, run: str, epochs: int) -> None:
        """Shows a bar for the run."""
        self.current = self.bars.add_task(run, total=epochs, note="preparing")

    def progressed(self, run: str, epochs_done: int, logs: dict[str, float]) -> None:
        """Moves the run's bar, with the error so far."""
        accuracy = logs.get("val_accuracy", logs.get("accuracy"))
        note = (
            ""
            if accuracy is None
            else f"{'validation' if 'val_accuracy' in logs else 'training'} error {1 - accuracy:.1%}"
        )
        self.bars.update(self.current, completed=epochs_done, note=note)

    def completed(self, run: str, summary: dict[str, Any]) -> None:
        """Prints a line for the run in the place of its bar."""
        self.bars.remove_task(self.current)
        self.bars.advance(self.total)
        notices.print(
            f"{run}: test error {summary['test_error']:.2%}, "
            f"{summary['epochs']} epochs in {summary['wall_seconds']:.0f} s",
            highlight=False,
        )
