"""What is read of a run's folder before its student is exported, where it is damaged."""

import json

import pytest
import yaml
from fake_runs import change, note, single, write_files, write_network_runs

from spkd_keras.experiment import ExperimentError
from spkd_keras.export import card
from spkd_keras.export.run import FinishedRun


@pytest.fixture
def folder(tmp_path):
    folder = write_files(tmp_path, single("sp", 0, "tiny", "digits"), {"test_error": 0.5})
    (folder / "student.keras").touch()
    return folder


def test_a_run_without_its_environment(folder):
    run = FinishedRun(folder)
    assert (run.summary, run.environment) == ({"test_error": 0.5}, {})


@pytest.mark.parametrize("name", ["summary.json", "environment.json"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is damaged (Expecting property name"),
        ("[]", "is damaged (it is a list)"),
        ("null", "is damaged (it is a NoneType)"),
        (None, "cannot be read (Is a directory)"),
    ],
)
def test_a_damaged_file(folder, name, content, said):
    file = folder / name
    file.unlink(missing_ok=True)
    file.mkdir() if content is None else file.write_text(content, encoding="utf-8")
    with pytest.raises(ExperimentError) as caught:
        FinishedRun(folder)
    assert str(caught.value).startswith(f"{file} {said}")
    assert str(caught.value).endswith("and `spkd run` does that run again.")
    assert "\n" not in str(caught.value)


def test_a_run_that_is_not_finished(folder):
    (folder / "summary.json").unlink()
    with pytest.raises(ExperimentError, match="is not finished"):
        FinishedRun(folder)


@pytest.fixture
def run(tmp_path):
    return write_network_runs(tmp_path)


def seeds_of(run):
    return {title: over["seeds"] for title, over in FinishedRun(run)._accuracies()["over_seeds"].items()}


def test_accuracies_are_over_the_seeds_of_one_experiment(run):
    """As in a report, runs with other settings are not taken together."""
    assert seeds_of(run) == {"sp": [0, 1], "student alone": [0], "teacher": [0]}
    change(run.parent / "sp-seed1", "weight: 100.0", "weight: 3000.0")
    change(run.parent / "student-seed0", "width: 0.5", "width: 4.0")  # the teacher's, which it does not ask
    assert seeds_of(run) == {"sp": [0], "student alone": [0], "teacher": [0]}
    change(run.parent / "student-seed0", "batch_size: 32", "batch_size: 64")
    assert seeds_of(run) == {"sp": [0], "teacher": [0]}


@pytest.mark.parametrize(
    ("digest", "name", "told"), [("d", "student", True), ("e", "student", False), ("d", "best", False)]
)
def test_the_teachers_accuracy_is_of_that_network_on_these_images(run, digest, name, told):
    """A file may have anything beside it: the run of a teacher on other data, or of another epoch."""
    for folder, known in ((run, "d"), (run.parent / "teacher-seed0", digest)):
        (folder / "environment.json").write_text(json.dumps({"data_digest": known}), encoding="utf-8")
    teacher = {"path": str(run.parent / "teacher-seed0" / f"{name}.keras")}
    plain = yaml.safe_load((run / "experiment.yaml").read_text(encoding="utf-8")) | {"teacher": teacher}
    (run / "experiment.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")
    assert ("teacher" in seeds_of(run)) == told


def test_accuracies_are_of_students_of_one_teacher(run):
    note(run.parent / "sp-seed1", teacher_fingerprint="0" * 32)
    assert seeds_of(run)["sp"] == [0]


def test_the_layers_that_a_run_compared_are_told_without_its_teacher(run, monkeypatch):
    monkeypatch.chdir(run)
    (run.parent / "teacher-seed0" / "student.keras").unlink()
    story = FinishedRun(".").story()
    (term,) = story["terms"]
    assert (term["loss"], term["teacher"], term["student"]) == ("similarity_preserving", ["stage3"], ["stage3"])
    assert any("between `stage3` of the teacher and `stage3` of the student" in line for line in card._training(story))


def test_the_layers_of_a_run_that_recorded_none(run):
    summary = json.loads((run / "summary.json").read_text())
    del summary["compared_layers"]
    (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    file = run / "experiment.yaml"
    plain = yaml.safe_load(file.read_text(encoding="utf-8"))
    plain["methods"]["sp"]["terms"][0] |= {"teacher": ["stage2"]}
    file.write_text(yaml.safe_dump(plain), encoding="utf-8")
    (term,) = FinishedRun(run).story()["terms"]
    assert (term["teacher"], term["student"]) == (["stage2"], "default")
