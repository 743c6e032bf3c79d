"""What is written while a network trains."""

import csv
import io
import json
import time
from typing import Any

import keras

from spkd_keras.distiller import Distiller
from spkd_keras.training.folder import RunFolder, save_network, write_json, write_text


class Recorder(keras.callbacks.Callback):
    """Writes a row of `history.csv` after each epoch, and `best.keras` when the validation accuracy is the best so far.

    An epoch that is repeated after a kill replaces its row, so that the history is that of an uninterrupted training.
    It comes before the backup in the list: what the backup says is done is in the history.

    Args:
        folder: the run's.
        environment: written to `environment.json` with the seconds of training added.
    """

    def __init__(self, folder: RunFolder, environment: dict[str, Any]) -> None:
        super().__init__()
        self.folder = folder
        self.environment = environment
        self.rows: list[dict[str, float]] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Reads what an interrupted training left."""
        del logs
        if self.folder.history.exists():
            with self.folder.history.open(newline="", encoding="utf-8") as file:
                self.rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
        if self.folder.environment.exists():
            recorded = json.loads(self.folder.environment.read_text(encoding="utf-8"))
            self.environment["training_seconds"] = recorded["training_seconds"]
        self.clock = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the epoch's row and, if it is the best, the student."""
        row = {"epoch": epoch + 1, **{key: float(value) for key, value in (logs or {}).items()}}
        self.rows = [old for old in self.rows if old["epoch"] <= epoch]
        best = max((old.get("val_accuracy", 0.0) for old in self.rows), default=-1.0)
        if row.get("val_accuracy", -1.0) > best and isinstance(self.model, Distiller):
            save_network(self.folder.best, self.model.student)
        self.rows.append(row)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[-1]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({**old, "epoch": int(old["epoch"])} for old in self.rows)
        write_text(self.folder.history, text.getvalue())
        now = time.monotonic()
        self.environment["training_seconds"] += now - self.clock
        self.clock = now
        write_json(self.folder.environment, self.environment)


class Reporter(keras.callbacks.Callback):
    """Tells an observer how far the training is.

    Args:
        tell: called with the number of epochs done and the epoch's logs.
    """

    def __init__(self, tell: Any) -> None:
        super().__init__()
        self.tell = tell

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Tells of the epochs that an interrupted training has done already."""
        self.tell(self.model._initial_epoch or 0, logs or {})

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Tells of the epoch."""
        self.tell(epoch + 1, logs or {})
