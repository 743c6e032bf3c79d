"""Whether the best point beats the given one: where its runs are, and what is said, on runs written by hand."""

import json
from pathlib import Path

import pytest
from test_cli import call, words
from tiny_experiment import TINY, Listener
from tiny_search import GAMMA, WEIGHT

from spkd_keras.experiment import load_search
from spkd_keras.search import DistillationHyperModel, Search, SearchResult, TrialResult, confirmation
from spkd_keras.search.confirmation import Confirmation, confirm, verdict
from spkd_keras.storage import write_json
from spkd_keras.training import RunsFailedError
from spkd_keras.training.folder import RunFolder

GIVEN = 3000.0
ERRORS = {GIVEN: 0.5, 7.0: 0.25, 9.0: 0.125}  # by weight; a seed adds its hundredth


@pytest.fixture
def hypermodel(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY, encoding="utf-8")
    return DistillationHyperModel(*load_search(file, [GAMMA], ["sp"]), tmp_path / "runs")


@pytest.fixture
def written(monkeypatch):
    """Runs that are written and not trained; a folder still belongs to one experiment. One of seed 3 fails."""
    done = []

    def run(experiment, out, observer):
        for seed in experiment.seeds:
            if seed == 3:
                raise RunsFailedError(Path(out), {"sp-seed3": "NaN"})
            assert experiment.teacher.path.endswith("runs/tiny/teacher-seed0/student.keras"), "it is not trained again"
            folder = RunFolder(Path(out) / experiment.name, experiment.single("sp", seed))
            folder.check_owner()
            if not folder.finished:
                folder.create()
                weight = experiment.methods["sp"].terms[0].weight
                write_json(folder.summary, {"validation_error": ERRORS[weight] + seed / 100})
                done.append((weight, seed))
        return Path(out) / experiment.name

    monkeypatch.setattr(confirmation, "run_experiment", run)
    return done


def trial(number, weight, error=0.25):
    return TrialResult(f"trial {number}", {WEIGHT: weight}, "COMPLETED", 1 - error, error, 2, 100, None)


FAILED = TrialResult("trial 0", {WEIGHT: GIVEN}, "FAILED", None, None, None, None, "NaN")


def test_more_trials_may_have_another_best(hypermodel, written, tmp_path):
    listener = Listener()
    one = confirm(hypermodel, [trial(2, 7.0)], [0, 1], tmp_path, listener)
    assert (one.seeds, one.first, one.best) == ([0, 1], [0.5, 0.51], [0.25, 0.26])
    assert written == [(GIVEN, 0), (GIVEN, 1), (7.0, 0), (7.0, 1)]
    other = confirm(hypermodel, [trial(5, 9.0)], [0, 1], tmp_path, listener)
    assert (other.first, other.best) == (one.first, [0.125, 0.135])
    assert written[4:] == [(9.0, 0), (9.0, 1)], "the given point's are there"
    seeds = ["sp-seed0", "sp-seed1"]
    given, best = ([f"trial {n} {seed}" for seed in seeds] for n in (0, 5))
    assert listener.told[-1] == ("planned", [*given, *best], given)


def test_there_is_nothing_to_confirm(hypermodel, written, tmp_path):
    for trials in ([trial(0, GIVEN), trial(1, 7.0)], [trial(1, 7.0), FAILED]):
        assert confirm(hypermodel, trials, [0, 1], tmp_path, Listener()) is None
    assert not written


def test_a_run_that_fails_takes_its_seed_along(hypermodel, written, tmp_path):
    found = confirm(hypermodel, [trial(2, 7.0), trial(0, GIVEN)], [0, 3], tmp_path, Listener())
    assert found == Confirmation([0], [0.5], [0.25], {"trial 0 sp-seed3": "NaN", "trial 2 sp-seed3": "NaN"})


