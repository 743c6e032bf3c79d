"""The chief of a search: gives trials to workers by KerasTuner's protocol, and looks after them."""

import os
import threading
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path

from spkd_keras.experiment import ClearError, ExperimentError
from spkd_keras.observer import Observer
from spkd_keras.ports import LOOPBACK
from spkd_keras.search.distributed import ADDRESS, PORT, TUNER_ID, Signs, variables, without_prints
from spkd_keras.search.oracles import ENDED
from spkd_keras.search.tuner import DistillationTuner, finished, read_outcome, trial_name
from spkd_keras.training.interruption import Interruption
from spkd_keras.training.processes import Worker, ending

LOOK = 0.5  # seconds between two looks at the workers
PATIENCE = 60.0  # seconds without a sign of life
MOST_DEATHS = 5  # of a worker, without a trial that ended in between; a trial fails before it gets so far

Job = Callable[[Observer, Interruption], None]


class SearchFailedError(ClearError, RuntimeError):
    """No trial of a search succeeded, or its workers do not live. The message is one clear line."""


class Chief:
    """Leads the workers of a search.

    KerasTuner's chief answers them. This one says which worker is waited for, and starts those of its own machine, anew
    where one dies: with the same id KerasTuner 1.4.8 gives it the trial that it was at.

    Args:
        tuner: of no worker.
        folder: of the search.
        observer: is told how it goes.
        interruption: of this process; a signal is passed on, and the workers write their states.
    """

    def __init__(self, tuner: DistillationTuner, folder: Path, observer: Observer, interruption: Interruption) -> None:
        self.tuner, self.observer, self.interruption = tuner, observer, interruption
        self.signs = Signs(folder, PATIENCE)
        self._workers: dict[str, Worker] = {}
        self._deaths: dict[str, int] = {}
        self._ended = 0
        self._lost: set[str] = set()
        self._told = {trial_id for trial_id, trial in tuner.oracle.trials.items() if trial.status in ENDED}
        self._failure: BaseException | None = None

    def lead(self, workers: int, job: Job) -> None:
        """Serves until the search is done.

        Args:
            workers: how many to start on this machine; 0 if they are started elsewhere.
            job: what each does; importable by its name.

        Raises:
            Interrupted: if a signal came.
            SearchFailedError: if the port cannot be listened on, or a worker dies again and again.
            StorageError: if a worker cannot write a file.
        """
        server = threading.Thread(target=self._serve, daemon=True)
        server.start()
        if not workers:
            self.observer.noticed(f"Giving trials to workers that ask on {os.environ[ADDRESS]}:{os.environ[PORT]}.")
        try:
            with self.interruption.deferred(), without_prints():
                for index in range(workers):
                    self._start(f"worker{index}", job)
                while server.is_alive() and (self._workers or not workers):
                    self._look(job)
                    if self.interruption.received is not None or self._is_left_alone():
                        break
                if not workers:
                    self._tell_ended()
        finally:
            self._stop()
        if self._failure is not None:
            raise SearchFailedError(
                f"The chief cannot serve on {os.environ[ADDRESS]}:{os.environ[PORT]}: {self._failure}. "
                "The same command continues."
            ) from self._failure

    def _serve(self) -> None:
        try:
            self.tuner.search(verbose=0)
        except Exception as error:
            self._failure = error

    def _look(self, job: Job) -> None:
        """Takes what the workers tell, starts anew those that died, and names those that are silent."""
        connections = {worker.connection: worker for worker in self._workers.values()}
        if connections:
            for connection in wait(list(connections), timeout=LOOK):
                self._listen(connections[connection], job)  # type: ignore[index]
        else:
            threading.Event().wait(LOOK)
            self._tell_ended()
        ongoing = dict(self.tuner.oracle.ongoing_trials)
        for tuner_id in sorted({*self.tuner.oracle.tuner_ids, *ongoing}):
            self._tell_if_lost(tuner_id, trial_name(ongoing[tuner_id].trial_id) if tuner_id in ongoing else None)

    def _is_left_alone(self) -> bool:
        """Whether all trials have ended, and the workers that were not told so are lost: KerasTuner 1.4.8 waits on."""
        oracle = self.tuner.oracle
        if not oracle.is_over or not self._lost & oracle.tuner_ids:
            return False
        oracle.tuner_ids -= self._lost
        return not oracle.tuner_ids

    def _tell_ended(self) -> None:
        """Tells of the trials that workers elsewhere have ended since the last time; those here tell themselves."""
        for trial_id, trial in list(self.tuner.oracle.trials.items()):
            if trial.status in ENDED and trial_id not in self._told:
                self._told.add(trial_id)
                outcome = read_outcome(Path(self.tuner.get_trial_dir(trial_id)))
                if "validation_error" in outcome:
                    self.observer.tried(trial_name(trial_id), outcome)
                else:
                    self.observer.failed(trial_name(trial_id), outcome.get("failed", "no reason is known"))

    def _tell_if_lost(self, tuner_id: str, trial: str | None) -> None:
        lost = self.signs.lost(tuner_id)
        if lost and tuner_id not in self._lost:
            self._lost.add(tuner_id)
            where, then = f"at {trial}", ": its trial goes on"
            if trial is None:
                where, then = "between trials", ", or leave the rest to others"
            self.observer.noticed(
                f"Waiting for {tuner_id}, which is {where} and has given no sign of life for {PATIENCE:.0f} s. "
                f"Start it again with {TUNER_ID}={tuner_id}{then}."
            )
        elif not lost and tuner_id in self._lost:
            self._lost.discard(tuner_id)
            self.observer.noticed(f"{tuner_id} is back.")

    def _listen(self, worker: Worker, job: Job) -> None:
        """Takes one message of a worker, or its end."""
        message = worker.receive()
        if message is None:
            self._bury(worker, job)
        elif message[0] != "planned":  # the chief planned all
            event, details = message
            getattr(self.observer, event)(*details)

    def _bury(self, worker: Worker, job: Job) -> None:
        code, said = worker.end()
        del self._workers[worker.name]
        if not code or self.interruption.received is not None:
            return
        ended = len(finished(self.tuner.oracle))
        if ended > self._ended:
            self._deaths.clear()
        self._ended = ended
        deaths = self._deaths[worker.name] = self._deaths.get(worker.name, 0) + 1
        # What one that was killed said last is a notice of TensorFlow's.
        why = ending(code) + (f" It said: {said}" if said and code > 0 else "")
        if deaths >= MOST_DEATHS:
            raise SearchFailedError(
                f"{worker.name} died {deaths} times, and no trial ended meanwhile: {why} The same command continues."
            )
        self.observer.noticed(f"{worker.name} is started again, and goes on with its trial: {why}")
        self._start(worker.name, job)

    def _start(self, tuner_id: str, job: Job) -> None:
        self._workers[tuner_id] = Worker(tuner_id, _work, job, tuner_id, int(os.environ[PORT]))

    def _stop(self) -> None:
        """Ends the workers that are left, each after it has written its state."""
        for worker in self._workers.values():
            worker.terminate()
        for worker in self._workers.values():
            worker.end()
        self._workers.clear()


def _work(job: Job, tuner_id: str, port: int, observer: Observer, interruption: Interruption) -> None:
    """Does a worker's job, in its own process."""
    try:
        with variables(tuner_id, LOOPBACK, port):
            job(observer, interruption)
    except ExperimentError as error:  # such as another process at its trial, which may soon be gone
        raise SystemExit(str(error)) from None
