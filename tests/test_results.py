"""The committed results: the report is that of the recorded runs, and these are of the experiments as they are."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from spkd_keras.cli import app
from spkd_keras.experiment import TEACHER, differences, load_experiment, load_search
from spkd_keras.report import read_runs, read_trials, summarise

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
EXPERIMENTS = [folder.name for folder in sorted(RESULTS.iterdir()) if not folder.name.endswith("-search")]
SEARCHES = [folder.name for folder in sorted(RESULTS.iterdir()) if folder.name.endswith("-search")]
KEPT = {"summary.json", "experiment.yaml", "history.csv", "similarity.npz", "outcome.json"}


def test_the_report_is_that_of_the_recorded_runs(tmp_path):
    done = CliRunner().invoke(app, ["report", str(RESULTS), "--out", str(tmp_path), "--html"])
    assert done.exit_code == 0
    recorded = (ROOT / "experiments" / "RESULTS.md").read_bytes()
    assert (tmp_path / "RESULTS.md").read_bytes() == recorded, (
        "write it anew: spkd report experiments/results --out experiments"
    )
    page = (tmp_path / "results.html").read_text(encoding="utf-8")
    for name in EXPERIMENTS:
        assert f">{name}</h2>" in page
        assert f"## {name}\n" in recorded.decode()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_recorded_runs_are_of_the_experiment_as_it_is(name):
    (file,) = (ROOT / "experiments").glob(f"**/{name}.yaml")
    experiment = load_experiment(file)
    runs = read_runs(RESULTS / name)
    for run in runs:
        expected = experiment.teacher_training() if run.method == TEACHER else experiment.single(run.method, run.seed)
        assert run.summary is not None
        assert not differences(run.spec, expected)
        assert run.experiment == experiment.name == name
    expected = {(method, seed) for method in experiment.methods for seed in experiment.seeds} | {(TEACHER, 0)}
    assert {(run.method, run.seed) for run in runs} == expected


@pytest.mark.parametrize("name", SEARCHES)
def test_the_recorded_trials_are_of_the_search_as_it_is_and_chose_the_weights(name):
    (file,) = (ROOT / "experiments").glob(f"**/{name}.yaml")
    (final,) = (ROOT / "experiments").glob(f"**/{name.removesuffix('-search')}.yaml")
    chosen = load_experiment(final)
    trials = read_trials(RESULTS / name)
    (result,) = summarise(read_runs(RESULTS / chosen.name), trials)
    for method in {trial.method for trial in trials}:
        point, space = load_search(file, methods=[method])
        (dimension,) = space.dimensions
        weights = {}
        for trial in (trial for trial in trials if trial.method == method):
            (weight,) = [term.weight for term in trial.spec.methods[method].terms]
            assert not differences(trial.spec, space.at(point, {dimension.name: weight}).single(method, 0))
            weights[weight] = trial.summary["validation_error"]
        assert set(weights) == set(dimension.values), "every point was tried"
        (curve,) = [curve for curve in result.weights if curve.methods == [method]]
        assert {weight: [error] for weight, error in weights.items()} == curve.errors, "it is in the report"
        (term,) = chosen.methods[method].terms
        assert term.weight == min(weights, key=weights.get), "by the held-out error"
        others = {line.partition(": ")[0] for line in differences(trial.spec, chosen.single(method, 0))}
        assert {name for name in others if not name.startswith("teacher.cache.")} <= {dimension.name}, (
            "nothing but the weight is another; a search runs the teacher itself"
        )


def test_only_small_files_are_kept():
    files = [file for file in RESULTS.rglob("*") if file.is_file()]
    assert {file.name for file in files} <= KEPT
    assert sum(file.stat().st_size for file in files) < 4_000_000
