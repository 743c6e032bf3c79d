"""From run folders to tables and pages, on folders written by hand."""

import json

import numpy as np
import pytest
from fake_runs import BARE_ERRORS, HOSTILE, SEEDS, write_bare_run, write_bare_runs, write_run, write_runs

from spkd_keras import plots, report
from spkd_keras.experiment import ExperimentError


@pytest.fixture
def root(tmp_path):
    return write_bare_runs(tmp_path / "runs" / "tiny")


def summarised(folder):
    (result,) = report.summarise(report.read_runs(folder))
    return result


def method_of(result, name):
    return next(method for method in result.methods if method.method == name)


FEWER, MORE, UNSURE = "had fewer errors than", "had more errors than", "is not told apart from"


# --- reading and summing up ------------------------------------------------------------------------------------------


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


# --- words and numbers -----------------------------------------------------------------------------------------------


def test_cells(root):
    result = summarised(root)
    # Medians of (12.5, 25, 50), of (-12.5, -25, +12.5) and of (25, 37.5, 62.5).
    assert report.cells(method_of(result, "sp")) == [
        "sp",
        "3",
        "25.00 (12.50 to 50.00)",
        "-12.50 (-25.00 to +12.50)",
        "37.50 (25.00 to 62.50)",
        "1,234",
        "12,340",
    ]
    assert report.cells(method_of(result, "teacher")) == ["teacher", "1", "6.25", "", "", "56,789", "567,890"]
    assert len(report.COLUMNS) == len(report.cells(result.methods[0]))


@pytest.mark.parametrize(
    ("differences", "outcome", "points", "counts"),
    [
        (
            [-0.125],
            FEWER,
            "-12.50 points in the median of 1 seed",
            "1 better, 0 worse; sign test: p = 1, the least that 1 seed can give",
        ),
        (
            [0.125],
            MORE,
            "+12.50 points in the median of 1 seed",
            "0 better, 1 worse; sign test: p = 1, the least that 1 seed can give",
        ),
        (
            [0.0],
            "had as many errors as",
            "+0.00 points in the median of 1 seed",
            "0 better, 0 worse, 1 equal; sign test: p = 1",
        ),
        (
            [-0.25, 0.125, -0.125],
            UNSURE,
            "-12.50 points in the median of 3 seeds",
            "2 better, 1 worse; sign test: p = 1",
        ),
        ([0.25, -0.125], UNSURE, "+6.25 points in the median of 2 seeds", "1 better, 1 worse; sign test: p = 1"),
        (
            [0.0, -0.125],
            UNSURE,
            "-6.25 points in the median of 2 seeds",
            "1 better, 0 worse, 1 equal; sign test: p = 1",
        ),
        # 2 of the 2^3 ways that three signs can fall, of 2^6, and of 2^7
        (
            [-0.125, -0.25, -0.125],
            FEWER,
            "-12.50 points in the median of 3 seeds",
            "3 better, 0 worse; sign test: p = 0.25, the least that 3 seeds can give",
        ),
        ([0.125] * 6, MORE, "+12.50 points in the median of 6 seeds", "0 better, 6 worse; sign test: p = 0.031"),
        # A tie is no sign: six of seven that differ the same way are enough. 2 (1 + 9) / 2^9 = 0.039.
        (
            [0.125] * 6 + [0.0],
            MORE,
            "+12.50 points in the median of 7 seeds",
            "0 better, 6 worse, 1 equal; sign test: p = 0.031",
        ),
        (
            [-0.125] * 8 + [0.125],
            FEWER,
            "-12.50 points in the median of 9 seeds",
            "8 better, 1 worse; sign test: p = 0.039",
        ),
    ],
)
def test_verdicts(tmp_path, differences, outcome, points, counts):
    for seed, difference in enumerate(differences):
        write_bare_run(tmp_path, "student", seed, 0.5)
        write_bare_run(tmp_path, "sp", seed, 0.5 + difference)
    assert report.verdicts(summarised(tmp_path)) == [f"sp {outcome} the student alone: {points} ({counts})."]


def test_markdown(tmp_path):
    write_bare_run(tmp_path, "student", 0, 0.5, 0.25)
    write_bare_run(tmp_path, "student", 1, 0.25, 0.25)
    write_bare_run(tmp_path, "sp", 0, 0.25)
    write_bare_run(tmp_path, "sp", 1)
    result = summarised(tmp_path)
    assert report.markdown([result], {result.folder: {"Similarity matrices": "tiny-similarity.png"}}) == (
        f"# Results\n\n{report.EXPLANATION}\n"
        "\n"
        "## tiny\n"
        "\n"
        "Medians over the seeds, ranges in brackets.\n"
        "\n"
        "| method | seeds | test error, % | against the same-seed student, points | "
        "test error at the best validation epoch, % | parameters | multiply-adds |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
        "| student | 2 | 37.50 (25.00 to 50.00) |  | 25.00 (25.00 to 25.00) | 1,234 | 12,340 |\n"
        "| sp | 1 | 25.00 | -25.00 |  | 1,234 | 12,340 |\n"
        "\n"
        "- Not every method has all seeds: sp lacks 1. Only those of both are compared.\n"
        "- sp had fewer errors than the student alone: -25.00 points in the median of 1 seed (1 better, 0 worse; "
        "sign test: p = 1, the least that 1 seed can give).\n"
        "- Not finished: sp-seed1.\n"
        "\n"
        "![Similarity matrices of tiny](tiny-similarity.png)\n"
    )
    assert "![" not in report.markdown([result])


