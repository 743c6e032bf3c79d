"""What is written and told while a network trains."""

import csv
import io
import time
from collections.abc import Callable
from typing import Any

import keras

from spkd_keras.observer import Observer
from spkd_keras.storage import write_text
from spkd_keras.training.environment import peak_memory, reset_peak_memory
from spkd_keras.training.folder import RunFolder, save_network


class Recorder(keras.callbacks.Callback):
    """Writes a row of `history.csv` after each epoch, and `best.keras` when the validation accuracy is the best so far.

    An epoch that is repeated after a kill replaces its row, so that the history is that of an uninterrupted training.
    It comes before the checkpoints in the list: what a checkpoint says is done is in the history.

    Args:
        folder: the run's.

    Attributes:
        rows: of the epochs so far.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.folder = folder
        self.resume({})

    def resume(self, progress: dict[str, Any]) -> None:
        """Takes over what a checkpoint kept of `progress`; begins anew from nothing. Starts the clock."""
        self.rows: list[dict[str, float]] = list(progress.get("rows", []))
        self._seconds: float = progress.get("training_seconds", 0.0)
        self._peak_memory: int = progress.get("peak_memory_bytes", 0)
        self._clock = time.monotonic()
        reset_peak_memory()

    def progress(self) -> dict[str, Any]:
        """Returns the rows, the seconds of training and the peak of memory so far, for a checkpoint."""
        now = time.monotonic()
        self._seconds += now - self._clock
        self._clock = now
        self._peak_memory = max(self._peak_memory, peak_memory())
        return {"rows": self.rows, "training_seconds": self._seconds, "peak_memory_bytes": self._peak_memory}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the epoch's row and, if it is the best, the student."""
        row = {"epoch": epoch + 1, **{key: float(value) for key, value in (logs or {}).items()}}
        best = max((old.get("val_accuracy", 0.0) for old in self.rows), default=-1.0)
        if row.get("val_accuracy", -1.0) > best:
            save_network(self.folder.best, self.model.student)
        self.rows = [*self.rows, row]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.folder.history, text.getvalue())


class Reporter(keras.callbacks.Callback):
    """Tells an observer how far the training is.

    Args:
        observer: is told.
        run: its name.
        steps: batches of an epoch.
        begun: gives the epoch and the batch in it where the present `fit` began.
    """

    def __init__(self, observer: Observer, run: str, steps: int, begun: Callable[[], tuple[int, int]]) -> None:
        super().__init__()
        self.observer, self.run, self.steps, self.begun = observer, run, steps, begun
        self._told = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Keeps the epoch."""
        del logs
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Tells of the batches, once a second."""
        del logs
        if time.monotonic() - self._told >= 1:
            self._told = time.monotonic()
            epoch, first = self.begun()
            done = batch + (first if epoch == self._epoch else 0)
            self.observer.advanced(self.run, self._epoch + done / self.steps)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Tells of the epoch."""
        self.observer.progressed(self.run, epoch + 1, logs or {})
