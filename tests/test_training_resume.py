"""A run that is killed at any moment and started again gives the same student, bit for bit."""

import json
import os
import signal

import keras
import numpy as np
import pytest
from tiny_experiment import (
    Listener,
    assert_same_run,
    history_of,
    tiny,
    untrained_teacher,
    weights_of,
)

from spkd_keras.experiment import ExperimentError
from spkd_keras.training import Interrupted, RunsFailedError, checkpoints, run_experiment, train
from spkd_keras.training.callbacks import Recorder, Reporter

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return untrained_teacher(tmp_path_factory.mktemp("teacher"))


def three_epochs(folder, teacher, seed=1):
    """All that has a state: momentum, a moving average, a loss scale, an adapter, random numbers, changing weights."""
    changes = [
        f"teacher={{path: '{teacher}'}}",
        "student.dropout=0.2",
        "schedule.epochs=3",
        "schedule.ema=0.8",
        "schedule.drops={1: 0.5, 2: 0.5}",
        "precision=mixed_float16",
        "methods.sp=[{loss: similarity_preserving, weight: 100.0, schedule: {warm_up: 2}}, {loss: hint}]",
        "data.batch_size=16",  # six batches an epoch, the last of one image
        "data.augmentation=cifar",
        "checkpoints.steps=2",
        f"seeds=[{seed}]",
    ]
    return tiny(folder, *changes).select(["sp"])


