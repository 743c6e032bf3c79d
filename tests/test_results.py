"""The committed results: the report is that of the recorded runs, and these are of the experiments as they are."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from spkd_keras.cli import app
from spkd_keras.experiment import TEACHER, differences, load_experiment
from spkd_keras.report import read_runs

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
KEPT = {"summary.json", "experiment.yaml", "history.csv", "similarity.npz"}


def test_the_report_is_that_of_the_recorded_runs(tmp_path):
    done = CliRunner().invoke(app, ["report", str(RESULTS), "--out", str(tmp_path), "--html"])
    assert done.exit_code == 0
    recorded = (ROOT / "experiments" / "RESULTS.md").read_bytes()
    assert (tmp_path / "RESULTS.md").read_bytes() == recorded, (
        "write it anew: spkd report experiments/results --out experiments"
    )
    page = (tmp_path / "results.html").read_text(encoding="utf-8")
    for folder in RESULTS.iterdir():
        assert f">{folder.name}</h2>" in page
        assert f"## {folder.name}\n" in recorded.decode()


@pytest.mark.parametrize("name", [folder.name for folder in sorted(RESULTS.iterdir())])
def test_the_recorded_runs_are_of_the_experiment_as_it_is(name):
    (file,) = (ROOT / "experiments").glob(f"**/{name}.yaml")
    experiment = load_experiment(file)
    runs = read_runs(RESULTS / name)
    for run in runs:
        expected = experiment.teacher_training() if run.method == TEACHER else experiment.single(run.method, run.seed)
        assert run.summary is not None
        assert not differences(run.spec, expected)
        assert run.experiment == experiment.name == name
    assert any(run.method == "student" for run in runs)


def test_only_small_files_are_kept():
    files = [file for file in RESULTS.rglob("*") if file.is_file()]
    assert {file.name for file in files} <= KEPT
    assert sum(file.stat().st_size for file in files) < 4_000_000
