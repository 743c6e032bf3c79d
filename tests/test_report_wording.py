"""From summed up experiments to cells, sentences and Markdown."""

import json

import pytest
from fake_runs import BARE_ERRORS, HOSTILE, single, write_bare_run, write_bare_runs, write_files, write_run, write_runs
from test_report import method_of, summarised

from spkd_keras import report

FEWER, MORE = (f"had {than} errors than the student alone" for than in ("fewer", "more"))
SUMMARY = {"test_error": 0.5, "test_error_best": None, "parameters": 1, "multiply_adds": 1}
OF = "points in the median"
SAME, UNSURE = "had as many errors as the student alone", "is not told apart from the student alone"


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
    ("differences", "said"),
    [
        (
            [-0.125],
            f"{FEWER} with the one seed: -12.50 {OF} (sign test: p = 1, the least that 1 can give)",
        ),
        (
            [0.125],
            f"{MORE} with the one seed: +12.50 {OF} (sign test: p = 1, the least that 1 can give)",
        ),
        ([0.0], f"{SAME}: +0.00 {OF} of 1 seed (0 better, 0 worse, 1 equal; sign test: p = 1)"),
        (
            [-0.25, 0.125, -0.125],
            f"{UNSURE}: -12.50 {OF} of 3 seeds (2 better, 1 worse; sign test: p = 1)",
        ),
        ([0.25, -0.125], f"{UNSURE}: +6.25 {OF} of 2 seeds (1 better, 1 worse; sign test: p = 1)"),
        (
            [0.0, -0.125],
            f"{UNSURE}: -6.25 {OF} of 2 seeds (1 better, 0 worse, 1 equal; sign test: p = 1)",
        ),
        # 2 of the 2^3 ways that three signs can fall, of 2^5, of 2^6, and of 2^7
        (
            [-0.125, -0.25, -0.125],
            f"{FEWER} with each of 3 seeds: -12.50 {OF} (sign test: p = 0.25, the least that 3 can give)",
        ),
        (
            [-0.125] * 5,
            f"{FEWER} with each of 5 seeds: -12.50 {OF} (sign test: p = 0.062, the least that 5 can give)",
        ),
        ([0.125] * 6, f"{MORE}: +12.50 {OF} of 6 seeds (0 better, 6 worse; sign test: p = 0.031)"),
        # A tie is no sign: six of seven that differ the same way are enough. 2 (1 + 9) / 2^9 = 0.039.
        (
            [0.125] * 6 + [0.0],
            f"{MORE}: +12.50 {OF} of 7 seeds (0 better, 6 worse, 1 equal; sign test: p = 0.031)",
        ),
        (
            [-0.125] * 8 + [0.125],
            f"{FEWER}: -12.50 {OF} of 9 seeds (8 better, 1 worse; sign test: p = 0.039)",
        ),
    ],
)
def test_verdicts(tmp_path, differences, said):
    for seed, difference in enumerate(differences):
        write_bare_run(tmp_path, "student", seed, 0.5)
        write_bare_run(tmp_path, "sp", seed, 0.5 + difference)
    assert report.verdicts(summarised(tmp_path)) == [f"sp {said}."]


