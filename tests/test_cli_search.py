"""`spkd tune` and `spkd frontier`: what they answer, and what they refuse before TensorFlow starts."""

import json

import keras
import matplotlib.axes
import pytest
from test_cli import call, words
from tiny_experiment import TINY, untrained_teacher
from tiny_search import GAMMA, WEIGHT

from spkd_keras import plots
from spkd_keras.experiment import Dimension, Space, load_experiment
from spkd_keras.search import TrialResult
from spkd_keras.search.importance import draw, importance, short_names
from spkd_keras.training import build
from spkd_keras.training.results import error_of

SLOW = pytest.mark.slow


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--trials", "3"], "spkd: A search trains one method a trial. Received: kd, sp."),
        (["--trials", "3", "--methods", "sp"], "nothing varies."),
        (["--trials", "3", "--tuner", "bayes"], "spkd: --tuner: unknown tuner `bayes`. Did you mean `bayesian`?"),
        (["--trials", "3", "--objective", "accuracy"], "Did you mean `val_accuracy`? Valid: val_accuracy, val_loss."),
        (["--trials", "3", "--methods", "sp", "--set", f"{WEIGHT}={{choice: []}}"], "at least one value"),
        (["--trials", "3", "--methods", "sp", "--set", f"{WEIGHT}={{float: [2, 1]}}"], "with low below high"),
        (["--trials", "3", "--methods", "sp", "--set", f"{WEIGHT}={{float: [0, 1], log: true}}"], "begin above 0"),
        (["--trials", "3", "--methods", "sp", "--set", "schedule.rate={float: [1, 2]}"], "unknown key `rate`"),
        (["--trials", "3", "--methods", "sp", "--set", GAMMA, "--seeds", "a"], "--seeds takes integers"),
    ],
)
def test_tune_refuses(file, tmp_path, options, said):
    done = call("tune", file, *options, "--out", tmp_path / "runs")
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "the student does not vary"),
        (["--set", "student.width={choice: []}"], "at least one value"),
        (["--set", GAMMA], "cannot vary here"),
        (["--set", "student.width={choice: [0.25]}", "--size", "2"], "--size takes a number above 0 and a unit"),
        (["--set", "student.width={choice: [0.25]}", "--latency", "5"], "--latency takes"),
        (["--set", "student.width={choice: [0.25]}", "--format", "tflite"], "unknown format `tflite`. Did you mean"),
    ],
)
def test_frontier_refuses(file, tmp_path, options, said):
    done = call("frontier", file, *options, "--out", tmp_path / "runs")
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@SLOW
def test_tune(file, tmp_path):
    """The given weight harms in one epoch of three batches; whether another beats it is told, over two seeds."""
    teacher = f"teacher={{path: {untrained_teacher(tmp_path)}}}"
    varying = f"{WEIGHT}={{choice: [3000.0, 0.1, 1.0e+35]}}"
    options = ["--tuner", "grid", "--methods", "sp", "--seeds", "0,1", "--out", tmp_path / "runs"]
    changes = ["--set", teacher, "--set", varying, "--set", "schedule.epochs=1"]
    done = call("tune", file, "--trials", 3, *options, *changes)
    assert done.exit_code == 0, done.output
    folder = tmp_path / "runs" / "tiny-search"
    answer = json.loads((folder / "trials.json").read_text())
    assert [trial["values"][WEIGHT] for trial in answer["trials"]][-1] == 1e35
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("  ")]
    for trial in answer["trials"][:2]:
        assert [trial["name"].split()[1], f"{100 * trial['error']:.2f}", "1"] in [row[:3] for row in rows]
    assert "trial 2 (methods.sp.terms.0.weight=1.0e+35) failed: FloatingPointError: The loss is not" in done.stdout
    best, both = answer["trials"][0], answer["confirmation"]
    assert (best["name"], both["seeds"], both["failures"]) == ("trial 1", [0, 1], {})
    assert both["best"][0] == best["error"] < both["first"][0]
    assert both["differences"] == [b - f for b, f in zip(both["best"], both["first"], strict=True)]
    assert "had fewer errors than the given one (methods.sp.terms.0.weight=3000.0) with each of 2 seeds: -" in words(
        done.stdout
    )
    assert "points in the median (sign test: p = 0.5, the least that 2 can give)." in words(done.stdout)
    for name in ("best.yaml", "trials-parallel.png", "trials-parallel.svg"):
        assert str(folder / name) in words(done.stdout)
        assert (folder / name).stat().st_size
    # The same command does nothing again; its best is an experiment as it is.
    again = call("tune", file, "--trials", 3, *options, *changes, "--json")
    assert json.loads(again.stdout) == answer
    ran = call("run", folder / "best.yaml", "--out", tmp_path / "best", "--no-check", "--seeds", "0", "--json")
    assert ran.exit_code == 0, ran.output
    assert {method["method"] for method in json.loads(ran.stdout)[0]["methods"]} == {"student", "sp"}


