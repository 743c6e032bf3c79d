"""Processes that do a job each, and tell the process that started them how it goes."""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import IO, Any

from spkd_keras.experiment import ClearError, ExperimentError
from spkd_keras.observer import EVENTS, Observer
from spkd_keras.training.interruption import Interrupted, Interruption

RAISED = "raised"  # what comes beside them: an error for the user
CONTEXT = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork


class Sender(Observer):
    """Passes on all that it is told."""

    def __init__(self, connection: Connection) -> None:
        for event in EVENTS:
            setattr(self, event, partial(self._send, connection, event))

    @staticmethod
    def _send(connection: Connection, event: str, *details: Any) -> None:
        with suppress(BrokenPipeError):  # who listened is gone, and this process is about to be told
            connection.send((event, details))


class Worker:
    """A process at work. It writes its state and ends when it is told to, or when this process is gone.

    Args:
        name: of what it does.
        job: is called there with the arguments, an observer whose events come out of `receive`, and an interruption;
            importable by its name.
        *arguments: of the job.

    Attributes:
        name: as given.
        connection: is ready where `receive` would not wait.
    """

    def __init__(self, name: str, job: Callable[..., None], *arguments: Any) -> None:
        self.name = name
        self.connection, sender = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(target=_work, args=(job, arguments, sender))
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - open while the process is
        with _standard_error_to(self._errors):  # the process starts with it
            self._process.start()
        sender.close()

    def receive(self) -> tuple[str, tuple[Any, ...]] | None:
        """Returns the next event and its details; None at its end. Waits for it.

        Raises:
            ExperimentError: if that ended the job.
            ClearError: likewise.
        """
        try:
            event, details = self.connection.recv()
        except (EOFError, OSError):  # at its end, or in the middle of a message
            return None
        if event == RAISED:
            raise details[0]
        return event, details

    def terminate(self) -> None:
        """Tells it to write its state and to end."""
        self._process.terminate()

    def end(self) -> tuple[int, str]:
        """Waits for its end; returns the exit code and the last line that it wrote to standard error."""
        with suppress(EOFError, OSError):
            while True:  # what it still tells has to be taken, or it waits for ever
                self.connection.recv_bytes()
        self._process.join()
        self.connection.close()
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines()
        self._errors.close()
        return self._process.exitcode or 0, said[-1] if said else ""


def ending(code: int) -> str:
    """Says how a process ended, from its exit code."""
    if code < 0:
        hint = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-code).name}{hint}."
    return f"its process ended with exit code {code}."


@contextmanager
def _standard_error_to(file: IO[str]) -> Iterator[None]:
    """Lets what is written to file descriptor 2 go to a file, also by a process that is started within."""
    sys.stderr.flush()
    kept = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _work(job: Callable[..., None], arguments: tuple[Any, ...], connection: Connection) -> None:
    """Does the job, in its own process."""
    os.setsid()  # a Ctrl-C is for the parent, which passes it on once
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    # Whoever ends this process may tell the parent too, which passes it on.
    interruption = Interruption(patient=True)
    try:
        with interruption.listening():
            job(*arguments, Sender(connection), interruption)
    except Interrupted as error:
        os._exit(error.exit_code)
    except (ExperimentError, ClearError) as error:
        error.add_note(traceback.format_exc())  # for who asks for it: a traceback itself cannot be sent
        connection.send((RAISED, (error,)))


def _stop_with_parent() -> None:
    """Writes the state and ends when the parent is gone, even if it was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
