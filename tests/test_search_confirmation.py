"""Whether the best point beats the given one: where its runs are, and what is said, on runs written by hand."""

from pathlib import Path

import pytest
from tiny_experiment import TINY, Listener
from tiny_search import GAMMA, WEIGHT

from spkd_keras.experiment import load_search
from spkd_keras.search import DistillationHyperModel, TrialResult, confirmation
from spkd_keras.search.confirmation import confirm
from spkd_keras.training.folder import RunFolder, write_json

GIVEN = 3000.0
ERRORS = {GIVEN: 0.5, 7.0: 0.25, 9.0: 0.125}  # by weight; a seed adds its hundredth


@pytest.fixture
def hypermodel(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY, encoding="utf-8")
    return DistillationHyperModel(*load_search(file, [GAMMA], ["sp"]), tmp_path / "runs")


@pytest.fixture
def written(monkeypatch):
    """Runs that are written and not trained; a folder still belongs to one experiment."""
    done = []

    def run(experiment, out, observer):
        for seed in experiment.seeds:
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


def test_more_trials_may_have_another_best(hypermodel, written, tmp_path):
    listener = Listener()
    one = confirm(hypermodel, trial(2, 7.0), [0, 1], tmp_path, listener)
    assert (one.seeds, one.first, one.best) == ([0, 1], [0.5, 0.51], [0.25, 0.26])
    assert written == [(GIVEN, 0), (GIVEN, 1), (7.0, 0), (7.0, 1)]
    other = confirm(hypermodel, trial(5, 9.0), [0, 1], tmp_path, listener)
    assert (other.first, other.best) == (one.first, [0.125, 0.135])
    assert written[4:] == [(9.0, 0), (9.0, 1)], "the given point's are there"
    seeds = ["sp-seed0", "sp-seed1"]
    given, best = ([f"trial {n} {seed}" for seed in seeds] for n in (0, 5))
    assert listener.told[-1] == ("planned", [*given, *best], given)
