"""KerasTuner's oracles as ours: they begin with the given point, and a kill at any write loses and repeats nothing."""

import json
import math
import warnings

import keras_tuner
import pytest
from keras_tuner import oracles as their_oracles

from spkd_keras.search import oracles
from spkd_keras.search.oracles import make_oracle

TUNERS = ["random", "hyperband", "bayesian", "grid"]
TRIALS = 5
OBJECTIVE = keras_tuner.Objective("val_accuracy", "max")


class Killed(BaseException):
    """The process is gone."""


def space():
    hp = keras_tuner.HyperParameters()
    hp.Choice("methods", ["kd", "sp"], default="sp")
    with hp.conditional_scope("methods", ["sp"]):
        hp.Float("weight", 1, 10000, sampling="log", default=3000.0)
    hp.Int("depth", 1, 3, default=2)
    return hp


def opened(folder, tuner, trials=TRIALS, keeps_workers=False):
    """An oracle as a tuner makes it: it goes on from what is in the folder."""
    oracle = make_oracle(tuner, OBJECTIVE, space(), trials, seed=0, epochs=3)
    oracle.verbose = 0
    oracle.keeps_workers = keeps_workers
    oracle._set_project_dir(str(folder), "trials")
    if (folder / "trials" / "oracle.json").exists():
        oracle.reload()
    else:
        oracle.save()
    return oracle


def value_of(values):
    return 1 / (1 + abs(math.log10(values.get("weight", 10.0)) - 2)) + values["depth"] / 10


def search(oracle, ran):
    """Runs trials whose value is known at once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the Gaussian process' own
        while True:
            trial = oracle.create_trial("tuner0")
            if trial.status == "STOPPED":
                return
            assert trial.status == "RUNNING"
            ran.append(trial.trial_id)
            oracle.update_trial(trial.trial_id, {"val_accuracy": value_of(trial.hyperparameters.values)})
            trial.status = "COMPLETED"
            oracle.end_trial(trial)
            oracle.save()


def values(oracle):
    return [oracle.trials[trial_id].hyperparameters.values for trial_id in oracle.start_order]


@pytest.fixture(scope="module", params=TUNERS)
def uninterrupted(request, tmp_path_factory):
    oracle, ran = opened(tmp_path_factory.mktemp("whole"), request.param), []
    search(oracle, ran)
    return request.param, values(oracle), ran


def test_the_given_point_is_the_first(uninterrupted):
    _, found, ran = uninterrupted
    first = {key: value for key, value in found[0].items() if not key.startswith("tuner/")}
    assert first == {"methods": "sp", "weight": 3000.0, "depth": 2}
    assert len(ran) == TRIALS
    assert [str(index) for index in range(TRIALS)] == ran
    own = [json.dumps({k: v for k, v in point.items() if k != "tuner/trial_id"}, sort_keys=True) for point in found]
    assert len(set(own)) == TRIALS
    assert all(("weight" in point) == (point["methods"] == "sp") for point in found)


def test_a_kill_at_any_write_loses_and_repeats_nothing(uninterrupted, tmp_path, monkeypatch):
    tuner, expected, _ = uninterrupted
    left = 0

    def write(path, text):
        path.write_text(text)  # the real one waits for the disk

    def dying(path, text):
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        write(path, text)

    writes = 1 + 6 * TRIALS
    for kill in range(1, writes, 1 if tuner != "bayesian" else 4):
        folder, left = tmp_path / str(kill), kill
        monkeypatch.setattr(oracles, "write_text", dying)
        with pytest.raises(Killed):
            search(opened(folder, tuner), [])
        monkeypatch.setattr(oracles, "write_text", write)
        files = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("trials/trial_*/trial.json")}
        finished = {trial["trial_id"] for trial in files.values() if trial["status"] == "COMPLETED"}
        oracle, ran = opened(folder, tuner), []
        search(oracle, ran)
        assert not finished & set(ran), kill
        assert sorted(finished | set(ran)) == [str(index) for index in range(TRIALS)], kill
        assert values(oracle) == expected, kill
        assert sorted(oracle.end_order) == sorted(oracle.start_order), kill


@pytest.mark.parametrize("tuner", TUNERS)
def test_more_trials_go_on(tuner, tmp_path):
    search(opened(tmp_path, tuner, 3), [])
    oracle, ran = opened(tmp_path, tuner, 5), []
    search(oracle, ran)
    assert ran == ["3", "4"]
    assert len(oracle.trials) == 5


@pytest.mark.parametrize("tuner", TUNERS)
def test_a_chief_that_comes_back_leaves_living_workers_their_trials(tuner, tmp_path):
    before = opened(tmp_path, tuner)
    theirs = {worker: before.create_trial(worker).trial_id for worker in ("worker0", "worker1")}
    after = opened(tmp_path, tuner, keeps_workers=True)
    assert {worker: trial.trial_id for worker, trial in after.ongoing_trials.items()} == theirs
    trial = after.get_trial(theirs["worker1"])
    after.update_trial(trial.trial_id, {"val_accuracy": 0.5})
    trial.status = "COMPLETED"
    after.end_trial(trial)
    assert after.create_trial("worker1").trial_id not in theirs.values()
    assert after.create_trial("worker0").trial_id == theirs["worker0"]
    alone = opened(tmp_path, tuner)  # the workers are gone: any process takes their trials
    again = {alone.create_trial("tuner0").trial_id, alone.create_trial("tuner1").trial_id}
    assert theirs["worker0"] in again
    assert theirs["worker1"] not in again


def test_trials_that_fail_do_not_end_the_search(tmp_path):
    oracle = opened(tmp_path, "random", 5)
    for _ in range(5):
        trial = oracle.create_trial("tuner0")
        trial.status, trial.message = "FAILED", "NaN"
        oracle.end_trial(trial)
    assert oracle.create_trial("tuner0").status == "STOPPED"
    assert {trial.status for trial in oracle.trials.values()} == {"FAILED"}


def choice_of(count):
    hp = keras_tuner.HyperParameters()
    hp.Choice("depth", list(range(1, count + 1)), default=2)
    return hp


def tried_by(oracle, folder):
    """What an oracle came to where the deepest is best: each trial's point, and the epochs that Hyperband gave it."""
    oracle.verbose = 0
    oracle.save = oracle._save_trial = lambda *_: None
    oracle._set_project_dir(str(folder), "trials")
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the Gaussian process' own
        while (trial := oracle.create_trial("tuner0")).status == "RUNNING":
            point = trial.hyperparameters.values
            found.append((point["depth"], point.get("tuner/epochs")))
            oracle.update_trial(trial.trial_id, {"val_accuracy": point["depth"] / 100})
            trial.status = "COMPLETED"
            oracle.end_trial(trial)
    assert trial.status == "STOPPED"
    return found