@pytest.fixture(scope="module")
def uninterrupted(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return run_experiment(three_epochs(folder, teacher), folder / "runs") / "sp-seed1"


class Death(BaseException):
    """Ends everything at once, as SIGKILL does: nothing catches it."""


def die(*_, **__):
    raise Death


def at_call(count, then, method):
    """Wraps a method: behind its call number `count` something else happens."""
    calls = []

    def wrapped(*args, **kwargs):
        result = method(*args, **kwargs)
        calls.append(args)
        if len(calls) == count:
            then(*args)
        return result

    return wrapped


def tear(*arguments):
    """Leaves the first half of a file that is being written."""
    arguments[0].flush()
    os.truncate(arguments[0].name, arguments[0].tell() // 2)
    raise Death


# Each moment makes the run end there: an object, the name of a function of it, the number of the call, and what then.
MOMENTS = {
    "within an epoch": (Reporter, "on_train_batch_begin", 10, die),
    "in an evaluation": (Reporter, "on_test_batch_begin", 2, die),
    "between history and checkpoint": (Recorder, "on_epoch_end", 2, die),
    "in the first checkpoint": (checkpoints.np, "savez", 1, tear),
    "in a later checkpoint": (checkpoints.np, "savez", 5, tear),
    "behind an epoch's checkpoint": (checkpoints, "replace", 6, die),
    "behind the student": (train, "save_network", 1, die),
    "behind its statistics": (train, "save_network", 2, die),
    "in the summary": (train, "summarise", 1, die),
    "behind the summary": (train, "write_json", 2, die),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_started_again(uninterrupted, teacher, tmp_path, moment):
    experiment = three_epochs(tmp_path, teacher)
    place, name, count, then = MOMENTS[moment]
    original = getattr(place, name, None) or getattr(keras.callbacks.Callback, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, at_call(count, then, original), raising=False)
        with pytest.raises(Death):
            run_experiment(experiment, tmp_path / "runs")
    folder = tmp_path / "runs" / "tiny" / "sp-seed1"
    assert (folder / "summary.json").exists() == (moment == "behind the summary")
    run_experiment(experiment, tmp_path / "runs")
    assert_same_run(uninterrupted, folder)
    assert {file.name for file in folder.iterdir()} == {file.name for file in uninterrupted.iterdir()}


def test_killed_and_started_again_with_labels_that_are_mixed(tmp_path):
    """Its labels are shares of classes, which the metrics must know before their sums are put back."""
    changes = ["teacher=", "methods={student: []}", "data.batch_size=16", "data.mixup=0.4", "checkpoints.steps=2"]
    experiment = tiny(tmp_path, *changes)
    whole = run_experiment(experiment, tmp_path / "whole") / "student-seed0"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reporter, "on_train_batch_begin", at_call(10, die, Reporter.on_train_batch_begin))
        with pytest.raises(Death):
            run_experiment(experiment, tmp_path / "runs")
    run_experiment(experiment, tmp_path / "runs")
    assert_same_run(whole, tmp_path / "runs" / "tiny" / "student-seed0")


@pytest.mark.parametrize("damage", ["one bit", "both"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(uninterrupted, teacher, tmp_path, damage):
    experiment, folder = three_epochs(tmp_path, teacher), tmp_path / "runs" / "tiny" / "sp-seed1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reporter, "on_train_batch_begin", at_call(12, die, Reporter.on_train_batch_begin))
        with pytest.raises(Death):
            run_experiment(experiment, tmp_path / "runs")
    older, newer = sorted((folder / "backup").iterdir())
    assert [older.name, newer.name] == ["epoch-1-batch-2.npz", "epoch-1-batch-4.npz"]
    for file in [newer, older] if damage == "both" else [newer]:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content if damage == "one bit" else content[: len(content) // 2])
    listener = Listener()
    run_experiment(experiment, tmp_path / "runs", listener)
    named = [text for text in listener.of("noticed") if "is damaged" in text]
    assert [str(newer) in text for text in named] == ([True, False] if damage == "both" else [True])
    assert_same_run(uninterrupted, folder)


def test_a_checkpoint_that_cannot_be_read_is_no_damaged_one(teacher, tmp_path):
    experiment, folder = three_epochs(tmp_path, teacher), tmp_path / "runs" / "tiny" / "sp-seed1"
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, tmp_path / "runs", Listener(stop_after=1))
    before = sorted((folder / "backup").iterdir())

    def unreadable(*_):
        raise OSError(5, "Input/output error")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "_read", unreadable)
        with pytest.raises(RunsFailedError, match="Input/output error"):
            run_experiment(experiment, tmp_path / "runs")
    assert sorted((folder / "backup").iterdir()) == before


def test_it_goes_on_where_it_was(uninterrupted, teacher, tmp_path):
    experiment, folder = three_epochs(tmp_path, teacher), tmp_path / "runs" / "tiny" / "sp-seed1"
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, tmp_path / "runs", Listener(stop_after=1))
    assert [row["epoch"] for row in history_of(folder)] == [1]
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reporter, "on_train_batch_begin", lambda self, batch, logs: steps.append(batch))
        run_experiment(experiment, tmp_path / "runs", Listener())
    assert steps == [*range(6), *range(6)]
    assert_same_run(uninterrupted, folder)


# --- signals ---------------------------------------------------------------------------------------------------------

SIGNAL_MOMENTS = {
    "before an epoch": ("on_epoch_begin", 1, set()),
    "within an epoch": ("on_train_batch_begin", 9, {"epoch-1-batch-2.npz", "epoch-1-batch-3.npz"}),
    "in an epoch's last batch": ("on_train_batch_begin", 6, {"epoch-0-batch-4.npz", "epoch-0-batch-6.npz"}),
    "in an evaluation": ("on_test_begin", 2, {"epoch-1-batch-4.npz", "epoch-1-batch-6.npz"}),
    "between epochs": ("on_epoch_end", 1, {"epoch-0-batch-4.npz", "epoch-1-batch-0.npz"}),
}


@pytest.mark.parametrize("moment", SIGNAL_MOMENTS)
def test_a_signal_writes_the_state_at_once(uninterrupted, teacher, tmp_path, moment):
    experiment, folder = three_epochs(tmp_path, teacher), tmp_path / "runs" / "tiny" / "sp-seed1"
    name, count, left = SIGNAL_MOMENTS[moment]
    number = signal.SIGINT if moment == "between epochs" else signal.SIGTERM
    before = signal.getsignal(number)
    original = getattr(Reporter, name)  # a default of Keras where the reporter has none of its own
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reporter, name, at_call(count, lambda *_: signal.raise_signal(number), original))
        with pytest.raises(Interrupted) as caught:
            run_experiment(experiment, tmp_path / "runs")
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) == before
    assert {file.name for file in (folder / "backup").glob("*")} == left
    run_experiment(experiment, tmp_path / "runs")
    assert_same_run(uninterrupted, folder)


