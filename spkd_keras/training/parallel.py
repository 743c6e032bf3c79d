"""Independent runs side by side, each in a process of its own."""

from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from spkd_keras.experiment import ClearError, ExperimentError
from spkd_keras.observer import Observer
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
    """
    waiting = list(runs)
    reasons: dict[str, str] = {}
    active: dict[Any, Worker] = {}
    told = False
    try:
        with interruption.deferred():
            while active or (waiting and not told):
                while waiting and len(active) < jobs and not told:
                    folder = waiting.pop(0)
                    worker = Worker(folder.path.name, _do, job, folder)
                    active[worker.connection] = worker
                for connection in wait(list(active), timeout=0.5):
                    _listen(connection, active, observer, reasons, interruption.received is not None)
                if interruption.received is not None and not told:
                    told = True
                    for worker in active.values():
                        worker.terminate()
    finally:
        for worker in active.values():
            worker.terminate()  # each writes its state
        for worker in active.values():
            worker.end()
    return reasons


def _listen(
    connection: Any, active: dict[Connection, Worker], observer: Observer, reasons: dict[str, str], told: bool
) -> None:
    """Takes one message of a run, or its end."""
    worker = active[connection]
    message = worker.receive()
    if message is None:
        del active[connection]
        code, said = worker.end()
        if code and not told:
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
    except (ExperimentError, ClearError):  # what the next run would meet too
        raise
    except Exception as error:
        observer.failed(folder.path.name, f"{type(error).__name__}: {' '.join(str(error).split())}")