def tried(folder, tuner, count, trials, epochs=3, seed=0):
    """What ours comes to over so many points."""
    return tried_by(make_oracle(tuner, OBJECTIVE, choice_of(count), trials, seed=seed, epochs=epochs), folder)


@pytest.mark.parametrize("tuner", ["random", "grid", "bayesian"])
def test_a_space_that_is_used_up_ends_the_search(tuner, tmp_path):
    found = tried(tmp_path, tuner, 3, 8)
    assert found[0] == (2, None)
    assert sorted(point for point, _ in found) == [1, 2, 3], "each once"


@pytest.mark.parametrize("seed", range(3))
def test_a_random_search_finds_every_point(seed, tmp_path):
    """KerasTuner 1.4.8 alone ends after 30 to 39 of them; where it finds all, `DRAWS` may have become needless."""
    assert len(tried(tmp_path / "ours", "random", 40, 41, seed=seed)) == 40
    theirs = their_oracles.RandomSearchOracle(OBJECTIVE, 41, hyperparameters=choice_of(40), seed=seed + 1)
    assert len(tried_by(theirs, tmp_path / "theirs")) < 40


@pytest.mark.parametrize("count", [2, 4, 6, 12])
def test_hyperband_over_few_points_trains_the_best_to_the_end(count, tmp_path):
    """40 epochs begin with rounds of 14, 5 and 2 points, or some of them."""
    found = tried(tmp_path, "hyperband", count, 40, epochs=40)
    points = [point for point, epochs in found]
    assert sorted(set(points)) == list(range(1, count + 1))
    assert (count, 40) in found, "the best one, with all epochs"
    assert len(set(found)) == len(found)
    short = {epochs: [point for point, e in found if e == epochs] for _, epochs in found}
    assert min(map(len, short.values())) < count, "not all"


def test_hyperband_over_few_points_goes_on_without_those_that_failed(tmp_path):
    oracle = make_oracle("hyperband", OBJECTIVE, choice_of(4), 20, seed=0, epochs=8)
    oracle.verbose = 0
    oracle._set_project_dir(str(tmp_path), "trials")
    found = []
    first, second = oracle.create_trial("tuner0"), oracle.create_trial("tuner1")
    others = [oracle.create_trial(f"tuner{n}") for n in (2, 3)]
    assert oracle.create_trial("tuner4").status == "IDLE", "the round has not ended"
    for trial in (first, second, *others):
        depth = trial.hyperparameters.values["depth"]
        found.append(depth)
        trial.status = "FAILED" if depth == 4 else "COMPLETED"
        if depth < 4:
            oracle.update_trial(trial.trial_id, {"val_accuracy": depth / 100})
        oracle.end_trial(trial)
    assert sorted(found) == [1, 2, 3, 4]
    assert [oracle.create_trial(f"tuner{n}").hyperparameters.values.get("depth") for n in (5, 6)] == [3, 2]


