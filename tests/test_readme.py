"""What the README says is what happens."""

import json
import re
import runpy
import statistics
from pathlib import Path
from typing import Any

import keras
import pytest
import yaml
from networks import images, small_network

from spkd_keras import Distiller, Term, losses, report
from spkd_keras.experiment import load_experiment, loss_facts
from spkd_keras.run_files import read_history
from spkd_keras.training import build

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = " ".join(README.partition("\n## Results\n")[2].partition("\n## ")[0].split())


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(example.strip().splitlines()) <= 10
    small_network(8).save(tmp_path / "teacher.keras")
    small_network(4).save(tmp_path / "untrained_student.keras")
    monkeypatch.chdir(tmp_path)
    pixels, labels = images(20)
    exec(example.replace("epochs=10", "epochs=1, verbose=0"), {"images": pixels, "labels": labels})
    keras.saving.load_model(tmp_path / "student.keras").predict(pixels, verbose=0)


def test_the_loss_of_ones_own_trains_and_is_known_to_experiments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(losses.LOSSES, "cosine_distance", None)  # and away when the test ends
    (example,) = re.findall(r"```py\n(.*?)```", README, flags=re.DOTALL)
    definition, _, call = example.strip().rpartition("\n")
    named: dict[str, Any] = {}
    exec(definition, named)
    distiller = Distiller(small_network(8), small_network(8), [Term(named["CosineDistance"]())], student_loss_weight=0)
    distiller.compile("sgd")
    assert 0 < distiller.fit(images(8)[0], verbose=0).history["cosine_distance"][0] < 1
    assert re.search(r"\{loss: cosine_distance\}", call)
    (tmp_path / "mine.yaml").write_text(
        "{data: {name: digits}, teacher: {model: wide_resnet}, student: {model: wide_resnet}, "
        "methods: {mine: [{loss: cosine_distance}]}}"
    )
    (term,) = build.build_terms(load_experiment(tmp_path / "mine.yaml"), "mine")
    assert isinstance(term.loss, named["CosineDistance"])


def test_the_keys_of_an_experiment_are_all_that_there_are_with_their_defaults(tmp_path: Path) -> None:
    photos, every = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    for name, text in (("photos", photos), ("every", every)):
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
        load_experiment(tmp_path / f"{name}.yaml")
    told = yaml.safe_load(every)
    needed = {"data": {"name": "cifar10"}, **{key: told[key] for key in ("student", "methods")}}
    needed["teacher"] = {"model": "wide_resnet", "width": 2}
    (tmp_path / "least.yaml").write_text(yaml.safe_dump(needed), encoding="utf-8")
    whole = yaml.safe_load(load_experiment(tmp_path / "least.yaml").to_yaml())
    for key in ("name", "methods", "student"):
        whole.pop(key)
    assert whole["teacher"].pop("path") is None
    assert {key: told[key] for key in whole} == whole


def test_the_table_is_that_of_the_recorded_runs() -> None:
    results = report.summarise(report.read_runs(ROOT / "experiments" / "results" / "digits"))
    (result,) = results
    for method in result.methods:
        assert f"| {' | '.join(report.cells(method))} |" in README
    for line in report.remarks(result):
        assert f"- {line}" in README


def recorded(name: str) -> report.ExperimentResult:
    """What the recorded runs of an experiment came to."""
    (result,) = report.summarise(report.read_runs(ROOT / "experiments" / "results" / name))
    return result


def test_the_results_are_those_of_the_recorded_runs() -> None:
    result = recorded("cifar10")
    for method in result.methods[2:]:
        median = f"{100 * statistics.median(method.differences):.2f}"
        assert re.search(rf"\b{re.escape(method.method)} {median}[, ]", RESULTS)
        assert len(method.differences) == 5
        assert max(method.differences) < 0, "every seed"
    for name, seeds in (("cifar10", 5), ("fashion_mnist", 3)):
        result = recorded(name)
        others = {one.one: one.differences for one in result.comparisons if one.other == "sp"}
        assert set(others) == {"at", "kd", "kd+sp"}
        assert all(len(differences) == seeds and min(differences) > 0 for differences in others.values()), "every seed"
    result = recorded("cifar10-shufflenet_v2")
    for method, better in {"at": 3, "sp": 3, "kd+sp": 3, "kd": 2}.items():
        (differences,) = (one.differences for one in result.methods if one.method == method)
        assert f"{method} ({100 * statistics.median(differences):.2f})" in RESULTS
        assert sum(difference < 0 for difference in differences) == better
    result = recorded("dtd")
    (alone,) = (one.errors for one in result.methods if one.method == "student")
    assert f"{100 * min(alone):.0f} to {100 * max(alone):.0f} %" in RESULTS


def test_the_paper_s_row_is_that_of_its_recorded_runs() -> None:
    result = recorded("cifar10-full-protocol")
    errors = {one.method: f"{100 * one.errors[0]:.2f}" for one in result.methods}
    assert "came to a test error of {student} % alone, {kd} by kd and {sp} by sp".format(**errors) in RESULTS
    assert f"its teacher to {errors['teacher']}, where" in RESULTS
    published = [f"{one.published_error:.2f}" for one in result.methods]
    assert published == ["6.07", "8.74", "7.94", "7.52"]
    assert "the paper has medians of five runs of 8.74, 7.94, 7.52 and 6.07 (as remembered)" in RESULTS
    better = {one.method: f"{-100 * one.differences[0]:.2f}" for one in result.methods[2:]}
    assert "both helped, by {kd} and {sp} points".format(**better) in RESULTS
    header = (ROOT / "experiments" / "cpu" / "cifar10-full-protocol.yaml").read_text(encoding="utf-8")
    header = " ".join(re.sub("^#", "", header, flags=re.M).split())
    assert "student {student}, kd {kd}, sp {sp}, teacher {teacher}".format(**errors) in header
    last = {run.method: f"{100 * (1 - read_history(run)[-1]['accuracy']):.2f}" for run in result.runs}
    assert "the student alone had a training error of {student} and the teacher of {teacher}".format(**last) in header


def test_the_recorded_runs_are_of_the_experiment_as_it_is() -> None:
    from spkd_keras.experiment import differences

    experiment = load_experiment(ROOT / "experiments" / "digits.yaml")
    for method in experiment.methods:
        for seed in experiment.seeds:
            recorded = load_experiment(ROOT / f"experiments/results/digits/{method}-seed{seed}/experiment.yaml")
            assert not differences(recorded, experiment.single(method, seed))


def test_the_page_on_scale_is_that_of_its_measurements_and_says_what_was_not_measured() -> None:
    module = runpy.run_path(str(ROOT / "benchmarks" / "scale.py"))
    page = (ROOT / "benchmarks" / "scale.md").read_text(encoding="utf-8")
    assert page == module["page"]()
    measured = json.loads((ROOT / "benchmarks" / "results" / "scale.json").read_text(encoding="utf-8"))["pairs"]
    for name in module["_pairs"]():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| {name} |")]
        assert ("not measured" in row) == (name not in measured)


def test_what_the_readme_names_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_table_of_losses_is_the_one_that_spkd_prints():
    rows = [line.split(" | ") for line in README.splitlines() if line.startswith("| `")]
    shown = {cells[0].strip("| `"): cells[1:] for cells in rows if len(cells) == 6}
    assert list(shown) == list(loss_facts())
    for name, facts in loss_facts().items():
        told = [cell.replace("&#124;", "|").removesuffix(" |") for cell in shown[name]]
        assert told == [str(facts[key]) for key in ("formula", "weight", "across", "cost", "reference")]