BEST = f"Best on validation, seed 0: trial 2, {WEIGHT}=7.0."
VERDICTS = {
    "no confirmation": ([trial(2, 7.0), trial(0, GIVEN)], None, []),
    "the given point is best": ([trial(0, GIVEN), trial(2, 7.0)], None, ["No point beat the given one ({given})."]),
    "the given point failed": (
        [trial(2, 7.0), FAILED],
        None,
        ["The given point ({given}) cannot be trained (NaN): there is nothing to compare with."],
    ),
    "won": (
        [trial(2, 7.0), trial(0, GIVEN)],
        Confirmation([0, 1], [0.5, 0.51], [0.25, 0.26], {}),
        [
            "On validation the best point had fewer errors than the given one ({given}) with each of 2 seeds: "
            "-25.00 points in the median (sign test: p = 0.5, the least that 2 can give). "
            "seed 0: 25.00% against 50.00%; seed 1: 26.00% against 51.00%. Seed 0 is the one that it was chosen by."
        ],
    ),
    "level": (
        [trial(2, 7.0), trial(0, GIVEN)],
        Confirmation([0], [0.25], [0.25], {}),
        [
            "On validation the best point had as many errors as the given one ({given}): +0.00 points in the median "
            "of 1 seed (0 better, 0 worse, 1 equal; sign test: p = 1). seed 0: 25.00% against 25.00%."
        ],
    ),
    "lost, and a run failed": (
        [trial(2, 7.0), trial(0, GIVEN)],
        Confirmation([0], [0.25], [0.5], {"trial 2 sp-seed3": "NaN"}),
        [
            "Over the seeds trial 2 sp-seed3 failed: NaN",
            "On validation the best point had more errors than the given one ({given}) with the one seed: +25.00 "
            "points in the median (sign test: p = 1, the least that 1 can give). "
            "seed 0: 50.00% against 25.00%.",
        ],
    ),
    "all runs failed": (
        [trial(2, 7.0), trial(0, GIVEN)],
        Confirmation([], [], [], {"trial 2 sp-seed3": "NaN"}),
        [
            "Over the seeds trial 2 sp-seed3 failed: NaN",
            "Whether it beats the given point ({given}) is not known: no seed has a run of both.",
        ],
    ),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_the_verdict(hypermodel, case):
    trials, confirmed, said = VERDICTS[case]
    best = BEST if trials[0].name == "trial 2" else f"Best on validation, seed 0: trial 0, {WEIGHT}={GIVEN}."
    expected = [best, *(line.format(given=f"{WEIGHT}={GIVEN}") for line in said)]
    assert verdict(hypermodel.space, 0, trials, confirmed) == expected


def tuned(hypermodel, tmp_path, monkeypatch, *trials, more=()):
    """The command, over seeds 0 and 3, after a search that came to these trials."""
    best = None if trials[0].error is None else tmp_path / "best.yaml"
    result = SearchResult(tmp_path / "runs" / "tiny-search", list(trials), best, None)
    result.folder.mkdir(parents=True)
    monkeypatch.setattr(Search, "run", lambda search, workers: result)
    options = ["--methods", "sp", "--set", GAMMA, "--seeds", "0,3", "--out", tmp_path / "runs"]
    return call("tune", tmp_path / "tiny.yaml", "--trials", len(trials), *options, *more), result.folder


def test_the_trials_are_shown_whatever_becomes_of_the_confirmation(hypermodel, written, tmp_path, monkeypatch):
    done, folder = tuned(hypermodel, tmp_path, monkeypatch, trial(2, 7.0), trial(0, GIVEN))
    assert done.exit_code == 1
    assert "trial 2 sp-seed3 failed: NaN" in done.stderr
    for said in ("tiny: trials", "Over the seeds trial 2 sp-seed3 failed: NaN", "-25.00 points", "Written: "):
        assert said in words(done.stdout)
    answer = json.loads((folder / "trials.json").read_text())
    assert answer["confirmation"]["seeds"] == [0]
    assert (folder / "trials-parallel.png").exists()


def test_a_confirmation_may_be_declined(hypermodel, written, tmp_path, monkeypatch):
    done, folder = tuned(hypermodel, tmp_path, monkeypatch, trial(2, 7.0), trial(0, GIVEN), more=["--no-confirm"])
    assert done.exit_code == 0, done.output
    assert not written
    assert json.loads((folder / "trials.json").read_text())["confirmation"] is None


def test_a_confirmation_may_be_asked_for_with_one_seed(hypermodel, written, tmp_path, monkeypatch):
    more = ["--seeds", "0", "--confirm"]
    done, _ = tuned(hypermodel, tmp_path, monkeypatch, trial(2, 7.0), trial(0, GIVEN), more=more)
    assert (done.exit_code, written) == (0, [(GIVEN, 0), (7.0, 0)])


def test_a_given_point_that_cannot_be_trained_is_told(hypermodel, written, tmp_path, monkeypatch):
    done, _ = tuned(hypermodel, tmp_path, monkeypatch, trial(2, 7.0), FAILED)
    assert done.exit_code == 0, done.output
    assert f"The given point ({WEIGHT}=3000.0) cannot be trained (NaN): " in done.stdout
    assert not written


def test_the_trials_are_shown_before_the_confirmation(hypermodel, tmp_path, monkeypatch):
    def run(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(confirmation, "run_experiment", run)
    done, folder = tuned(hypermodel, tmp_path, monkeypatch, trial(2, 7.0), trial(0, GIVEN))
    assert done.exit_code == 130
    assert "tiny: trials" in done.stdout
    assert json.loads((folder / "trials.json").read_text())["confirmation"] is None


def test_the_command_fails_if_all_trials_do(hypermodel, tmp_path, monkeypatch):
    done, folder = tuned(hypermodel, tmp_path, monkeypatch, FAILED, FAILED._replace(name="trial 1"))
    assert done.exit_code == 1
    assert done.stderr.endswith("spkd: All 2 trials failed. The first: NaN\n")
    assert f"trial 1 ({WEIGHT}=3000.0) failed: NaN" in done.stdout
    assert json.loads((folder / "trials.json").read_text())["best"] is None
