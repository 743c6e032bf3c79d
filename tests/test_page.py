"""The page with all results: what is on it, and that it needs nothing else."""

import html
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from fake_runs import CLASSES, ERRORS, HOSTILE, change, write_run, write_runs, write_trial
from typer.testing import CliRunner

from spkd_keras import page as pages
from spkd_keras import plots, report
from spkd_keras.cli import app
from spkd_keras.experiment import CacheSpec, Experiment, ExperimentError
from spkd_keras.page import contents, figures, write
from spkd_keras.run_files import read_history

SVG = "{http://www.w3.org/2000/svg}"
XLINK = "{http://www.w3.org/1999/xlink}href"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def path(folder, tmp_path_factory):
    return pages.write_page(report.read_runs(folder), tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def text(path):
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tree(text):
    return ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))  # every element is closed


@pytest.fixture(scope="module")
def section(folder):
    runs = report.read_runs(folder)
    return contents.section(report.summarise(runs)[0], "one")


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else(path, text, tree):
    assert path.name == "results.html"
    assert path.stat().st_size < pages.LARGEST_PAGE == 3_000_000
    for element in tree.iter():
        assert element.tag.rpartition("}")[2] not in ("script", "iframe", "object", "embed", "base")
        for name, value in element.attrib.items():
            if name in ("src", "href", "srcset", "action", XLINK):
                assert value.startswith(("#", "data:")), value
            assert not re.search(r"url\((?!#)", value)
            assert not name.startswith("on")
    style = "".join(tree.find("head/style").itertext())
    assert "@import" not in style
    assert "url(" not in style
    assert "prefers-color-scheme: dark" in style
    assert "default-src 'none'" in text, "the browser refuses what would be loaded"
    assert tree.find("head/meta[@name='viewport']").get("content") == "width=device-width, initial-scale=1"


def test_every_name_in_it_is_one_element_and_leads_somewhere(text, tree):
    names = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(names) == len(set(names))
    targets = [e.get(key) for e in tree.iter() for key in ("href", XLINK) if (e.get(key) or "").startswith("#")]
    targets += [f"#{name}" for name in re.findall(r"url\(#([^)]+)\)", text)]
    assert len(targets) > 10
    assert {target[1:] for target in targets} <= set(names)


def test_every_figure_says_what_is_to_be_seen(tree):
    shown = list(tree.iter("figure"))
    # Errors, curves, five matrices (teacher, student, three methods) and their colours, a weight's curve, the classes.
    assert len(shown) == 1 + 1 + 5 + 1 + 1 + 1
    for figure in shown:
        (svg,) = figure.findall(f"{SVG}svg")
        assert svg.get("role") == "img"
        assert len(svg.get("aria-label")) > 20
        assert figure.find("figcaption").text.strip()


def test_the_colours_are_the_page_s(text, tree):
    style = "".join(tree.find("head/style").itertext())
    for name in re.findall(r"var\((--[\w-]+)\)", text):
        assert style.count(f"{name}:") == 2, "in light and in dark"
    for svg in tree.iter(f"{SVG}svg"):
        drawn = ElementTree.tostring(svg, encoding="unicode")
        assert not re.search(r"(fill|stroke): #(?!ffffff)", drawn), "black lines cannot be seen in the dark"


def test_what_users_name_is_text(tree, text):
    assert "<script" not in text
    words = [element.text or "" for element in tree.iter()]
    assert any(HOSTILE in text for text in words), "the class, in the figure, with its dollars"
    assert any(f"a paper {HOSTILE}" in text for text in words), "the source"


def test_the_same_runs_give_the_same_page(folder, path, tmp_path):
    assert pages.write_page(report.read_runs(folder), tmp_path).read_bytes() == path.read_bytes()


# --- what it says ----------------------------------------------------------------------------------------------------


def test_the_results_are_the_report_s(folder, text):
    (result,) = report.summarise(report.read_runs(folder))
    plain = html.unescape(text)
    for verdict in report.verdicts(result):
        assert plain.count(f"<li>{verdict}</li>") == 2, "at the top and in its section"
    assert "sp-1000 had more errors than the student alone with each of 2 seeds: +25.00 points in the median" in plain
    rows = re.findall(r'<tr><th scope="row">(.*?)</tr>', text, flags=re.DOTALL)
    cells = {row.split("</th>")[0]: re.findall(r"<td>(.*?)</td>", row) for row in rows[:5]}
    # Medians of 25 and 12.5; of -25 and -12.5.
    between = [value.split("<small>")[0] for value in cells["sp"]]
    assert between == ["2", "18.75", "7.52", "-18.75", "18.75", "3", "1,000"]
    assert cells["teacher"][2] == "", "nothing was published of it"


