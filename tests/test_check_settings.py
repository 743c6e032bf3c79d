"""What `spkd check` finds without a single batch: in the schedules."""

import pytest
from tiny_experiment import tiny

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


@pytest.mark.parametrize("drops", ["{14: 0.2}", "{0.3: 0.2, 0.99: 0.2}", "{}"])
def test_drops_that_happen(tmp_path, drops):
    overrides = ["schedule.epochs=15", f"schedule.drops={drops}", "teacher.schedule={}"]
    assert found(tiny(tmp_path, *overrides), tmp_path) == []
