"""What `spkd check` finds without a single batch: in the schedules, and where the runs would go."""

import json
import os

import pytest
from fake_runs import write_files
from tiny_experiment import tiny
from typer.testing import CliRunner

from spkd_keras import cli
from spkd_keras.training import check_experiment


def found(experiment, out):
    """What is said of the settings alone: no method is tried."""
    return [(f.severity, str(f)) for f in check_experiment(experiment, runs={}, out=out, cost=False).findings]


# --- the schedules ---------------------------------------------------------------------------------------------------

FEWER_EPOCHS = ["schedule.epochs=15", "schedule.drops={5: 0.2, 15: 0.2, 60: 0.2}"]


def test_drops_that_never_happen(tmp_path):
    advice = "Give fractions of the epochs, such as --set '{}={{0.3: 0.2, 0.6: 0.2, 0.8: 0.2}}'."
    late = "schedule: drops at 15, 60 never happen in 15 epochs. " + advice.format("schedule.drops")
    # Of the teacher's own schedule too: it has one epoch, and a drop of its own.
    overrides = [*FEWER_EPOCHS, "teacher.schedule.drops={1: 0.1}"]
    own = "teacher.schedule: drops at 1 never happen in 1 epoch. " + advice.format("teacher.schedule.drops")
    assert found(tiny(tmp_path, *overrides), tmp_path) == [("warning", late), ("warning", own)]


@pytest.mark.parametrize("drops", ["{14: 0.2}", "{0.3: 0.2, 0.95: 0.2}", "{}"])
def test_drops_that_happen(tmp_path, drops):
    overrides = ["schedule.epochs=15", f"schedule.drops={drops}", "teacher.schedule={}"]
    assert found(tiny(tmp_path, *overrides), tmp_path) == []


@pytest.mark.parametrize(
    ("epochs", "drops"), [(15, "{0.3: 0.2, 0.99: 0.2}"), (4, "{0.9: 0.2}"), (2, "{0.3: 0.2, 0.8: 0.2}")]
)
def test_fractions_that_round_to_the_end_never_happen(tmp_path, epochs, drops):
    overrides = [f"schedule.epochs={epochs}", f"schedule.drops={drops}", "teacher.schedule={}"]
    ((severity, said),) = found(tiny(tmp_path, *overrides), tmp_path)
    assert (severity, "never happen in" in said, "smaller fractions" in said) == ("warning", True, True)


# --- where the runs would go -----------------------------------------------------------------------------------------


ONE_SCHEDULE = "teacher.schedule={}"


def refused(place, reason):
    return [
        ("stop", f"out: the output folder cannot be written to: {place} ({reason}). Choose another with --out."),
    ]


def test_runs_of_another_experiment(tmp_path):
    write_files(tmp_path / "tiny", tiny(tmp_path, ONE_SCHEDULE).single("sp", 1), None)
    assert found(tiny(tmp_path, ONE_SCHEDULE, "seeds=[0, 1]"), tmp_path) == []  # they go on
    assert found(tiny(tmp_path, ONE_SCHEDULE, "student.width=0.5"), tmp_path) == []  # another seed
    ((severity, said),) = found(tiny(tmp_path, ONE_SCHEDULE, "seeds=[0, 1]", "student.width=0.5"), tmp_path)
    assert severity == "stop"
    assert said.startswith(
        f"out: {tmp_path / 'tiny' / 'sp-seed1'} holds a run of another experiment (student.width: 0.25 -> 0.5). "
    )
    write_files(tmp_path / "tiny", tiny(tmp_path, ONE_SCHEDULE).teacher_training(), None)
    ((severity, said),) = found(tiny(tmp_path, ONE_SCHEDULE, "teacher.width=1"), tmp_path)
    assert (severity, "student.width: 0.5 -> 1" in said) == ("stop", True)


def test_a_file_where_the_output_goes(tmp_path):
    experiment = tiny(tmp_path, ONE_SCHEDULE)
    file = tmp_path / "tiny.yaml"
    for out in (file, file / "deeper"):
        assert found(experiment, out) == refused(out / "tiny", f"{file} is a file")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").touch()
    assert found(experiment, tmp_path / "runs") == refused(
        tmp_path / "runs" / "tiny", f"{tmp_path / 'runs' / 'tiny'} is a file"
    )


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    asked = []

    def access(place, mode):  # whoever may do everything is told so of every folder
        asked.append((place, mode))
        return False

    monkeypatch.setattr(os, "access", access)
    out = tmp_path / "not" / "there"
    assert found(tiny(tmp_path, ONE_SCHEDULE), out) == refused(out / "tiny", f"{tmp_path} is not writable")
    assert asked == [(tmp_path, os.W_OK | os.X_OK)]


def test_the_command_refuses_what_a_run_refuses(tmp_path):
    tiny(tmp_path, ONE_SCHEDULE)
    file = str(tmp_path / "tiny.yaml")
    done = CliRunner().invoke(
        cli.app, ["check", file, "--out", file, "--set", "teacher=", "--set", "methods={student: []}", "--json"]
    )
    assert done.exit_code == 2, done.output
    assert [finding["place"] for finding in json.loads(done.stdout)["findings"]] == ["out"]


# --- what would not come about ---------------------------------------------------------------------------------------


def test_weights_that_rise_or_end_too_late(tmp_path):
    term = "{loss: similarity_preserving, weight: 10, schedule: {warm_up: %s, until: %s}}"
    early, late = (f"methods={{sp: [{term % those}]}}" for those in ((3, 4), (4, 5)))
    overrides = ["schedule.epochs=4", "schedule.drops={}"]
    assert found(tiny(tmp_path, *overrides, early), tmp_path) == []
    place = "methods.sp.terms.0.schedule"
    assert found(tiny(tmp_path, *overrides, late), tmp_path) == [
        (
            "warning",
            f"{place}: the weight rises over 4 epochs, to 80% of it in 4 epochs. Give a shorter `warm_up`, or more "
            "epochs.",
        ),
        ("warning", f"{place}: `until: 5` never comes in 4 epochs. Give an earlier epoch, or leave it out."),
    ]


def test_a_cache_of_augmented_views_beside_the_student_alone(tmp_path):
    overrides = ["teacher.cache={views: 2}", "data.augmentation=cifar", "teacher.schedule={}"]
    ((_, told),) = found(tiny(tmp_path, *overrides), tmp_path)
    assert told.startswith("teacher.cache: methods with terms see 2 fixed views of an image, the student alone a new")
    assert found(tiny(tmp_path, *overrides).select(["sp", "kd"]), tmp_path) == []
    assert found(tiny(tmp_path, "teacher.cache={}", "teacher.schedule={}"), tmp_path) == []