def test_markdown(tmp_path):
    write_bare_run(tmp_path, "student", 0, 0.5, 0.25)
    write_bare_run(tmp_path, "student", 1, 0.25, 0.25)
    write_bare_run(tmp_path, "sp", 0, 0.25)
    write_bare_run(tmp_path, "sp", 1)
    result = summarised(tmp_path)
    assert report.markdown([result], [{"Similarity matrices": "tiny-similarity.png"}]) == (
        f"# Results\n\n{report.EXPLANATION}\n"
        "\n"
        "## tiny\n"
        "\n"
        "Data: digits (batch_size 128). Networks: student wide_resnet. Medians over the seeds, ranges in brackets.\n"
        "\n"
        "| method | seeds | test error, % | against the same-seed student, points | "
        "test error at the best validation epoch, % | parameters | multiply-adds |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
        "| student | 2 | 37.50 (25.00 to 50.00) |  | 25.00 (25.00 to 25.00) | 1,234 | 12,340 |\n"
        "| sp | 1 | 25.00 | -25.00 |  | 1,234 | 12,340 |\n"
        "\n"
        "- Not every method has all seeds: sp lacks 1. Only those of both are compared.\n"
        "- sp had fewer errors than the student alone with the one seed: -25.00 points in the median "
        "(sign test: p = 1, the least that 1 can give).\n"
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


@pytest.mark.parametrize(
    ("medians", "said"),
    [
        ({100: 0.25, 1000: 0.125, 3000: 0.5}, "Lowest at 1000."),
        ({1000: 0.25, 100: 0.125}, "Lowest at 100, the smallest that was tried."),
        ({100: 0.25, 1000: 0.125}, "Lowest at 1000, the largest that was tried."),
        ({1000: 0.125, 100: 0.125, 3000: 0.25}, "Lowest at 100 and 1000."),
    ],
)
def test_the_lowest_weight(medians, said):
    errors = {weight: [error] for weight, error in medians.items()}
    curve = report.WeightCurve("soft_targets", ["kd"], "held-out", [0], errors, [], [], {}, [])
    assert report.tell_weights(curve).endswith(f" %. {said}")


def test_a_curve_is_of_medians_over_seeds():
    errors, alone = {1.0: [0.1, 0.2, 0.9], 2.0: [0.3] * 3}, [0.5, 0.5, 0.2]
    curve = report.WeightCurve("soft_targets", ["kd"], "held-out", [0, 1, 2], errors, alone, [], {}, [])
    assert "1: 20.00 %, 2: 30.00 %. Student alone: 50.00 %. Lowest at 1," in report.tell_weights(curve)


def test_whose_costs_they_are(root):
    assert report.costs(summarised(root)) == [
        "teacher: 56,789 parameters, 567,890 multiply-adds",
        "student: 1,234 parameters, 12,340 multiply-adds",
    ]


def test_classes_without_test_images_are_told(tmp_path):
    write_run(tmp_path, "sp", 0, 0.5, [0.5, None, 0.25])
    (write_run(tmp_path, "sp", 1, 0.5, []) / "summary.json").unlink()  # not finished yet
    (told, *_) = report.settings(summarised(tmp_path))
    assert told == "Data: cifar10 (batch_size 128) with test images of 2 of its 3 classes."


def test_the_settings_are_told(tmp_path):
    write_runs(tmp_path)
    assert report.settings(summarised(tmp_path)) == [
        "Data: cifar10 (batch_size 128).",
        "Networks: student wide_resnet, teacher wide_resnet (width 2).",
        "Losses: kd: student_loss + 0.9 soft_targets (temperature 4); sp: student_loss + 100 similarity_preserving; "
        "sp-1000: student_loss + 1000 similarity_preserving.",
    ]


def test_settings_beyond_the_defaults_and_those_that_differ(tmp_path):
    kd = {"student_loss_weight": 0.1, "terms": [{"loss": "soft_targets", "weight": 0.9, "schedule": {"warm_up": 5}}]}
    taps = [{"loss": "similarity_preserving", "weight": 1000.0, "teacher": ["stage2", "stage3"]}]
    pure = {"student_loss_weight": 0, "terms": taps}
    teachers = (
        {"path": "/home/me/large.keras", "cache": {"sketch": 64, "path": "/home/me/cache"}},
        {"model": "mobilenet"},
    )
    for seed, (method, teacher) in enumerate(zip((kd, pure), teachers, strict=True)):
        plain = {"methods": {"kd": method}, "teacher": teacher, "student": {"model": "mobilenet", "width": 0.25}}
        write_files(tmp_path, single("kd", seed, "tiny", "dtd/fold1", precision="mixed_bfloat16", **plain), SUMMARY)
    assert report.settings(summarised(tmp_path)) == [
        "Data: dtd/fold1 (batch_size 128).",
        "Networks: student mobilenet (width 0.25), teacher large.keras (cache sketch 64) or mobilenet, in "
        "mixed_bfloat16.",
        "Losses: kd: 0.1 student_loss + 0.9 soft_targets (schedule warm_up 5) or 1000 similarity_preserving "
        "(teacher stage2+stage3).",
    ]


def test_a_teacher_alone_has_no_settings(tmp_path):
    write_bare_run(tmp_path, "teacher", 0, 0.5)
    assert report.settings(summarised(tmp_path)) == []