@SLOW
def test_frontier_adds_up(file, tmp_path):
    """Two widths, two methods, two seeds: the table is made of the runs' summaries, and nothing is run again."""
    teacher = f"teacher={{path: {untrained_teacher(tmp_path)}}}"
    changes = ["--set", teacher, "--set", "student.width={choice: [0.25, 0.5]}", "--set", "schedule.epochs=1"]
    options = ["--methods", "student,sp", "--seeds", "0,1", "--out", tmp_path / "runs", *changes]
    done = call("frontier", file, *options, "--drop", "100", "--size", "2MB")
    assert done.exit_code == 0, done.output
    folder = tmp_path / "runs" / "tiny-frontier"
    answer = json.loads((folder / "frontier.json").read_text())
    assert [(s["student"], s["method"]) for s in answer["students"]] == [
        (f"width-{width}", method) for width in (0.25, 0.5) for method in ("student", "sp")
    ]
    for student in answer["students"]:
        runs = [folder / student["student"] / f"{student['method']}-seed{seed}" for seed in (0, 1)]
        summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
        assert student["errors"] == [summary["validation_error"] for summary in summaries]
        assert student["error"] == pytest.approx(sum(student["errors"]) / 2)
        assert {student["parameters"]} == {summary["parameters"] for summary in summaries}
        assert {student["multiply_adds"]} == {summary["multiply_adds"] for summary in summaries}
        assert student["bytes"] == [(run / "frontier" / "student.tflite").stat().st_size for run in runs]
        if student["method"] == "sp":
            baselines = [folder / student["student"] / f"student-seed{seed}" / "summary.json" for seed in (0, 1)]
            alone = [json.loads(path.read_text())["validation_error"] for path in baselines]
            assert student["differences"] == [e - a for e, a in zip(student["errors"], alone, strict=True)]
        shown = f"{student['parameters']:,} {student['multiply_adds']:,} {student['size']:,}"
        assert shown in words(done.stdout)
    held_out = build.load_data(load_experiment(file).data).validation
    assert answer["teacher_error"] == error_of(keras.saving.load_model(tmp_path / "teacher.keras"), held_out)
    assert (answer["met"], answer["chosen"][0]) == (True, "width-0.25")
    assert "The smallest student with a validation error of at most " in done.stdout
    assert (folder / "frontier.png").stat().st_size
    # Other constraints, which nothing meets, are answered from what is there.
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*-seed*/**/*") if path.is_file()}
    none = call("frontier", file, *options, "--drop", "100", "--size", "1kB", "--json")
    assert none.exit_code == 0
    said = json.loads(none.stdout)
    assert (said["met"], said["students"]) == (False, answer["students"])
    assert said["answer"][0].startswith("None of the 4 has ")
    assert " bytes too many" in said["answer"][0]
    assert {path: path.stat().st_mtime_ns for path in before} == before