def test_costs(section):
    assert len(contents.COST_COLUMNS) == len(section["costs"][0])
    # 90 seconds and 150 seconds
    assert section["costs"][1] == ["student", "175,066", "26.7", "2.0", "12", "1.00"]
    assert section["conditions"] == ["CPU:0, 2 threads, keras 3.15.1"]


def test_the_errors_of_each_seed(section, folder, monkeypatch):
    assert "student alone 37.50 %, kd 37.50 %, sp 18.75 %, sp-1000 62.50 %" in section["errors"].caption
    drawn = {}
    monkeypatch.setattr(plots, "errors_by_seed", lambda errors, *_: drawn.update(errors) or [])
    report.write_report(report.read_runs(folder), folder / "report")
    assert drawn["sp"] == [25.0, 12.5]
    assert list(drawn) == ["teacher", "student alone", "kd", "sp", "sp-1000"]


def test_learning_curves_are_medians_and_ranges(folder, monkeypatch):
    drawn = {}
    monkeypatch.setattr(figures, "learning_curves", lambda curves, *rest: drawn.update(curves) or "")
    runs = report.read_runs(folder)
    found = contents.section(report.summarise(runs)[0], "one")["curves"]
    assert list(drawn) == ["student alone", "kd", "sp", "sp-1000"], "the teacher had a schedule of its own"
    # 1 - val_accuracy: the error and 2/16, 1/16, 0 more
    np.testing.assert_allclose(drawn["sp"], [[37.5, 31.25, 25.0], [25.0, 18.75, 12.5]])
    assert "student alone 37.5 %" in found.caption
    assert "held-out images" in found.caption


def test_without_held_out_images_the_curves_are_of_training(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "tiny", "student", 0, 0.5, [0.5] * 3)
    (folder / "history.csv").write_text("epoch,accuracy\n1,0.25\n2,0.75\n", encoding="utf-8")
    drawn = {}
    monkeypatch.setattr(figures, "learning_curves", lambda curves, label, *rest: drawn.update({label: curves}) or "")
    runs = report.read_runs(tmp_path)
    contents.section(report.summarise(runs)[0], "one")
    np.testing.assert_allclose(drawn["error on training images, %"]["student alone"], [[75.0, 25.0]])


def test_similarities_are_told_in_numbers(section):
    captions = [figure.caption for figure in section["similarities"]]
    # Two images of class 0, one of class 1: the teacher's are 0 off the diagonal.
    assert captions[0] == "teacher: 0.000 within a class, 0.000 between classes, in the mean"
    assert captions[1] == "student alone: 0.500 within a class, 0.250 between classes, in the mean"
    assert [caption.split(":")[0] for caption in captions[:-1]] == ["teacher", "student alone", "kd", "sp", "sp-1000"]


def test_the_curve_of_a_weight(folder, section, tmp_path):
    runs = report.read_runs(folder)
    (curve,) = report.weight_curves(runs)
    assert (curve.term, curve.methods, curve.measured) == ("similarity_preserving", ["sp", "sp-1000"], "held-out")
    held_out = {key: error + 0.03125 for key, (error, _) in ERRORS.items()}
    assert curve.errors == {
        100.0: [held_out["sp", 0], held_out["sp", 1]],
        1000.0: [held_out["sp-1000", 0], held_out["sp-1000", 1]],
    }
    assert curve.baseline == [held_out["student", 0], held_out["student", 1]]
    (figure,) = section["weights"]
    assert "Lowest at 100, the smallest that was tried." in figure.caption
    for weight in ("100", "1000"):
        assert f">{weight}</text>" in figure.svg, "the tried weights are on the axis"


@pytest.mark.parametrize(("augmentation", "sketch", "curves"), [("none", None, 1), ("cifar", None, 0), ("none", 64, 0)])
def test_a_cache_changes_nothing_but_where_it_keeps_less(augmentation, sketch, curves, folder):
    """Of two weights one was tried from a cache."""
    runs = []
    for run in report.read_runs(folder):
        changes = {"data": run.spec.data.model_copy(update={"augmentation": augmentation})}
        if run.method == "sp":
            changes["teacher"] = run.spec.teacher.model_copy(update={"cache": CacheSpec(sketch=sketch)})
        runs.append(run._replace(spec=run.spec.model_copy(update=changes)))
    assert len(report.weight_curves(runs)) == curves


