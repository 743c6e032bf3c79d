"""The state of a training on the disk, from which it goes on bit for bit after whatever ended it."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import keras
import numpy as np

from spkd_keras.distiller import Distiller, NotFiniteError
from spkd_keras.experiment import Checkpoints
from spkd_keras.messages import one_line
from spkd_keras.storage import PARTIAL, replace
from spkd_keras.training.devices import Devices
from spkd_keras.training.interruption import SIGNALS, Interruption

ASK_EVERY = 10  # batches, between processes
KEPT = 2  # so that one is left if the newest is damaged
PROGRESS, ENTRIES = "progress", "entries"  # in a checkpoint: what the recorder keeps, and how many arrays there are


class Position(NamedTuple):
    """Where a training is: epochs that are done, and batches of the next one."""

    epoch: int = 0
    batch: int = 0


class Checkpointer(keras.callbacks.Callback):
    """Writes the whole state after each epoch, and after so many steps or minutes, and when a signal comes.

    A checkpoint is an .npz archive, whose entries carry checksums: the weights of student and adapters, the terms'
    weights, random states, the optimizer's slots and step, the metrics' sums, and what the recorder keeps. It is
    written under another name, brought to the disk and renamed. The last two are kept.

    Keras' `BackupAndRestore` (3.15) writes the weights and the epoch one after the other, so that a kill between the
    two repeats an epoch, and begins an epoch anew where it was saved in its middle. It comes behind the recorder in the
    list: what a checkpoint says is done is in the other files.

    Args:
        folder: where the checkpoints are.
        settings: when they are written.
        steps: batches of an epoch.
        interruption: is looked at before each batch.
        progress: gives what the recorder keeps, as plain data.
        warn: is told of a damaged checkpoint.
        devices: of several processes the first writes, and all go on from what it wrote.

    Attributes:
        begun: where the present `fit` began.
    """

    def __init__(
        self,
        folder: Path,
        settings: Checkpoints,
        steps: int,
        interruption: Interruption,
        progress: Callable[[], dict[str, Any]],
        warn: Callable[[str], None],
        devices: Devices,
    ) -> None:
        super().__init__()
        self.folder, self.settings, self.steps = folder, settings, steps
        self.interruption, self.progress, self.warn = interruption, progress, warn
        self.devices = devices
        self.begun = Position()
        self._metrics: list[np.ndarray] = []
        self._trained: dict[str, np.ndarray] = {}
        self._written = time.monotonic()
        self._stopping = False

    # --- reading -------------------------------------------------------------------------------------------------

    def restore(self, distiller: Distiller) -> tuple[Position, dict[str, Any]]:
        """Loads the newest checkpoint that is whole.

        Returns:
            Where it was written and what the recorder kept; the beginning and nothing if there is none.

        Raises:
            RuntimeError: if what is in it is not the state of this training.
        """
        self.begun, self._metrics = Position(), []
        self.devices.share(self.folder)
        for file in self.folder.glob(f"{PARTIAL}*"):  # what a kill left
            file.unlink(missing_ok=True)
        files = _newest_first(self.folder)
        for index, file in enumerate(files):
            try:
                with file.open("rb") as content:  # NumPy (2.4) leaves open what it cannot read, given a path
                    state = _read(content)
            except OSError:  # that it cannot be read at all is another matter
                raise
            except Exception as error:  # whatever zipfile and NumPy make of a file that is not whole
                left = "Using the one before." if index + 1 < len(files) else "Beginning anew."
                self.warn(f"The checkpoint {file} is damaged ({one_line(error)}). {left}")
                file.unlink()
                continue
            self._assign(_variables(distiller), [state[key] for key in state if key.startswith("state/")])
            self._metrics = [state[key] for key in state if key.startswith("metrics/")]
            self.begun = _position(file)
            return self.begun, json.loads(str(state[PROGRESS]))
        return self.begun, {}

    def restored_metrics(self, distiller: Distiller) -> dict[str, float]:
        """Puts the metrics back to where the checkpoint was written, and returns their values."""
        self._assign(distiller.metrics_variables, self._metrics)
        return {name: float(value) for name, value in distiller.get_metrics_result().items()}

    def _assign(self, variables: list[Any], values: list[np.ndarray]) -> None:
        """Puts values where they were. They have no names that two versions, or two processes, would give alike."""
        if [tuple(variable.shape) for variable in variables] != [value.shape for value in values]:
            raise RuntimeError(
                f"The checkpoints in {self.folder} are of another training than this one: {len(values)} variables, "
                f"here {len(variables)}, or of other sizes. Another version of spkd_keras wrote them: go on with that "
                "one, or delete the folder to begin the run anew."
            )
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)

    # --- writing -------------------------------------------------------------------------------------------------

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Gives an epoch that is entered in its middle the sums of its first part."""
        del logs
        self.epoch = epoch
        if epoch == self.begun.epoch and self.begun.batch:
            self.restored_metrics(self.model)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the state if it is time to."""
        del logs
        minutes, steps = self.settings.minutes, self.settings.steps
        due = minutes is not None and time.monotonic() - self._written >= 60 * minutes
        first = self.begun.batch if self.epoch == self.begun.epoch else 0
        position = Position(self.epoch, first + batch)
        due = self._agreed(due, batch)
        due = due or (steps is not None and position.batch % steps == 0)
        if batch and (due or self._stopping):
            self._write(position, self._state())
        if self._stopping:
            self.interruption.stop()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Keeps the state at the end of an epoch's training, since the evaluation empties the metrics."""
        del logs
        self._trained = self._state()

    def on_test_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the kept state if a signal came."""
        del logs
        self._agreed(False, batch)
        if self._stopping:
            self._write(Position(self.epoch, self.steps), self._trained)
            self.interruption.stop()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the state of the whole epoch; ends a `fit` that began within one."""
        del logs
        self._trained = {}
        self._write(Position(epoch + 1), self._state())
        self._agreed(False, 0)
        if self._stopping:
            self.interruption.stop()
        if self.begun.batch:
            self.model.stop_training = True

    def _agreed(self, due: bool, batch: int) -> bool:
        """Whether the state is due for any of the processes; a signal to one of them is one to all.

        They ask each other now and then, since the question waits for the steps so far.
        """
        if self.devices.workers > 1:
            if batch % ASK_EVERY:
                self._stopping = False
                return False
            signals = [int(self.interruption.received == number) for number in SIGNALS]
            wanted, *received = self.devices.counts([int(due), *signals])
            due = wanted > 0
            for number, times in zip(SIGNALS, received, strict=True):
                self.interruption.received = number if times else self.interruption.received
        self._stopping = self.interruption.received is not None
        return due

    def remove(self) -> None:
        """Removes all checkpoints."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _state(self) -> dict[str, np.ndarray]:
        state = {f"state/{index}": np.array(value) for index, value in enumerate(_variables(self.model))}
        return state | {f"metrics/{index}": np.array(v) for index, v in enumerate(self.model.metrics_variables)}

    def _write(self, position: Position, state: dict[str, np.ndarray]) -> None:
        failure = self.model.step_guard.failure()
        if failure:  # a state after steps that were not applied is of no use
            raise NotFiniteError(self.epoch, *failure)
        self._written = time.monotonic()
        if not self.devices.chief:
            return
        file = self.folder / f"epoch-{position.epoch}-batch-{position.batch}.npz"
        arrays: dict[str, Any] = {ENTRIES: len(state) + 2, **state, PROGRESS: np.array(json.dumps(self.progress()))}

        def write(partial: Path) -> None:
            with partial.open("wb") as content:
                np.savez(content, **arrays)

        replace(file, write)
        for old in _newest_first(self.folder)[KEPT:]:
            old.unlink()


def _read(file: BinaryIO) -> dict[str, np.ndarray]:
    """Reads a checkpoint's arrays in their order, each checked by its checksum."""
    with np.load(file) as arrays:
        # NumPy reads what an entry's header asks for, and then not its end, at which zipfile would check it.
        if arrays.zip.testzip() is not None:
            raise ValueError("a checksum is wrong")
        state = dict(arrays)
    # Damage to the archive's own list may make some of them vanish. Archives of before did not tell their number.
    if PROGRESS not in state or len(state) != state.get(ENTRIES, len(state)):
        raise ValueError("arrays are missing")
    return state


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("epoch-*.npz"), key=_position, reverse=True)


def _position(file: Path) -> Position:
    _, epoch, _, batch = file.stem.split("-")
    return Position(int(epoch), int(batch))


def _variables(distiller: Distiller) -> list[Any]:
    """All that a training goes on from, each once, but for the metrics."""
    metrics = {id(variable) for variable in distiller.metrics_variables}
    every = [*distiller.variables, *distiller.optimizer.variables]
    return list({id(variable): variable for variable in every if id(variable) not in metrics}.values())
