"""KerasTuner's tuner, whose trials train as runs do."""

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras_tuner
from keras_tuner import errors
from keras_tuner.engine import trial as trials

from spkd_keras.distiller import Distiller
from spkd_keras.experiment import Experiment, ExperimentError, read_record
from spkd_keras.messages import named
from spkd_keras.observer import Observer, Renamed
from spkd_keras.search.distributed import without_prints
from spkd_keras.search.hypermodel import DistillationHyperModel
from spkd_keras.search.oracles import ENDED
from spkd_keras.storage import StorageError, locked, write_json, write_text
from spkd_keras.training.folder import RunFolder, save_network
from spkd_keras.training.interruption import Interruption
from spkd_keras.training.train import Training

TRIALS = "trials"  # KerasTuner's folder in that of the search
OUTCOME = "outcome.json"
BEGUN = "begun.txt"
MOST_DEATHS = 3  # of processes, before a trial counts as failed
WAIT = 0.2  # seconds before a worker asks for a trial again


class DistillationTuner(keras_tuner.Tuner):
    """Trains the points that an oracle chooses, each in a folder of its own.

    A trial trains as `spkd run` does: it goes on bit for bit where a kill stopped it, and a continuation of Hyperband
    goes on from the whole state in which the earlier trial ended, the optimizer's included. Its value is that of the
    last epoch, as a run's `validation_error` is.

    Args:
        oracle: of `make_oracle`.
        hypermodel: builds the students.
        folder: of the search.
        observer: is told how it goes.
        interruption: is looked at while trials train.
    """

    def __init__(
        self,
        oracle: keras_tuner.Oracle,
        hypermodel: DistillationHyperModel,
        folder: Path,
        observer: Observer,
        interruption: Interruption,
    ) -> None:
        self.observer, self.interruption = observer, interruption
        with without_prints():  # that it goes on
            super().__init__(oracle, hypermodel, directory=str(folder), project_name=TRIALS)
        if not Path(self._get_tuner_fname()).exists():
            self.save()  # else a search that is killed in its first trial begins anew

    def _populate_initial_space(self) -> None:
        """Does nothing: the oracle was given the whole space."""

    def _get_tuner_fname(self) -> str:
        """One name for all roles: a search that began in one process may go on in several, and the other way round."""
        return str(Path(self.project_dir) / "tuner.json")

    def save(self) -> None:
        """Writes the oracle's state, and that the search has begun; a worker leaves both to its chief."""
        if not self._is_worker():
            self.oracle.save()
            write_text(Path(self._get_tuner_fname()), json.dumps(self.get_state()))

    def pre_create_trial(self) -> None:
        """Gives the chief, and this machine, time: KerasTuner 1.4.8 asks again without a pause while it has to wait."""
        self.interruption.stop()
        if self._is_worker():
            time.sleep(WAIT)

    def run_trial(self, trial: trials.Trial, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Trains one point, and returns what it came to.

        Raises:
            FailedTrialError: if it cannot be trained; the reason is kept in its folder.
            FatalError: KerasTuner's, if a file cannot be written or another process is at the trial.
        """
        del args, kwargs
        name, folder = trial_name(trial.trial_id), Path(self.get_trial_dir(trial.trial_id))
        earlier = _outcome(folder)
        if earlier is not None:  # a kill came before the oracle knew
            return earlier
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(folder))
            except ExperimentError as error:  # two workers with one id, for example
                raise errors.FatalError(str(error)) from error
            self._train_or_fail(trial, name, folder)
        return _outcome(folder) or {}

    def _train_or_fail(self, trial: trials.Trial, name: str, folder: Path) -> None:
        try:
            run = RunFolder(folder.parent, self.hypermodel.point(trial.hyperparameters), folder)
            with self.interruption.deferred(), _counted(run):
                self._train(trial, name, run)
        except StorageError as error:  # what the next trial would meet too
            raise errors.FatalError(str(error)) from error
        except Exception as error:
            reason = named(error)
            write_json(folder / OUTCOME, {"failed": reason})
            self.observer.failed(name, reason)
            raise errors.FailedTrialError(reason) from error

    def _train(self, trial: trials.Trial, name: str, run: RunFolder) -> None:
        hypermodel: DistillationHyperModel = self.hypermodel
        first, last = _epochs(trial.hyperparameters, run.experiment)
        self.observer.started(name, last)
        run.create()
        if first and not run.has_checkpoint:
            self._take_over(str(trial.hyperparameters.values["tuner/trial_id"]), run)
        distiller = hypermodel.build(trial.hyperparameters)
        observer = Renamed(self.observer, lambda _: name)
        training = Training(run, hypermodel.splits, distiller, observer, self.interruption, None, epochs=last)
        training.run()
        if run.experiment.schedule.ema:
            training.renew_statistics(distiller.student)
        save_network(run.student, distiller.student)
        results = _results(training, distiller, len(hypermodel.held_out))
        results |= {"epochs": last, "parameters": distiller.student.count_params()}
        write_json(run.path / OUTCOME, results)
        if last == run.experiment.schedule.epochs:  # nothing will go on from it
            run.tidy()
        self.observer.tried(name, results)

    def _take_over(self, earlier: str, run: RunFolder) -> None:
        """Copies the state in which the earlier trial ended."""
        for file in (Path(self.get_trial_dir(earlier)) / run.backup.name).glob("epoch-*"):
            shutil.copyfile(file, run.backup / file.name)


@contextlib.contextmanager
def _counted(run: RunFolder) -> Iterator[None]:
    """Counts how often a trial began and its process died before a checkpoint was written.

    Raises:
        RuntimeError: if that was too often: a point that takes too much memory would end every process that tries it.
    """
    file = run.path / BEGUN
    begun = int(file.read_text(encoding="utf-8")) if file.exists() and not run.has_checkpoint else 0
    if begun >= MOST_DEATHS:
        file.unlink()
        raise RuntimeError(f"Its process died {begun} times before a first checkpoint, perhaps for want of memory.")
    write_text(file, str(begun + 1))
    try:
        yield
    except (Exception, KeyboardInterrupt):
        file.unlink(missing_ok=True)
        raise
    file.unlink(missing_ok=True)


def _epochs(hp: keras_tuner.HyperParameters, point: Experiment) -> tuple[int, int]:
    """Returns from where and up to where a trial trains; a part of the schedule in a round of Hyperband."""
    first, last = hp.values.get("tuner/initial_epoch", 0), hp.values.get("tuner/epochs", point.schedule.epochs)
    return int(first), min(int(last), point.schedule.epochs)


def _results(training: Training, distiller: Distiller, images: int) -> dict[str, float]:
    """Returns the values on the held-out images in the last epoch; of averaged weights, which replace the others."""
    values = {name: value for name, value in training.recorder.rows[-1].items() if name.startswith("val_")}
    if training.experiment.schedule.ema:
        found = distiller.evaluate(training.validation, return_dict=True, verbose=0)
        values = {f"val_{name}": float(value) for name, value in found.items()}
    # Keras' accuracy is a float32; the error is a number of images.
    return values | {"validation_error": round(images * (1 - values["val_accuracy"])) / images}


def read_outcome(folder: Path) -> dict[str, Any]:
    """Returns what a trial came to, or why it failed under `failed`, from its folder; nothing if it has not ended."""
    return read_record(folder / OUTCOME, anew(folder.parents[1])) or {}


def anew(search: Path) -> str:
    """Returns what to do about the folder of a search in which a record is damaged."""
    return f"Delete {search}, and `spkd tune` searches anew."


def _outcome(folder: Path) -> dict[str, float] | None:
    """Returns the values of a trial that trained to its end; None if it did not."""
    outcome = read_outcome(folder) or {"failed": ""}
    return None if "failed" in outcome else {key: v for key, v in outcome.items() if key.startswith("val_")}


def trial_name(trial_id: str) -> str:
    """Returns a trial's name, `trial 3`; the first is `trial 0`."""
    return f"trial {int(trial_id)}"


def finished(oracle: keras_tuner.Oracle) -> list[str]:
    """Returns the names of the trials that have ended, well or not."""
    ended = (trial_id for trial_id, trial in oracle.trials.items() if trial.status in ENDED)
    return [trial_name(trial_id) for trial_id in sorted(ended, key=int)]