@pytest.mark.parametrize(
    ("failing", "rounds"), [((), [9, 3, 1]), ((4,), [9, 3, 1]), ((1, 4, 7), [9, 3, 1]), (range(7), [9, 2, 1])]
)
def test_hyperband_trains_the_best_to_the_end_though_others_of_their_round_fail(failing, rounds, tmp_path):
    """KerasTuner 1.4.8 alone comes to 9, 2 and 0 where one fails."""
    oracle = make_oracle("hyperband", OBJECTIVE, choice_of(1000), 100, seed=0, epochs=9)
    oracle.verbose = 0
    oracle._set_project_dir(str(tmp_path), "trials")
    scores = {}
    for number in range(sum(rounds)):
        trial = oracle.create_trial("tuner0")
        values = trial.hyperparameters.values
        trial.status = "FAILED" if number in failing else "COMPLETED"
        if number not in failing:
            scores.setdefault(values["tuner/epochs"], set()).add(values["depth"])
            oracle.update_trial(trial.trial_id, {"val_accuracy": values["depth"] / 1000})
        oracle.end_trial(trial)
    assert [len(scores[epochs]) for epochs in (1, 3, 9)] == [9 - len(failing), *rounds[1:]]
    assert scores[9] == {max(scores[1])}
    assert scores[3] == set(sorted(scores[1])[-rounds[1] :])


def test_hyperband_over_few_points_goes_on_from_the_least_loss(tmp_path):
    least = keras_tuner.Objective("val_loss", "min")
    oracle = make_oracle("hyperband", least, choice_of(4), 20, seed=0, epochs=8)
    oracle.verbose = 0
    oracle._set_project_dir(str(tmp_path), "trials")
    for trial in [oracle.create_trial(f"tuner{n}") for n in range(4)]:
        oracle.update_trial(trial.trial_id, {"val_loss": float(trial.hyperparameters.values["depth"])})
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
    assert oracle.create_trial("tuner5").hyperparameters.values["depth"] == 1


def test_keras_tuner_still_ends_hyperband_early(tmp_path):
    """KerasTuner 1.4.8: where this fails, `HyperbandOracle` need not go on by itself."""
    theirs = their_oracles.HyperbandOracle(OBJECTIVE, 8, hyperparameters=choice_of(2), seed=1)
    assert [epochs for _, epochs in tried_by(theirs, tmp_path)] == [3, 3]


def test_keras_tuner_still_needs_ours(tmp_path):
    """KerasTuner 1.4.8: where this fails, `_Durable` or `GridOracle.reload` may have become needless."""
    theirs = their_oracles.GridSearchOracle(OBJECTIVE, max_trials=5, hyperparameters=space())
    theirs.verbose = 0
    theirs._set_project_dir(str(tmp_path), "trials")
    with pytest.warns(DeprecationWarning, match="currentThread"):  # which setup.cfg lets pass
        trial = theirs.create_trial("tuner0")
    theirs.update_trial(trial.trial_id, {"val_accuracy": 0.5})
    trial.status = "COMPLETED"
    theirs.end_trial(trial)
    state = json.loads((tmp_path / "trials" / "oracle.json").read_text())
    assert state["ongoing_trials"] == {"tuner0": "0"}  # a kill now, and the trial is repeated
    theirs.save()
    again = their_oracles.GridSearchOracle(OBJECTIVE, max_trials=5, hyperparameters=space())
    again.verbose = 0
    again._set_project_dir(str(tmp_path), "trials")
    again.reload()
    assert again.create_trial("tuner0").status == "STOPPED"  # after one of nine points


def test_keras_tuner_still_prints_conditions(capsys):
    """KerasTuner 1.4.8: where this fails, `without_prints` has become needless."""
    space().to_proto()
    assert capsys.readouterr().out == "sp\n"


def test_keras_tuner_still_repeats_points(tmp_path):
    """KerasTuner 1.4.8: where this fails, `BayesianOracle` need not look for points that were tried."""
    theirs = their_oracles.BayesianOptimizationOracle(OBJECTIVE, 8, hyperparameters=choice_of(3), seed=1)
    found = tried_by(theirs, tmp_path)
    assert len(set(found)) < len(found) == 8
