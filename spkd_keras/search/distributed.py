"""KerasTuner's variables, by which a process knows that it is a chief or a worker, and signs of life."""

import contextlib
import io
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from spkd_keras.experiment import ExperimentError
from spkd_keras.storage import check_writable, write_text

ALONE, CHIEF, WORKER = "alone", "chief", "worker"
TUNER_ID, ADDRESS, PORT = "KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT"
WORKERS = "workers"  # folder of signs of life
BEAT = 2.0  # seconds between them


def role_here() -> str:
    """Returns what this process is, by KerasTuner's variables.

    Raises:
        ExperimentError: if some of them are set and not all, or a port is none.
    """
    given = {name: os.environ.get(name) for name in (TUNER_ID, ADDRESS, PORT)}
    if not any(given.values()):
        return ALONE
    missing = [name for name, value in given.items() if not value]
    if missing:
        raise ExperimentError(f"A search over several processes needs {', '.join(given)}. Missing: {missing[0]}.")
    port = str(given[PORT])
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ExperimentError(f"{PORT} must be a port's number. Received: {port}.")
    return CHIEF if CHIEF in str(given[TUNER_ID]) else WORKER


@contextlib.contextmanager
def variables(tuner_id: str, address: str, port: int) -> Iterator[None]:
    """Sets KerasTuner's variables, within."""
    new = {TUNER_ID: tuner_id, ADDRESS: address, PORT: str(port)}
    before = {name: os.environ.get(name) for name in new}
    os.environ.update(new)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def without_prints() -> contextlib.AbstractContextManager[Any]:
    """Drops what is printed to standard output, within: KerasTuner 1.4.8 prints each condition that it sends."""
    return contextlib.redirect_stdout(io.StringIO())


@contextlib.contextmanager
def heartbeat(folder: Path, tuner_id: str) -> Iterator[None]:
    """Writes signs of life into a search's folder, within."""
    check_writable(folder / WORKERS)
    file, ended = _sign(folder, tuner_id), threading.Event()

    def beat() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError):  # the training tells of a full disk
                write_text(file, str(time.time()))
            ended.wait(BEAT)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        file.unlink(missing_ok=True)


def _sign(folder: Path, tuner_id: str) -> Path:
    """Returns the file of a worker's signs of life; its id may be any text."""
    return folder / WORKERS / quote(tuner_id, safe="")


def wait_for_chief(oracle: Any) -> None:
    """Waits until a chief answers. KerasTuner 1.4.8 gives up after an hour, and a teacher may train for longer."""
    import grpc

    while True:
        try:
            oracle.get_space()
            return
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise


class Signs:
    """The signs of life of workers, by the clock of whoever looks.

    Args:
        folder: of the search.
        patience: seconds without one, after which a worker counts as lost.
    """

    def __init__(self, folder: Path, patience: float) -> None:
        self.folder, self.patience = folder, patience
        self._seen: dict[str, tuple[str, float]] = {}

    def lost(self, tuner_id: str) -> bool:
        """Whether a worker has given no new sign for too long."""
        file, now = _sign(self.folder, tuner_id), time.monotonic()
        text = ""
        with contextlib.suppress(OSError):
            text = file.read_text(encoding="utf-8")
        if tuner_id not in self._seen or self._seen[tuner_id][0] != text:
            self._seen[tuner_id] = text, now
        return now - self._seen[tuner_id][1] >= self.patience
