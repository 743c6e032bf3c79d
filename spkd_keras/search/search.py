"""A search from its beginning to its results, alone or as one of several processes."""

import contextlib
import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

import keras_tuner
import tensorflow as tf
from keras_tuner import errors

from spkd_keras import models
from spkd_keras.experiment import (
    OBJECTIVES,
    Experiment,
    ExperimentError,
    Space,
    check_objective,
    check_tuner,
    damaged,
    differences,
    label,
    read_record,
    validated,
)
from spkd_keras.observer import Observer
from spkd_keras.ports import LOOPBACK, free_ports
from spkd_keras.run_files import SEARCHED
from spkd_keras.search.chief import Chief
from spkd_keras.search.distributed import (
    ADDRESS,
    ALONE,
    CHIEF,
    PORT,
    WORKER,
    heartbeat,
    role_here,
    variables,
    wait_for_chief,
    without_prints,
)
from spkd_keras.search.hypermodel import DistillationHyperModel
from spkd_keras.search.oracles import DRAWS, make_oracle
from spkd_keras.search.results import TrialResult, is_used_up, read_trials, write_best
from spkd_keras.search.tuner import TRIALS, DistillationTuner, anew, finished, trial_name
from spkd_keras.storage import StorageError, check_writable, locked, write_json
from spkd_keras.training.folder import (
    DATA_DIGEST,
    START_DIGEST,
    RunFolder,
    check_same_data,
    check_same_start,
    start_digest,
    teacher_folder,
)
from spkd_keras.training.interruption import Interruption

RECORD = "search.json"
FINGERPRINT = "teacher_fingerprint"  # in it, once there is a teacher


class SearchResult(NamedTuple):
    """What a search came to.

    Attributes:
        folder: of the search.
        trials: the best first.
        best: the path of `best.yaml`; None if all trials failed.
        exhausted: why there are fewer trials than were asked for, as a sentence; None if there are not.
    """

    folder: Path
    trials: list[TrialResult]
    best: Path | None
    exhausted: str | None


