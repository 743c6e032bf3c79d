"""Independent runs side by side, each in a process of its own."""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import IO, Any, NamedTuple

from spkd_keras.observer import Observer
from spkd_keras.training.folder import RunFolder
from spkd_keras.training.interruption import Interrupted, Interruption

EVENTS = [name for name in vars(Observer) if not name.startswith("_")]

Job = Callable[[RunFolder, Observer, Interruption], None]


class _Active(NamedTuple):
    """A run at work: its name, its process, and what that writes to standard error, mostly TensorFlow's notices."""

    name: str
    process: Any
    errors: IO[str]


class Sender(Observer):
    """Passes on all that it is told."""

    def __init__(self, connection: Connection) -> None:
        for event in EVENTS:
            setattr(self, event, partial(self._send, connection, event))

    @staticmethod
    def _send(connection: Connection, event: str, *details: Any) -> None:
        connection.send((event, details))


def run_in_processes(
    runs: Sequence[RunFolder], job: Job, jobs: int, observer: Observer, interruption: Interruption
) -> dict[str, str]:
    """Does runs in processes, so many at a time; one that fails does not stop the others.

    The number of threads of each is that of a run alone, since the bits of a result depend on it.

    Args:
        runs: to do, in this order.
        job: does one run; importable by its name.
        jobs: how many at a time.
        observer: is told what each tells.
        interruption: of this process; a signal is passed on, and the runs write their states.

    Returns:
        Why the runs that failed did, by their names.

    Raises:
        Interrupted: if a signal came.
    """
    context = multiprocessing.get_context("spawn")
    waiting = list(runs)
    reasons: dict[str, str] = {}
    active: dict[Connection, _Active] = {}
    told = False
    try:
        with interruption.deferred():
            while active or (waiting and not told):
                while waiting and len(active) < jobs and not told:
                    folder = waiting.pop(0)
                    receiver, sender = context.Pipe(duplex=False)
                    process = context.Process(target=_do, args=(folder, job, sender))
                    errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - open while the run is
                    with standard_error_to(errors):  # the child starts with it
                        process.start()
                    sender.close()
                    active[receiver] = _Active(folder.path.name, process, errors)
                for connection in wait(list(active), timeout=0.5):
                    _listen(connection, active, observer, reasons, interruption.received is not None)
                if interruption.received is not None and not told:
                    told = True
                    for run in active.values():
                        run.process.terminate()
    except BaseException:
        for run in active.values():
            run.process.terminate()  # each writes its state
        raise
    return reasons


def _listen(
    connection: Any, active: dict[Connection, _Active], observer: Observer, reasons: dict[str, str], told: bool
) -> None:
    """Takes one message of a run, or its end."""
    name, process, errors = active[connection]
    try:
        event, details = connection.recv()
    except (EOFError, OSError):  # at its end, or in the middle of a message
        process.join()
        del active[connection]
        if process.exitcode and name not in reasons and not told:
            errors.seek(0)
            said = errors.read().strip().splitlines()
            reasons[name] = ending(process.exitcode) + (f" It said: {said[-1]}" if said else "")
            observer.failed(name, reasons[name])
        errors.close()
        return
    if event == "failed":
        reasons[name] = details[1]
    getattr(observer, event)(*details)


@contextmanager
def standard_error_to(file: IO[str]) -> Iterator[None]:
    """Lets what is written to file descriptor 2 go to a file, also by a process that is started within."""
    sys.stderr.flush()
    kept = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def ending(code: int) -> str:
    """Says how a process ended, from its exit code."""
    if code < 0:
        hint = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-code).name}{hint}. The same command continues."
    return f"its process ended with exit code {code}."


def _do(folder: RunFolder, job: Job, connection: Connection) -> None:
    """Does one run, in its own process."""
    os.setsid()  # a Ctrl-C is for the parent, which passes it on once
    threading.Thread(target=stop_with_parent, daemon=True).start()
    # Whoever ends this process may tell the parent too, which passes it on.
    sender, interruption = Sender(connection), Interruption(patient=True)
    try:
        with interruption.listening():
            job(folder, sender, interruption)
    except Interrupted as error:
        os._exit(error.exit_code)
    except Exception as error:
        sender.failed(folder.path.name, f"{type(error).__name__}: {' '.join(str(error).split())}")
        connection.close()


def stop_with_parent() -> None:
    """Writes the state and ends when the parent is gone, even if it was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