def test_what_was_published_and_what_it_took_stand_beside_it(tmp_path):
    write_runs(tmp_path)
    result = summarised(tmp_path)
    columns, rows = report.table(result)
    assert columns == [
        *report.COLUMNS[:3],
        "published, %",
        *report.COLUMNS[3:],
        *("epochs", "training images", "minutes a run"),
    ]
    sp = rows[3]
    # 90 and 150 seconds
    assert (sp[0], sp[3], sp[-3:]) == ("sp", "7.52", ["3", "1,000", "2.0"])
    assert rows[0][3] == "", "nothing was published of the teacher"
    line = f"Published test error, %: student 8.74, sp 7.52 (a paper {HOSTILE})."
    assert report.published(result) == [line]
    assert f"- {line}" in report.markdown([result])
    (plain,) = json.loads(json.dumps(report.as_json([result])))
    assert plain["methods"][3]["published"] == {"source": f"a paper {HOSTILE}", "test_error": {"sp": 7.52}}


def test_as_json(root):
    (plain,) = json.loads(json.dumps(report.as_json(report.summarise(report.read_runs(root)))))
    assert (plain["experiment"], plain["folder"], plain["unfinished"]) == ("tiny", str(root), ["at-seed1"])
    assert [method["method"] for method in plain["methods"]] == ["teacher", "student", "kd", "sp"]
    assert plain["methods"][-1]["errors"] == BARE_ERRORS["sp"]


# --- the written report ----------------------------------------------------------------------------------------------


def test_write_report(root, tmp_path):
    out = tmp_path / "deep" / "report"
    results, written = report.write_report(report.read_runs(root), out)
    names = ["RESULTS.md", "tiny-errors.png", "tiny-errors.svg", "tiny-similarity.png", "tiny-similarity.svg"]
    assert written == [out / name for name in names]
    assert sorted(path.name for path in out.iterdir()) == names
    text = (out / "RESULTS.md").read_text(encoding="utf-8")
    shown = {"Test errors by seed": "tiny-errors.png", "Similarity matrices": "tiny-similarity.png"}
    assert text == report.markdown(results, {results[0].folder: shown})
    assert "Not finished: at-seed1." in text


def test_a_report_among_the_runs_is_no_run(root):
    before = len(report.read_runs(root))
    report.write_report(report.read_runs(root), root / "report")
    assert len(report.read_runs(root)) == before


def test_what_is_drawn(root, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "similarity_matrices", lambda matrices, *_: drawn.update(matrices) or [])
    report.write_report(report.read_runs(root), tmp_path / "report")
    assert list(drawn) == ["teacher", "student alone", "kd", "sp"]
    np.testing.assert_array_equal(drawn["teacher"], np.eye(4))
    np.testing.assert_array_equal(drawn["sp"], np.full((4, 4), 0.1), "of the first seed")


def test_a_report_without_matrices(tmp_path):
    write_bare_run(tmp_path / "tiny", "student", 0, 0.5, similarity=False)
    _, written = report.write_report(report.read_runs(tmp_path), tmp_path / "report")
    assert written == [tmp_path / "report" / "RESULTS.md"]
    assert "![" not in written[0].read_text(encoding="utf-8")


def test_nothing_is_finished(tmp_path):
    write_bare_run(tmp_path / "tiny", "student", 0)
    (result,), written = report.write_report(report.read_runs(tmp_path), tmp_path / "report")
    assert (result.methods, result.unfinished) == ([], ["student-seed0"])
    assert "- Not finished: student-seed0." in written[0].read_text(encoding="utf-8")


def test_two_experiments_of_one_name_have_a_figure_each(tmp_path):
    # As `--out runs/one` and `--out runs/two` leave them.
    for folder, seed in (("one", 0), ("two", 5)):
        write_bare_run(tmp_path / "runs" / folder / "tiny", "student", seed, 0.5)
    _, written = report.write_report(report.read_runs(tmp_path / "runs"), tmp_path / "report")
    assert len(set(written)) == 5
    figures = [line for line in written[0].read_text(encoding="utf-8").splitlines() if line.startswith("![")]
    assert len(set(figures)) == 2


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


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_damaged_matrices(root, tmp_path, content):
    (root / "sp-seed0" / "similarity.npz").write_bytes(content)
    with pytest.raises(ExperimentError, match=r"sp-seed0/similarity\.npz"):
        report.write_report(report.read_runs(root), tmp_path / "report")


def test_an_experiment_that_is_no_run(root, tmp_path):
    # What the user wrote, above the runs. It may be passed over or named, and nothing else.
    text = "{name: tiny, data: {name: digits}, student: {model: wide_resnet}, methods: {student: [], b: []}}"
    (tmp_path / "experiment.yaml").write_text(text, encoding="utf-8")
    try:
        outcome = len(report.read_runs(tmp_path))
    except ExperimentError as error:
        outcome = str(tmp_path / "experiment.yaml") in str(error)
    assert outcome in (11, True)


def test_no_runs(tmp_path):
    with pytest.raises(ExperimentError, match=r"^There are no runs in .*\. Give the folder that `spkd run` wrote"):
        report.read_runs(tmp_path)
    with pytest.raises(ExperimentError, match=r"^The folder does not exist: .*nowhere\. Give the folder"):
        report.read_runs(tmp_path / "nowhere")


def test_a_file_where_the_report_goes(root, tmp_path):
    (tmp_path / "report").write_text("in the way", encoding="utf-8")
    with pytest.raises(
        ExperimentError, match=r"^The report cannot be written to .*report \(.*Choose another with --out"
    ):
        report.write_report(report.read_runs(root), tmp_path / "report")
