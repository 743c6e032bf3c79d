"""`spkd run` in processes of its own, as a user sees it."""

import json
import os
import subprocess
import sys

import pytest
from test_cli import TINY

pytestmark = pytest.mark.slow

RUNS = ["teacher-seed0", "student-seed0", "sp-seed0"]


def spkd(*arguments, folder):
    """Runs it in its own."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TF_")}
    return subprocess.run(
        [sys.executable, "-m", "spkd_keras", *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def words(text):
    """What a reader of a table sees, wherever lines are broken."""
    return " ".join(text.replace("│", " ").replace("┃", " ").split())


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A tiny experiment, run by a process of its own."""
    folder = tmp_path_factory.mktemp("ran")
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    # The teacher of one epoch knows hardly anything, which the check would stop.
    done = spkd("run", "tiny.yaml", "--json", "--force", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def summaries(folder):
    return {name: json.loads((folder / "runs" / "tiny" / name / "summary.json").read_text()) for name in RUNS}


def test_run_answers_in_json(ran):
    folder, done = ran
    (answer,) = json.loads(done.stdout)
    assert (answer["experiment"], answer["folder"], answer["unfinished"]) == ("tiny", "runs/tiny", [])
    found = {f"{method['method']}-seed0": method for method in answer["methods"]}
    assert list(found) == RUNS
    for name, summary in summaries(folder).items():
        assert found[name]["errors"] == [summary["test_error"]]
        assert found[name]["best_errors"] == [summary["test_error_best"]]
        assert found[name]["parameters"] == summary["parameters"]
    errors = [summaries(folder)[name]["test_error"] for name in ("sp-seed0", "student-seed0")]
    assert found["sp-seed0"]["differences"] == [pytest.approx(errors[0] - errors[1], abs=1e-8)]


def test_run_tells_its_progress_on_standard_error(ran):
    folder, done = ran
    for name, summary in summaries(folder).items():
        assert f"{name}: test error {summary['test_error']:.2%}, {summary['epochs']} epochs in " in done.stderr


@pytest.mark.parametrize("noise", ["oneDNN", "cuda", "absl", "retracing", "node_def_util", "WARNING"])
def test_run_keeps_tensorflow_quiet(ran, noise):
    assert noise.lower() not in ran[1].stderr.lower()


def test_run_again(ran):
    folder, _ = ran
    before = summaries(folder)
    assert "stop: teacher: it is right on " in ran[1].stderr
    done = spkd("run", "tiny.yaml", folder=folder)
    assert done.returncode == 0
    assert f"Finished before: {', '.join(RUNS)}" in words(done.stderr)
    assert summaries(folder) == before
    for name, summary in before.items():
        row = next(line for line in done.stdout.splitlines() if line.startswith(f"  {name.removesuffix('-seed0')} "))
        assert f" {100 * summary['test_error']:.2f} " in row
        assert f" {summary['parameters']:,} parameters, {summary['multiply_adds']:,} multiply-adds" in done.stdout
    assert (folder / "runs" / "tiny" / "report" / "tiny-similarity.png").is_file()


@pytest.mark.parametrize(
    ("overrides", "code", "said"),
    [
        (["student.depth=15"], 2, "spkd: student: `depth` must be 6n + 4, for example 16 or 40. Received: depth=15."),
        (
            ["teacher=", "methods={student: []}", "schedule.learning_rate=1.0e+30"],
            1,
            "spkd: student-seed0 failed: FloatingPointError: The loss is not finite in epoch ",
        ),
    ],
)
def test_run_that_ends_badly(tmp_path, overrides, code, said):
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    options = [part for override in overrides for part in ("--set", override)]
    done = spkd("run", "tiny.yaml", *options, folder=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(said)
    assert len([line for line in done.stderr.splitlines() if line.startswith("spkd: ")]) == 1
    assert not list(tmp_path.rglob("summary.json"))
