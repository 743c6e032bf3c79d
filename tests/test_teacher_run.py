"""The teacher's own run: one that failed, and files of it that are damaged."""

import json

import pytest
from fake_runs import digit_network, write_files
from test_cli import call
from tiny_experiment import Listener, tiny

from spkd_keras.experiment import ExperimentError
from spkd_keras.training import run_experiment, teacher_run, trained_teacher
from spkd_keras.training.folder import RunFolder
from spkd_keras.training.train import _record


@pytest.fixture
def experiment(tmp_path):
    return tiny(tmp_path)


@pytest.fixture
def finished(experiment, tmp_path):
    """The folder of a teacher that is trained."""
    folder = write_files(tmp_path / "tiny", experiment.teacher_training(), {})
    digit_network(0.5).save(folder / "student.keras")
    return folder


def test_a_trained_teacher_without_a_whole_file(experiment, finished, tmp_path):
    assert trained_teacher(experiment, tmp_path).count_params() == digit_network(0.5).count_params()
    file = finished / "student.keras"
    whole = file.read_bytes()
    for content, said in (
        (b"junk", f"teacher.path: {file} is not a .keras file."),
        (whole[:-100], f"teacher.path: {file} is not a .keras file."),
        (whole.replace(b"wide_resnet", b"wide-resnet"), f"teacher.path: {file} cannot be loaded as a Keras network: "),
        (None, f"teacher.path: the file does not exist: {file}."),
    ):
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(ExperimentError) as caught:
            trained_teacher(experiment, tmp_path)
        assert str(caught.value).startswith(said)
        assert str(caught.value).endswith(f". Delete {finished / 'summary.json'}, and `spkd run` trains it again.")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"teacher_finger', "is damaged (Unterminated string"),
        ("[]", "is damaged (it is a list)"),
        (None, "cannot be read (Is a directory)"),
    ],
)
def test_a_damaged_record_of_the_teacher(experiment, tmp_path, content, said):
    runs = [RunFolder(tmp_path, experiment.single(method, 0)) for method in ("student", "sp")]
    for run in runs:
        write_files(tmp_path, run.experiment, {})
        run.environment.write_text(json.dumps({"teacher_fingerprint": "abc"}), encoding="utf-8")
    teacher_run.check_fingerprint("abc", runs)
    file = runs[1].environment
    file.unlink()
    file.mkdir() if content is None else file.write_text(content, encoding="utf-8")
    with pytest.raises(ExperimentError) as caught:
        teacher_run.check_fingerprint("abc", runs)
    assert str(caught.value).startswith(f"{file} {said}")
    assert f"elete {file.parent}, and `spkd run` does it again: " in str(caught.value)


class Stopping(Listener):
    """Ends a command before it trains anything."""

    def planned(self, runs, finished):
        super().planned(runs, finished)
        raise KeyboardInterrupt


@pytest.mark.parametrize(("methods", "first"), [(["student"], "student-seed0"), (["student", "sp"], "teacher-seed0")])
def test_a_teacher_is_trained_for_methods_with_terms_alone(tmp_path, methods, first):
    experiment, listener = tiny(tmp_path).select(methods), Stopping()
    assert experiment.asks_teacher == (first == "teacher-seed0")
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, tmp_path / "runs", listener)
    assert listener.of("planned")[0][0] == first


def test_a_run_that_trained_nothing_yet_has_no_teacher(experiment, tmp_path):
    run = RunFolder(tmp_path, experiment.single("sp", 0))
    folder = write_files(tmp_path, run.experiment, None)
    run.environment.write_text(json.dumps({"teacher_fingerprint": "damaged"}), encoding="utf-8")
    teacher_run.check_fingerprint("mended", [run])
    (folder / "backup").mkdir()
    (folder / "backup" / "epoch-1-batch-0.npz").touch()
    with pytest.raises(ExperimentError, match="was distilled from another teacher"):
        teacher_run.check_fingerprint("mended", [run])


@pytest.mark.parametrize("content", ["[]", "null", "{", '"text"'])
def test_a_damaged_record_of_a_run_that_goes_on(experiment, tmp_path, content):
    run = RunFolder(tmp_path, experiment.single("student", 0))
    run.create()
    run.environment.write_text(content, encoding="utf-8")
    _record(run, {"commit": "abc"}, Listener())
    assert json.loads(run.environment.read_text(encoding="utf-8")) == {"commit": "abc"}


def test_a_teacher_that_diverges_is_told_in_one_line(experiment, tmp_path, monkeypatch):
    def diverges(*_, **__):
        raise FloatingPointError("The loss is not finite in epoch 1, batch 2: gradient.")

    monkeypatch.setattr(teacher_run, "train", diverges)
    result = call("run", tmp_path / "tiny.yaml", "--out", tmp_path / "runs", "--no-check")
    assert result.exit_code == 1
    said = result.stderr.splitlines()[-1]
    assert said == "spkd: teacher-seed0 failed: The loss is not finite in epoch 1, batch 2: gradient."