class Search:
    """A search over a space, in the folder `<out>/<experiment.name>-search`.

    Args:
        experiment: at the first point of the space.
        space: what varies.
        out: folder of the runs.
        trials: how many points at most. The same search with more goes on.
        tuner: "random", "hyperband", "bayesian" or "grid".
        objective: "val_accuracy" or "val_loss".
        observer: is told how it goes.
        interruption: takes signals.

    Raises:
        ExperimentError: if there is no such tuner or objective, or too few trials.
    """

    def __init__(
        self,
        experiment: Experiment,
        space: Space,
        out: str | Path = "runs",
        *,
        trials: int,
        tuner: str = "random",
        objective: str = "val_accuracy",
        observer: Observer | None = None,
        interruption: Interruption | None = None,
    ) -> None:
        check_tuner(tuner)
        check_objective(objective)
        if trials < 1:
            raise ExperimentError(f"`trials` must be at least 1. Received: {trials}.")
        if tuner == "hyperband" and any(dimension.name == "schedule.epochs" for dimension in space.dimensions):
            raise ExperimentError("`schedule.epochs` cannot vary with hyperband, which chooses the epochs itself.")
        self.experiment, self.space, self.out = experiment, space, Path(out)
        self.trials, self.tuner_name, self.objective = trials, tuner, objective
        self.observer, self.interruption = observer or Observer(), interruption or Interruption()
        self.folder = self.out / f"{experiment.name}{SEARCHED}"
        self.hypermodel = DistillationHyperModel(experiment, space, out, self.observer, self.interruption)

    def run(self, workers: int = 0) -> SearchResult | None:
        """Searches, from wherever an earlier attempt came to.

        With KerasTuner's variables KERASTUNER_TUNER_ID, KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT set this
        process is the chief (its id has `chief` in it) or a worker.

        Args:
            workers: how many processes train trials side by side on this machine, led by this one; 0 for none.

        Returns:
            What it came to; None for a worker, whose chief knows.

        Raises:
            ExperimentError: if it cannot be searched as it is, before any training.
            Interrupted: if a signal came; the same call goes on.
            SearchFailedError: if the workers do not live.
            StorageError: if a file cannot be written.
        """
        role = role_here()
        if workers and role != ALONE:
            raise ExperimentError("--workers starts processes on this machine. Received: it, and KERASTUNER_TUNER_ID.")
        with self.interruption.listening():
            if role == WORKER:
                self._work()
                return None
            with locked(self.folder):
                return self._lead(role, workers, self._check_record())

    def _lead(self, role: str, workers: int, fingerprint: str | None) -> SearchResult:
        """Searches as the process that has the oracle, with the teacher of this fingerprint if trials had one."""
        self.hypermodel.check()
        check_writable(self.folder)
        record = self._record()
        record |= {DATA_DIGEST: self.hypermodel.splits.digest(), START_DIGEST: start_digest(self.experiment.student)}
        write_json(self.folder / RECORD, record | {FINGERPRINT: fingerprint})
        tf.config.experimental.enable_op_determinism()
        tuner = self._tuner()
        self._plan(tuner.oracle)
        fingerprint = self._check_teacher(fingerprint)
        write_json(self.folder / RECORD, record | {FINGERPRINT: fingerprint})
        if len(finished(tuner.oracle)) < self.trials:  # else a chief would wait for workers that have nothing to do
            self._do(tuner, role, workers)
        return self._result(tuner)

    def _do(self, tuner: DistillationTuner, role: str, workers: int) -> None:
        if role == ALONE and not workers:
            _search(tuner)
            return
        # A port that was free before the teacher trained may be taken now.
        with variables(CHIEF, LOOPBACK, *free_ports(1)) if workers else contextlib.nullcontext():
            chief = Chief(tuner, self.folder, self.observer, self.interruption)
            chief.lead(workers, functools.partial(_as_worker, self._arguments()))

    def _arguments(self) -> dict[str, Any]:
        """What a process needs to take part in this search."""
        return {
            "experiment": self.experiment,
            "space": self.space,
            "out": self.out,
            "trials": self.trials,
            "tuner": self.tuner_name,
            "objective": self.objective,
        }

    def _plan(self, oracle: keras_tuner.Oracle) -> None:
        teacher = self._teacher_run()
        names = [] if teacher is None else [teacher.path.name]
        done = finished(oracle)
        more = [trial_name(str(index)) for index in range(self.trials)]
        self.observer.planned(
            [*names, *dict.fromkeys([*done, *more])],
            [*(names if teacher is not None and teacher.finished else []), *done],
        )

    def _work(self, quiet: bool = False) -> None:
        """Trains trials that a chief on this or another machine gives out; quiet, if that chief started it."""
        tuner = self._tuner()
        if not quiet:
            self.observer.noticed(f"Waiting for a chief on {os.environ[ADDRESS]}:{os.environ[PORT]}.")
        wait_for_chief(tuner.oracle)
        fingerprint = self._check_record()
        teacher = self._teacher_run()
        if not (self.folder / RECORD).exists() or (teacher is not None and not teacher.finished):
            raise ExperimentError(
                f"{self.folder} has not what the chief wrote. --out must be a folder that all processes share."
            )
        tf.config.experimental.enable_op_determinism()
        self._check_teacher(fingerprint)
        self.observer.planned([trial_name(str(index)) for index in range(self.trials)], [])
        with heartbeat(self.folder, tuner.tuner_id):
            _search(tuner)

    def _teacher_run(self) -> RunFolder | None:
        if not self.hypermodel.needs_teacher:
            return None
        return teacher_folder(self.out / self.experiment.name, self.experiment)

    def _tuner(self) -> DistillationTuner:
        hp = keras_tuner.HyperParameters()
        self.hypermodel.declare(hp)
        objective = keras_tuner.Objective(self.objective, OBJECTIVES[self.objective])
        epochs = self.experiment.schedule.epochs
        oracle = make_oracle(self.tuner_name, objective, hp, self.trials, self.hypermodel.seed, epochs)
        oracle.verbose = 0
        oracle.keeps_workers = role_here() == CHIEF  # whose variables it has from its user: its workers live elsewhere
        return DistillationTuner(oracle, self.hypermodel, self.folder, self.observer, self.interruption)

    def _record(self) -> dict[str, Any]:
        return {
            "tuner": self.tuner_name,
            "objective": self.objective,
            "space": {d.name: label([d.kind, *d.values, d.log, d.step, d.default]) for d in self.space.dimensions},
            "methods": list(self.space.methods),
            "experiment": self.experiment.model_copy(update={"seeds": self.experiment.seeds[:1]}).to_yaml(),
        }

    def _check_record(self) -> str | None:
        """Checks that the folder, if something is in it, is this very search's; returns its teacher's fingerprint."""
        before = read_record(self.folder / RECORD, anew(self.folder))
        if before is None:
            return None
        import yaml

        now = self._record()
        if missing := now.keys() - before.keys():
            raise damaged(self.folder / RECORD, f"it has no {min(missing)}", anew(self.folder))
        old, new = (validated(Experiment, yaml.safe_load(r.pop("experiment")), RECORD) for r in (before, now))
        fields = [f"{key}: {before[key]} -> {now[key]}" for key in now if before[key] != now[key]]
        fields += differences(old, new)
        if fields:
            raise ExperimentError(
                f"{self.folder} holds another search ({'; '.join(fields)}). Nothing was changed. "
                "Choose another folder with --out, or another `name`."
            )
        trials = self.folder / TRIALS
        if any(trials.glob("*/outcome.json")) or any(trials.glob("*/backup/epoch-*")):
            check_same_data(self.folder, before.get(DATA_DIGEST), self.hypermodel.splits.digest())
            check_same_start(self.folder, before.get(START_DIGEST), self.experiment.student)
        fingerprint: str | None = before.get(FINGERPRINT)
        return fingerprint

    def _check_teacher(self, recorded: str | None) -> str | None:
        """Checks that trials so far had this teacher, whose file may have been replaced; returns its fingerprint.

        Args:
            recorded: the fingerprint of theirs; None if there was none.
        """
        teacher = self.hypermodel.teacher
        fingerprint = None if teacher is None else models.fingerprint(teacher)
        if None not in (recorded, fingerprint) and recorded != fingerprint:
            raise ExperimentError(
                f"{self.folder} was distilled from another teacher, fingerprint {recorded}. Received: one with "
                f"{fingerprint}. Choose another folder with --out."
            )
        return fingerprint

    def _result(self, tuner: DistillationTuner) -> SearchResult:
        trials = read_trials(tuner.oracle, self.hypermodel, self.folder / TRIALS)
        best = trials[0] if trials and trials[0].score is not None else None
        path = best and write_best(self.hypermodel, best, self.folder, self.experiment.seeds)
        return SearchResult(self.folder, trials, path, self._exhausted(trials))

    def _exhausted(self, trials: list[TrialResult]) -> str | None:
        if len(trials) >= self.trials:
            return None
        if self.tuner_name == "grid" or is_used_up(self.space, trials):
            return f"There are no more points than those of these {len(trials)}."
        return f"No new point was found after these {len(trials)}, drawn at random {DRAWS} times."


def _search(tuner: DistillationTuner) -> None:
    try:
        with without_prints():
            tuner.search(verbose=0)
    except errors.FatalError as error:
        if isinstance(error.__cause__, StorageError | ExperimentError):
            raise error.__cause__ from None
        raise


def _as_worker(arguments: dict[str, Any], observer: Observer, interruption: Interruption) -> None:
    """Takes part in a search in a process of its own."""
    Search(**arguments, observer=observer, interruption=interruption)._work(quiet=True)
