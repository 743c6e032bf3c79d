"""KerasTuner's oracles, which choose the points, made to begin with the given point and to survive a kill anywhere."""

import functools
import json
import math
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner import oracles
from keras_tuner.engine.trial import Trial

from spkd_keras.storage import write_text

ENDED = ("COMPLETED", "FAILED")
UNLIMITED = 10**9
DRAWS = 1000  # without a new point, after which there is none; KerasTuner 1.4.8 draws 20, and misses points


class _Durable(keras_tuner.Oracle):
    """What all of them have in common.

    KerasTuner 1.4.8 writes its files in place, so that a kill can leave half of one, and a trial's file before its own:
    a trial that is finished is then repeated, or one that was about to begin counts and never runs. It begins with a
    random point, and gives up after three failed trials in a row.
    """

    _retry_queue: list[str]
    keeps_workers = False  # set for a chief whose workers live on when it ends, and come back with their ids

    has_no_more = False  # whether a worker was told that there are no more points

    def create_trial(self, tuner_id: str) -> Trial:
        """Gives a worker its trial, and keeps in mind when there was none."""
        trial = super().create_trial(tuner_id)
        self.has_no_more |= trial.status == "STOPPED"
        return trial

    @property
    def is_over(self) -> bool:
        """Whether all trials have ended, and none will begin."""
        return (self.has_no_more or len(self.trials) >= self.max_trials) and not (
            self.ongoing_trials or self._retry_queue
        )

    def save(self) -> None:
        """Writes the state whole or not at all."""
        write_text(Path(self._get_oracle_fname()), json.dumps(self.get_state()))

    def _save_trial(self, trial: Trial) -> None:
        write_text(Path(self._get_trial_dir(trial.trial_id)) / "trial.json", json.dumps(trial.get_state()))

    def reload(self) -> None:
        """Reads the state, and puts right what a kill between two files left."""
        super().reload()
        for trial_id in set(self.trials) - set(self.start_order):
            del self.trials[trial_id]  # it was about to begin, and will
        finished = [trial_id for trial_id in self.start_order if self.trials[trial_id].status in ENDED]
        if self.keeps_workers:
            ongoing = json.loads(Path(self._get_oracle_fname()).read_text(encoding="utf-8"))["ongoing_trials"]
            self.ongoing_trials = {worker: self.trials[one] for worker, one in ongoing.items() if one not in finished}
        kept = [*finished, *(trial.trial_id for trial in self.ongoing_trials.values())]
        self._retry_queue = [trial_id for trial_id in self._retry_queue if trial_id not in kept]
        for trial_id in finished:
            if trial_id not in self.end_order:
                self.end_order.append(trial_id)

    def _random_values(self) -> dict[str, Any] | None:
        if self.start_order:
            values: dict[str, Any] | None = super()._random_values()
            return values
        defaults = self.get_space()
        return {hp.name: hp.default for hp in defaults.space if defaults.is_active(hp)}


class RandomOracle(_Durable, oracles.RandomSearchOracle):
    """Random points."""


