"""Independent runs side by side, each in a process of its own."""

from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import Any

from spkd_keras.experiment import ClearError, ExperimentError
from spkd_keras.messages import named
from spkd_keras.observer import Observer
from spkd_keras.storage import BusyError
from spkd_keras.training.folder import RunFolder
from spkd_keras.training.interruption import Interruption
from spkd_keras.training.processes import Worker, ending

Job = Callable[[RunFolder, Observer, Interruption], None]


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
        ExperimentError: if a run met what the next one would meet too. The others write their states.
        StorageError: likewise.
        BusyError: after all others, if another process is at one.
    """
    waiting = list(runs)
    reasons: dict[str, str] = {}
    active: dict[Any, Worker] = {}
    ending_all = False
    errors: list[Exception] = []
    busy: list[BusyError] = []
    try:
        with interruption.deferred():
            while active or (waiting and not ending_all):
                while waiting and len(active) < jobs and not ending_all:
                    folder = waiting.pop(0)
                    worker = Worker(folder.path.name, _do, job, folder)
                    active[worker.connection] = worker
                for connection in wait(list(active), timeout=0.5):
                    try:
                        _listen(connection, active, observer, reasons, ending_all)
                    except BusyError as error:
                        busy.append(error)
                    except (ExperimentError, ClearError) as error:  # what the next run would meet too
                        errors.append(error)
                if (errors or interruption.received is not None) and not ending_all:
                    ending_all = True
                    for worker in active.values():
                        worker.terminate()  # each writes its state
    finally:
        for worker in active.values():
            worker.terminate()
        for worker in active.values():
            worker.end()
    if errors or busy:
        raise [*errors, *busy][0]
    return reasons


def _listen(
    connection: Any, active: dict[Any, Worker], observer: Observer, reasons: dict[str, str], ending_all: bool
) -> None:
    """Takes one message of a run, or its end."""
    worker = active[connection]
    message = worker.receive()
    if message is None:
        del active[connection]
        code, said = worker.end()
        if code and worker.name not in reasons and not ending_all:
            again = " The same command continues." if code < 0 else ""
            reasons[worker.name] = ending(code) + again + (f" It said: {said}" if said else "")
            observer.failed(worker.name, reasons[worker.name])
        return
    event, details = message
    if event == "failed":
        reasons[worker.name] = details[1]
    getattr(observer, event)(*details)


def _do(job: Job, folder: RunFolder, observer: Observer, interruption: Interruption) -> None:
    """Does one run, in its own process."""
    try:
        job(folder, observer, interruption)
    except (ExperimentError, ClearError):
        raise
    except Exception as error:
        observer.failed(folder.path.name, named(error))
