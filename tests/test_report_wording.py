"""From summed up experiments to cells, sentences and Markdown."""

import json

import pytest
from fake_runs import BARE_ERRORS, HOSTILE, write_bare_run, write_bare_runs, write_runs
from test_report import method_of, summarised

from spkd_keras import report

FEWER, MORE, UNSURE = "had fewer errors than", "had more errors than", "is not told apart from"


@pytest.fixture
def root(tmp_path):
    return write_bare_runs(tmp_path / "runs" / "tiny")


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