class HyperbandOracle(_Durable, oracles.HyperbandOracle):
    """Many random points for a few epochs, and the better ones of them for more.

    KerasTuner 1.4.8 ends where a round finds no more new points, with none of them trained for longer; and where a
    trial of a round failed it opens another bracket, and leaves the best of this one where they are. Here the rounds
    behind are then smaller by as much as is missing, and go on.
    """

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Chooses a point."""
        response = self._continuation(trial_id, of_whole_rounds=True)
        if response is None:
            response = super().populate_space(trial_id)
            if response["status"] != "RUNNING":
                response = self._continuation(trial_id, of_whole_rounds=False) or response
        return response

    def _continuation(self, trial_id: str, of_whole_rounds: bool) -> dict[str, Any] | None:
        """Continues the best trial of a round that has ended, if the next round has room.

        Args:
            trial_id: of the trial that is to begin.
            of_whole_rounds: whether to wait until a bracket has all its points.
        """
        for bracket in self._brackets:
            rounds, kind = bracket["rounds"], bracket["bracket_num"]
            if of_whole_rounds and len(rounds[0]) < self._get_size(kind, 0):
                continue
            for number in range(1, len(rounds)):
                left = self._left(bracket, number - 1)
                room = len(rounds[number]) < self._size_without_new_points(bracket, number)
                if left and room and self._has_ended(bracket, number - 1):
                    rounds[number].append({"past_id": left[0].trial_id, "id": trial_id})
                    return {"status": "RUNNING", "values": self._continued(left[0], kind, number)}
        return None

    def _has_ended(self, bracket: dict[str, Any], number: int) -> bool:
        """Whether a round has all the trials that it can get, and each of them has ended."""
        trials = bracket["rounds"][number]
        if any(self.trials[info["id"]].status not in ENDED for info in trials):
            return False
        if len(trials) >= self._size_without_new_points(bracket, number):
            return True
        return self._has_ended(bracket, number - 1) and not self._left(bracket, number - 1)

    def _left(self, bracket: dict[str, Any], number: int) -> list[Trial]:
        """Returns the trials of a round that were completed and have not gone on, the best first."""
        rounds = bracket["rounds"]
        gone_on = {info["past_id"] for info in rounds[number + 1]}
        trials = [self.trials[info["id"]] for info in rounds[number] if info["id"] not in gone_on]
        completed = [trial for trial in trials if trial.status == "COMPLETED"]
        return sorted(completed, key=lambda trial: trial.score, reverse=self.objective.direction == "max")

    def _size_without_new_points(self, bracket: dict[str, Any], number: int) -> int:
        """Returns a round's size, where the first has those that it has."""
        held = len(bracket["rounds"][0])
        size = min(self._get_size(bracket["bracket_num"], number), math.ceil(held / self.factor**number))
        return held if number == 0 else size

    def _continued(self, trial: Trial, bracket: int, number: int) -> dict[str, Any]:
        return {
            **trial.hyperparameters.values,
            "tuner/trial_id": trial.trial_id,
            "tuner/epochs": self._get_epochs(bracket, number),
            "tuner/initial_epoch": self._get_epochs(bracket, number - 1),
            "tuner/bracket": bracket,
            "tuner/round": number,
        }


class BayesianOracle(_Durable, oracles.BayesianOptimizationOracle):
    """Points where a Gaussian process expects the most, after some random ones."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Chooses a point: a random one in place of one that was tried.

        KerasTuner 1.4.8 trains a point again and again where the Gaussian process expects the most, and forgets the
        random state: the number of the trial gives it here.
        """
        self._random_state = np.random.RandomState(self.seed + len(self.trials))
        response: dict[str, Any] = super().populate_space(trial_id)
        if response["status"] == "RUNNING" and self._duplicate(response["values"]):
            response = self._random_populate_space()
        return response


class GridOracle(_Durable, oracles.GridSearchOracle):
    """All points, from the first on. Of a range of floats without a step it takes ten values and the first."""

    def reload(self) -> None:
        """Reads the state. KerasTuner 1.4.8 forgets the order of the points, and ends a search that goes on."""
        super().reload()
        order = functools.cmp_to_key(
            lambda one, other: self._compare(
                self.trials[one].hyperparameters.values, self.trials[other].hyperparameters.values
            )
        )
        for trial_id in sorted(self.trials, key=order):
            self._ordered_ids.insert(trial_id)
            self._populate_next.append(trial_id)


def make_oracle(
    tuner: str,
    objective: keras_tuner.Objective,
    hyperparameters: keras_tuner.HyperParameters,
    trials: int,
    seed: int,
    epochs: int,
) -> keras_tuner.Oracle:
    """Makes an oracle.

    Args:
        tuner: "random", "hyperband", "bayesian" or "grid".
        objective: what is compared.
        hyperparameters: the space, all of it.
        trials: how many points at most; of Hyperband each continuation counts as one.
        seed: of the random points.
        epochs: of a whole training, for Hyperband.
    """
    common = {
        "objective": objective,
        "hyperparameters": hyperparameters,
        "seed": seed + 1,  # KerasTuner takes 0 for none
        "max_consecutive_failed_trials": UNLIMITED,
    }
    if tuner == "hyperband":
        oracle = HyperbandOracle(max_epochs=epochs, hyperband_iterations=UNLIMITED, **common)
        oracle.max_trials = trials
    else:
        kinds = {"random": RandomOracle, "bayesian": BayesianOracle, "grid": GridOracle}
        oracle = kinds[tuner](max_trials=trials, **common)
    oracle._max_collisions = DRAWS
    return oracle
