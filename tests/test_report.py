"""Finding runs in folders, and summing up experiments."""

import errno
import os
import shutil

import pytest
from fake_runs import BARE_ERRORS, SEEDS, write_bare_run, write_bare_runs, write_run

from spkd_keras import report
from spkd_keras.experiment import ExperimentError


@pytest.fixture
def root(tmp_path):
    return write_bare_runs(tmp_path / "runs" / "tiny")


def summarised(folder):
    (result,) = report.summarise(report.read_runs(folder))
    return result


def method_of(result, name):
    return next(method for method in result.methods if method.method == name)


@pytest.mark.parametrize("where", ["runs", "runs/tiny"])
def test_runs_are_found(root, tmp_path, where):
    runs = report.read_runs(tmp_path / where)
    assert len(runs) == 11
    assert {(run.method, run.seed, run.summary is not None) for run in runs} == {
        *((method, seed, True) for method in BARE_ERRORS for seed in SEEDS),
        ("teacher", 0, True),
        ("at", 1, False),
    }
    assert {run.experiment for run in runs} == {"tiny"}


def test_one_run_alone_is_found(root):
    (run,) = report.read_runs(root / "sp-seed1")
    assert (run.folder, run.method, run.seed, run.summary["test_error"]) == (root / "sp-seed1", "sp", 1, 0.25)


def test_summary_of_an_experiment(root):
    result = summarised(root)
    assert (result.name, result.folder, result.unfinished) == ("tiny", root, ["at-seed1"])
    # The teacher, the baseline, and the others by name; nothing of the method that has no finished run.
    assert [method.method for method in result.methods] == ["teacher", "student", "kd", "sp"]
    sp = method_of(result, "sp")
    assert sp.seeds == SEEDS
    assert sp.errors == BARE_ERRORS["sp"]
    assert sp.best_errors == [0.25, 0.375, 0.625]
    assert sp.differences == [-0.125, -0.25, 0.125]
    assert (sp.parameters, sp.multiply_adds) == (1234, 12340)
    assert method_of(result, "student").differences == []
    teacher = method_of(result, "teacher")
    assert (teacher.errors, teacher.best_errors, teacher.differences) == ([0.0625], [], [])


def test_differences_are_between_equal_seeds(tmp_path):
    # Seeds 1 and 10 are in both; sorted as numbers, not as the folders' names.
    for seed, error in {0: 0.5, 1: 0.25, 10: 0.75}.items():
        write_bare_run(tmp_path, "student", seed, error)
    for seed, error in {10: 0.5, 1: 0.5, 2: 0.125}.items():
        write_bare_run(tmp_path, "sp", seed, error)
    sp = method_of(summarised(tmp_path), "sp")
    assert sp.seeds == [1, 2, 10]
    assert sp.errors == [0.5, 0.125, 0.5]
    assert sp.differences == [0.25, -0.25]


def test_without_a_baseline_nothing_is_compared(tmp_path):
    write_bare_run(tmp_path, "sp", 0, 0.25)
    result = summarised(tmp_path)
    assert method_of(result, "sp").differences == []
    assert report.verdicts(result) == []


def test_experiments_are_kept_apart(tmp_path):
    write_bare_run(tmp_path / "one", "student", 0, 0.5, name="one")
    write_bare_run(tmp_path / "two", "sp", 0, 0.25, name="two")
    results = report.summarise(report.read_runs(tmp_path))
    assert [(result.name, result.folder) for result in results] == [
        ("one", tmp_path / "one"),
        ("two", tmp_path / "two"),
    ]
    assert method_of(results[1], "sp").differences == [], "the baseline is another experiment's"