def test_a_second_signal_ends_it_without_a_state(teacher, tmp_path):
    def twice(*_):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reporter, "on_train_batch_begin", at_call(2, twice, Reporter.on_train_batch_begin))
        with pytest.raises(Interrupted):
            run_experiment(three_epochs(tmp_path, teacher), tmp_path / "runs")
    assert not list(tmp_path.glob("runs/tiny/sp-seed1/backup/*"))


@pytest.mark.parametrize(("part", "change"), [("state", "another shape"), ("metrics", "one less")])
def test_checkpoints_of_another_version_are_kept_and_named(teacher, tmp_path, part, change):
    experiment, folder = three_epochs(tmp_path, teacher), tmp_path / "runs" / "tiny" / "sp-seed1"
    with pytest.MonkeyPatch.context() as patch:  # in the middle of an epoch, where the metrics count too
        patch.setattr(Reporter, "on_train_batch_begin", at_call(12, die, Reporter.on_train_batch_begin))
        with pytest.raises(Death):
            run_experiment(experiment, tmp_path / "runs")
    for file in (folder / "backup").iterdir():
        with np.load(file) as arrays:
            state = dict(arrays)
        last = [key for key in state if key.startswith(part)][-1]
        state = state | {last: np.zeros(7)} if change == "another shape" else {k: state[k] for k in state if k != last}
        np.savez(file, **(state | {"entries": len(state)}))
    before = {file.name: file.read_bytes() for file in (folder / "backup").iterdir()}
    with pytest.raises(RunsFailedError, match=r"backup are of another training.*Another version.*or delete the folder"):
        run_experiment(experiment, tmp_path / "runs")
    assert {file.name: file.read_bytes() for file in (folder / "backup").iterdir()} == before


# --- what may differ, and what may not -------------------------------------------------------------------------------


def test_other_conditions_are_told(teacher, tmp_path):
    experiment, folder = three_epochs(tmp_path, teacher), tmp_path / "runs" / "tiny" / "sp-seed1"
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, tmp_path / "runs", Listener(stop_after=1))
    recorded = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps(recorded | {"intra_op_threads": 64}))
    listener = Listener(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, tmp_path / "runs", listener)
    (notice,) = listener.of("noticed")
    change = f"intra_op_threads: 64 -> {recorded['intra_op_threads']}"
    assert change in notice
    # It is not forgotten when the run goes on once more.
    root = run_experiment(experiment, tmp_path / "runs")
    assert json.loads((root / "sp-seed1" / "summary.json").read_text())["earlier_conditions"] == [change]


def test_a_run_that_compared_other_layers_is_refused(teacher, tmp_path):
    """As another version may find where a term names none."""
    experiment, folder = three_epochs(tmp_path, teacher), tmp_path / "runs" / "tiny" / "sp-seed1"
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, tmp_path / "runs", Listener(stop_after=1))
    file = folder / "environment.json"
    recorded = json.loads(file.read_text())
    layers = recorded["compared_layers"]
    assert layers["similarity_preserving"] == {"teacher": ["stage3"], "student": ["stage3"]}
    layers["similarity_preserving"] = {"teacher": ["stage3"], "student": ["head"]}
    other = json.dumps(recorded)
    file.write_text(other)
    with pytest.raises(ExperimentError, match=r"compared the layers .*'head'.* until now. This version would .*stage3"):
        run_experiment(experiment, tmp_path / "runs")
    assert file.read_text() == other


def test_when_checkpoints_are_written_changes_no_result(uninterrupted, teacher, tmp_path):
    experiment = three_epochs(tmp_path, teacher)
    other = experiment.model_copy(update={"checkpoints": experiment.checkpoints.model_copy(update={"steps": None})})
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, tmp_path / "runs", Listener(stop_after=2))
    run_experiment(other, tmp_path / "runs")  # not refused as another experiment
    assert_same_run(uninterrupted, tmp_path / "runs" / "tiny" / "sp-seed1")


def test_another_seed_is_another_student(uninterrupted, teacher, tmp_path):
    other = run_experiment(three_epochs(tmp_path, teacher, seed=2), tmp_path / "runs") / "sp-seed2"
    kernels = [
        weights for weights in zip(weights_of(uninterrupted), weights_of(other), strict=True) if weights[0].ndim > 1
    ]
    assert kernels
    assert not any(np.array_equal(one, two) for one, two in kernels)
