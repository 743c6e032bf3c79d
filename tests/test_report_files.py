"""The written report: its text and its figures."""

import numpy as np
import pytest
from fake_runs import change, write_bare_run, write_bare_runs

from spkd_keras import plots, report
from spkd_keras.experiment import ExperimentError


@pytest.fixture
def root(tmp_path):
    return write_bare_runs(tmp_path / "runs" / "tiny")


def test_write_report(root, tmp_path):
    out = tmp_path / "deep" / "report"
    results, written = report.write_report(report.read_runs(root), out)
    names = ["RESULTS.md", "tiny-errors.png", "tiny-errors.svg", "tiny-similarity.png", "tiny-similarity.svg"]
    assert written == [out / name for name in names]
    assert sorted(path.name for path in out.iterdir()) == names
    text = (out / "RESULTS.md").read_text(encoding="utf-8")
    shown = {"Test errors by seed": "tiny-errors.png", "Similarity matrices": "tiny-similarity.png"}
    assert text == report.markdown(results, [shown])
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


def test_an_experiment_whose_name_is_that_of_another_with_a_number_has_its_own_figure(tmp_path):
    for folder, name in (("one", "tiny"), ("two", "tiny"), ("one", "tiny-1"), ("one", "tiny-2")):
        write_bare_run(tmp_path / "runs" / folder / name, "student", 0, 0.5, name=name)
    results, written = report.write_report(report.read_runs(tmp_path / "runs"), tmp_path / "report")
    assert len(set(written)) == len(written) == 9
    lines = written[0].read_text(encoding="utf-8").splitlines()
    figures = [line.partition("](")[2].removesuffix("-similarity.png)") for line in lines if line.startswith("![")]
    names = [result.name for result in results]
    assert dict(zip(figures, names, strict=True)) == {
        **{"tiny-3": "tiny", "tiny-4": "tiny"},
        **{"tiny-1": "tiny-1", "tiny-2": "tiny-2"},
    }


def test_folds_of_two_experiments_have_their_own_figures(tmp_path):
    for name in ("large", "small"):
        for fold in (1, 2):
            for method in ("student", "sp"):
                named = f"{name}-fold{fold}"
                folder = write_bare_run(tmp_path / named, method, 0, 0.5, name=named, similarity=False)
                change(folder, "name: digits", f"name: dtd/fold{fold}")
                change(folder, "model: wide_resnet", f"model: wide_resnet\n  width: {1.5 if name == 'large' else 0.5}")
    report.write_report(report.read_runs(tmp_path), tmp_path / "report")
    text = (tmp_path / "report" / "RESULTS.md").read_text(encoding="utf-8")
    for name in ("large", "small"):
        section = text.partition(f"## {name}, folds 1, 2\n")[2].partition("\n## ")[0]
        assert f"]({name}-errors.png)" in section


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_damaged_matrices(root, tmp_path, content):
    (root / "sp-seed0" / "similarity.npz").write_bytes(content)
    with pytest.raises(ExperimentError, match=r"sp-seed0/similarity\.npz"):
        report.write_report(report.read_runs(root), tmp_path / "report")


def test_a_file_where_the_report_goes(root, tmp_path):
    (tmp_path / "report").write_text("in the way", encoding="utf-8")
    with pytest.raises(
        ExperimentError, match=r"^The report cannot be written to .*report \(.*Choose another with --out"
    ):
        report.write_report(report.read_runs(root), tmp_path / "report")


def test_runs_behind_links_are_found_and_links_go_round_but_once(root, tmp_path):
    before = report.read_runs(root)
    elsewhere = tmp_path / "another disk" / "sp-seed2"
    elsewhere.parent.mkdir()
    (root / "sp-seed2").rename(elsewhere)
    (root / "sp-seed2").symlink_to(elsewhere)
    (root / "round").symlink_to(root)
    assert report.read_runs(root) == before
