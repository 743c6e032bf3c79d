"""What is read of a run's folder before its student is exported, where it is damaged."""

import pytest
from fake_runs import single, write_files

from spkd_keras.experiment import ExperimentError
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