def test_folds_are_taken_together(tmp_path):
    # Errors of student and sp on three folds: differences -25, +12.5 and -12.5 points.
    for fold, errors in {1: (0.5, 0.25), 2: (0.25, 0.375), 10: (0.25, 0.125)}.items():
        for method, error in zip(("student", "sp"), errors, strict=True):
            name = f"textures-fold{fold}"
            write_run(tmp_path / name, method, 0, error, None, name=name, data=f"dtd/fold{fold}")
    pooled, *single = report.summarise(report.read_runs(tmp_path))
    assert [result.name for result in single] == ["textures-fold1", "textures-fold10", "textures-fold2"]
    assert (pooled.name, pooled.folder, pooled.unit) == ("textures", tmp_path, "folds")
    assert (pooled.title, pooled.warnings) == ("textures, folds 1, 2, 10", [])
    sp = method_of(pooled, "sp")
    assert (sp.seeds, sp.errors, sp.differences) == ([1, 2, 10], [0.25, 0.375, 0.125], [-0.25, 0.125, -0.125])
    assert report.verdicts(pooled) == [
        "sp is not told apart from the student alone: -12.50 points in the median of 3 folds (2 better, 1 worse; "
        "sign test: p = 1)."
    ]
    assert report.table(pooled)[0][1:5] == [
        "folds",
        "test error, %",
        "published, %",
        "against the same-fold student, points",
    ]
    assert "Medians over the folds" in report.markdown([pooled])


@pytest.mark.parametrize("case", ["name", "data", "settings", "unfinished", "seeds"])
def test_what_is_no_other_fold_is_not_taken_together(tmp_path, case):
    for fold in (1, 2):
        name = f"textures-fold{fold}" if case != "name" else f"textures-{fold}"
        data = f"dtd/fold{fold}" if case != "data" else "cifar10"
        terms = [{"loss": "similarity_preserving", "weight": float(fold)}] if case == "settings" else []
        folder = write_run(tmp_path / name, "sp", 0, 0.5, None, name=name, data=data, terms=terms)
        if case == "unfinished" and fold == 2:
            (folder / "summary.json").unlink()
        if case == "seeds":
            write_run(tmp_path / name, "sp", 1, 0.5, None, name=name, data=data, terms=terms)
    assert len(report.summarise(report.read_runs(tmp_path))) == 2


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"test_error": 0.5}', '{"parameters": 1, "multiply_adds": 1, "test_error": 0}']
)
def test_a_damaged_summary(root, content):
    file = root / "sp-seed1" / "summary.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ExperimentError) as caught:
        report.read_runs(root)
    assert str(caught.value).startswith(f"{file} is damaged (")
    assert str(caught.value).endswith("Delete it, and `spkd run` does that run again.")


def test_a_summary_that_cannot_be_read(root):
    file = root / "sp-seed1" / "summary.json"
    file.unlink()
    file.mkdir()
    with pytest.raises(ExperimentError) as caught:
        report.read_runs(root)
    assert str(caught.value).startswith(f"{file} cannot be read (Is a directory). Make it readable, or ")


@pytest.mark.parametrize("read", [report.read_runs, report.read_trials])
def test_a_folder_that_cannot_be_looked_into(root, monkeypatch, read):
    scandir, closed = os.scandir, str(root / "sp-seed1")

    def refusing(path):  # as the system does, unless the user may do everything
        if str(path) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ExperimentError) as caught:
        read(root)
    assert str(caught.value) == (
        f"{closed} cannot be read (Permission denied), and there may be runs in it. Make it readable, or give a folder "
        "without it."
    )


def test_a_folder_that_goes_meanwhile_is_no_obstacle(root, monkeypatch):
    scandir = os.scandir

    def late(path):
        if str(path) == str(root / "sp-seed1"):
            shutil.rmtree(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", late)
    assert len(report.read_runs(root)) == 10
    assert report.read_trials(root / "nowhere") == []


def test_an_experiment_that_is_no_run(root, tmp_path):
    # What the user wrote, above the runs.
    networks = "student: {model: wide_resnet}, teacher: {path: teacher.keras}"
    text = f"{{name: tiny, data: {{name: digits}}, {networks}, methods: [student, sp]}}"
    (tmp_path / "experiment.yaml").write_text(text, encoding="utf-8")
    assert len(report.read_runs(tmp_path)) == 11


def test_no_runs(tmp_path):
    with pytest.raises(ExperimentError, match=r"^There are no runs in .*\. Give the folder that `spkd run` wrote"):
        report.read_runs(tmp_path)
    with pytest.raises(ExperimentError, match=r"^The folder does not exist: .*nowhere\. Give the folder"):
        report.read_runs(tmp_path / "nowhere")