def test_trials_of_a_search_lie_on_the_curve(tmp_path):
    write_runs(tmp_path / "tiny")
    epochs = Experiment.model_fields["schedule"].default.epochs
    write_trial(tmp_path, 0, 300.0, {"validation_error": 0.2, "epochs": epochs})
    write_trial(tmp_path, 1, 100.0, {"validation_error": 0.9, "epochs": epochs})  # run again: 0.28125
    write_trial(tmp_path, 2, 3000.0, {"validation_error": 0.1, "epochs": epochs - 1})  # ended early by Hyperband
    write_trial(tmp_path, 3, 10.0, {"failed": "ValueError: no"})
    runs, trials = report.read_runs(tmp_path), report.read_trials(tmp_path)
    assert len(runs) == len(ERRORS)
    (result,) = report.summarise(runs, trials)
    (curve,) = result.weights
    assert list(curve.errors) == [100.0, 300.0, 1000.0]
    assert curve.errors[300.0] == [0.2]
    # Of seed 0, which every weight was tried with: 0.9 and 0.2 as trials, 0.78125 as a run; the student's 0.53125.
    told = "median of 1 seed: 100: 90.00 %, 300: 20.00 %, 1000: 78.12 %. Student alone: 53.12 %. Lowest at 300. "
    told += "Run again with 100: 28.12 %."
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--html"])
    assert told in " ".join(done.output.split())
    assert told in (tmp_path / "report" / "RESULTS.md").read_text(encoding="utf-8")
    assert told in (tmp_path / "report" / "results.html").read_text(encoding="utf-8")


def test_a_weight_with_other_seeds_alone_is_left_out_and_named(tmp_path):
    root = write_runs(tmp_path / "tiny")
    write_run(root, "sp-30", 7, 0.5, [0.5] * 3, terms=[{"loss": "similarity_preserving", "weight": 30.0}])
    (curve,) = report.weight_curves(report.read_runs(root))
    assert (list(curve.errors), curve.seeds, curve.left_out) == ([100.0, 1000.0], [0, 1], [30.0])
    for seed in (8, 9):  # more seeds, of one weight
        write_run(root, "sp-30", seed, 0.5, [0.5] * 3, terms=[{"loss": "similarity_preserving", "weight": 30.0}])
    (curve,) = report.weight_curves(report.read_runs(root))
    assert report.tell_weights(curve).endswith("Left out, with other seeds alone: 30.")


@pytest.mark.parametrize("text", ["{", "[]", '{"epochs": %d}', '{"epochs": %d, "validation_error": "low"}'])
def test_a_damaged_trial(tmp_path, text):
    epochs = Experiment.model_fields["schedule"].default.epochs
    folder = write_trial(tmp_path, 0, 300.0, {})
    (folder / "outcome.json").write_text(text.replace("%d", str(epochs)), encoding="utf-8")
    with pytest.raises(ExperimentError, match=r"trial_0/outcome\.json is damaged .*Delete it"):
        report.read_trials(tmp_path)


@pytest.mark.parametrize(
    "terms",
    [
        [{"loss": "similarity_preserving", "weight": 3000.0, "student": "head"}],
        [{"loss": "pkt", "weight": 3000.0}],
        [{"loss": "similarity_preserving", "weight": 0.0}],
        [{"loss": "similarity_preserving", "weight": 3000.0}, {"loss": "pkt"}],
    ],
)
def test_what_differs_in_more_is_no_curve(tmp_path, terms):
    write_run(tmp_path / "tiny", "sp", 0, 0.5, [0.5] * 3)
    write_run(tmp_path / "tiny", "other", 0, 0.5, [0.5] * 3, terms=terms)
    assert report.weight_curves(report.read_runs(tmp_path)) == []


def test_changes_of_classes_are_against_the_same_seed(folder, monkeypatch):
    drawn = {}
    monkeypatch.setattr(figures, "changes_by_class", lambda changes, names, *rest: drawn.update(changes, n=names) or "")
    runs = report.read_runs(folder)
    found = contents.section(report.summarise(runs)[0], "one")["classes"]
    assert drawn["n"] == CLASSES
    # sp: seed 0 (0, -25, -50), seed 1 (-25, 0, -12.5); kd has seed 0 alone.
    assert drawn["sp"] == [-12.5, -12.5, -31.25]
    assert drawn["kd"] == [0.0, -12.5, -25.0]
    assert "sp: from -31.2 points (owl) to -12.5 (cat)" in found.caption


