"""What is written while a network trains, and how a training that was interrupted goes on."""

import csv
import io
import json
import shutil
import time
from collections.abc import Callable
from typing import Any

import keras

from spkd_keras.distiller import Distiller
from spkd_keras.training.folder import RunFolder, replace, save_network, write_json, write_text


class Backup(keras.callbacks.Callback):
    """Keeps the state of the last whole epoch, in one file whose name has the number of epochs done.

    Keras' `BackupAndRestore` (3.15) writes the weights and the epoch one after the other, so that a kill between the
    two repeats an epoch, and does not recover from one while the first weights are written.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.folder = folder.backup

    def restore(self, distiller: Distiller) -> int:
        """Loads the newest state, if there is one, and returns the number of epochs done."""
        done = max((int(file.name.split("-")[1].split(".")[0]) for file in self.folder.glob("epoch-*")), default=0)
        if done:
            distiller.load_weights(self._file(done))
        return done

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the state, then forgets the one before."""
        del logs
        self.folder.mkdir(exist_ok=True)
        replace(self._file(epoch + 1), self.model.save_weights)
        self._file(epoch).unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes all states."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, done: int) -> Any:
        return self.folder / f"epoch-{done}.weights.h5"


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

    def resume(self, epochs_done: int) -> None:
        """Takes over what an interrupted training wrote of the epochs that count; nothing if it starts anew."""
        if epochs_done:
            with self.folder.history.open(newline="", encoding="utf-8") as file:
                rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
            self.rows = [row for row in rows if row["epoch"] <= epochs_done]
            recorded = json.loads(self.folder.environment.read_text(encoding="utf-8"))
            self.environment["training_seconds"] = recorded["training_seconds"]

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Starts the clock."""
        del logs
        self.clock = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the epoch's row and, if it is the best, the student."""
        row = {"epoch": epoch + 1, **{key: float(value) for key, value in (logs or {}).items()}}
        best = max((old.get("val_accuracy", 0.0) for old in self.rows), default=-1.0)
        if row.get("val_accuracy", -1.0) > best:
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

    def __init__(self, tell: Callable[[int, dict[str, float]], None]) -> None:
        super().__init__()
        self.tell = tell

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Tells of the epoch."""
        self.tell(epoch + 1, logs or {})