# --- figures ---------------------------------------------------------------------------------------------------------


def trial(number, width, weight, error):
    values = {"student.width": width} | ({} if weight is None else {WEIGHT: weight})
    return TrialResult(f"trial {number}", values, "COMPLETED", 1 - error, error, 2, 100, None)


SPACE = Space(
    (
        Dimension(("student", "width"), "choice", (0.5, 1.0), default=0.5),
        Dimension(tuple(WEIGHT.split(".")), "float", (1.0, 10000.0), log=True, default=3000.0),
    ),
    ("sp",),
)
FAILED = TrialResult("trial 9", {"student.width": 0.5, WEIGHT: 1.0}, "FAILED", None, None, None, None, "NaN")


def some_trials():
    """Errors that depend on the width alone."""
    weights = [1.0, 10.0, 100.0, 1000.0, 10000.0]
    return [trial(n, width, weight, 0.4 - 0.2 * width) for n, weight in enumerate(weights) for width in (0.5, 1.0)]


def test_what_matters_is_found():
    found = importance([*some_trials(), FAILED], SPACE)
    assert found["student.width"][0] > 2
    assert found[WEIGHT] == (0.0, 0.0)
    assert importance(some_trials()[:4], SPACE) is None, "too few"
    one = Space(SPACE.dimensions[1:], ("sp",))
    assert importance(some_trials(), one) is None, "nothing to compare with"


def test_names_are_short_where_they_can_be():
    same = Dimension(("methods", "kd", "terms", "0", "weight"), "float", (0.0, 1.0))
    assert short_names(SPACE) == {"student.width": "width", WEIGHT: "weight"}
    assert short_names(Space((*SPACE.dimensions, same), ("sp",)))[WEIGHT] == WEIGHT


def test_few_trials_are_a_hint(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(plots, "importances", lambda values, title, path: titles.append(title) or [])
    for trials in (some_trials(), some_trials() * 2):
        draw(trials, SPACE, {}, tmp_path)
    assert titles == ["from 10 trials: few, so this is a hint", "from 20 trials"]


def test_figures_of_a_search(tmp_path):
    without = trial(8, 1.0, None, 0.1)  # of a method without that weight
    trials = [*some_trials(), without, FAILED]
    written = draw(trials, SPACE, importance(trials, SPACE), tmp_path)
    stems = ["trials-parallel", "importance"]
    assert [path.name for path in written] == [f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")]
    assert all(path.stat().st_size > 1000 for path in written)
    assert draw([FAILED], SPACE, None, tmp_path) == []


@pytest.fixture
def lines(monkeypatch):
    """What is drawn as lines: their points and how."""
    drawn = []
    plot = matplotlib.axes.Axes.plot

    def keeping_plot(self, *args, **kwargs):
        drawn.append((args, kwargs))
        return plot(self, *args, **kwargs)

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", keeping_plot)
    return drawn


def test_the_best_trial_is_drawn_last_and_thickest(tmp_path, lines):
    axes = {"width": [(0.0, "0.5"), (1.0, "1")]}
    plots.parallel_coordinates(axes, [[0.0], [1.0], [None]], [0.3, 0.1, 0.2], tmp_path / "p")
    found = [(heights[0], options["linewidth"]) for (heights, *_), options in lines]
    assert found == [(0.0, 1.0), (plots.UNUSED, 1.0), (1.0, 2.5)]


def test_figure_of_a_frontier(tmp_path):
    costs = {"parameters": {"sp": [(100, 0.1, 0.05, 0.12)]}, "latency, ms": {"sp": [(0.5, 0.1, 0.05, 0.12)]}}
    fronts = {"parameters": [(100, 0.1)], "latency, ms": [(0.5, 0.1)]}
    written = plots.frontier(costs, fronts, {"latency, ms": 5.0}, 0.15, tmp_path / "frontier")
    assert all(path.stat().st_size > 1000 for path in written)