def test_classes_of_what_is_not_compared_are_not_shown(tmp_path, monkeypatch):
    """A method with another setting than the student alone, and runs of a method that differ among themselves."""
    drawn = {}
    monkeypatch.setattr(figures, "changes_by_class", lambda changes, *rest: drawn.update(changes) or "")
    write_runs(tmp_path)
    change(tmp_path / "sp-seed0", "epochs: 200", "epochs: 30")
    change(tmp_path / "kd-seed0", "epochs: 200", "epochs: 30")
    (result,) = report.summarise(report.read_runs(tmp_path))
    contents.section(result, "one")
    assert list(drawn) == ["sp-1000"]
    file = tmp_path / "sp-1000-seed1" / "summary.json"
    known = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in known.items() if "class" not in k}), encoding="utf-8")
    (result,) = report.summarise(report.read_runs(tmp_path))
    assert contents.section(result, "one")["classes"] is not None, "of the other seed"
    file.write_text(json.dumps(known).replace('"owl"', '"emu"'), encoding="utf-8")
    (result,) = report.summarise(report.read_runs(tmp_path))
    assert contents.section(result, "one")["classes"] is None, "their classes are others"


def test_of_many_classes_those_are_shown_that_change_most(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(contents, "SHOWN_CLASSES", 1)
    monkeypatch.setattr(figures, "changes_by_class", lambda changes, names, *rest: drawn.update(changes, n=names) or "")
    write_run(tmp_path / "tiny", "student", 0, 0.5, [0.5, 0.5, None])
    write_run(tmp_path / "tiny", "sp", 0, 0.5, [0.5, 0.75, None])
    runs = report.read_runs(tmp_path)
    found = contents.section(report.summarise(runs)[0], "one")["classes"]
    assert drawn == {"n": [HOSTILE], "sp": [25.0]}
    assert "The 1 of 3 classes that change most." in found.caption


# --- what may be missing or too much ---------------------------------------------------------------------------------


def test_runs_of_which_only_the_summary_is_kept(tmp_path):
    folder = write_runs(tmp_path / "tiny")
    for file in [*folder.rglob("history.csv"), *folder.rglob("similarity.npz")]:
        file.unlink()
    for file in folder.rglob("summary.json"):
        file.write_text('{"test_error": 0.5, "test_error_best": null, "parameters": 1, "multiply_adds": 1}')
    text = pages.write_page(report.read_runs(tmp_path), tmp_path / "report").read_text(encoding="utf-8")
    assert "Learning curves" not in text
    assert text.count("The weight of a term") == 1, "which needs no more"
    assert text.count("<figure") == 2, "that, and the errors"


def test_runs_that_are_not_finished(tmp_path):
    folder = write_run(tmp_path / "tiny", "sp", 0, 0.5, [0.5] * 3)
    (folder / "summary.json").unlink()
    text = pages.write_page(report.read_runs(tmp_path), tmp_path / "report").read_text(encoding="utf-8")
    assert "Not finished: sp-seed0." in text


def test_a_page_that_would_be_too_large(folder, tmp_path, text, monkeypatch):
    runs = report.read_runs(folder)
    monkeypatch.setattr(write, "LARGEST_PAGE", len(text.encode()))
    smaller = pages.write_page(runs, tmp_path).read_text(encoding="utf-8")
    assert len(smaller) < len(text)
    assert "The similarity matrices are left out" in smaller
    assert smaller.count("<figure") == 4
    monkeypatch.setattr(write, "LARGEST_PAGE", 1000)
    with pytest.raises(ExperimentError, match=r"^The page of these 1 experiments would have .* Report on fewer"):
        pages.write_page(runs, tmp_path)


def test_a_damaged_history(tmp_path):
    folder = write_run(tmp_path / "tiny", "student", 0, 0.5, [0.5] * 3)
    (folder / "history.csv").write_text("epoch,accuracy\n1,x\n", encoding="utf-8")
    (run,) = report.read_runs(tmp_path)
    with pytest.raises(ExperimentError, match=r"history\.csv is damaged .*Delete it"):
        read_history(run)


def test_the_command(folder, tmp_path):
    done = CliRunner().invoke(app, ["report", str(folder), "--out", str(tmp_path), "--html"])
    assert done.exit_code == 0
    assert f"{tmp_path / 'results.html'}" in done.stdout
    assert (tmp_path / "RESULTS.md").exists()
    assert "Published test error, %: student 8.74, sp 7.52 (a paper" in done.stdout
    (tmp_path / "in the way").write_text("")
    failed = CliRunner().invoke(app, ["report", str(folder), "--out", str(tmp_path / "in the way"), "--html"])
    assert failed.exit_code == 2
