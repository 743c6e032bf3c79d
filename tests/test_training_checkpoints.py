"""When the state of a training is written, what is found damaged, and what is told of one that goes on."""

import contextlib
import io
import itertools
import json
import shutil
import signal
import types

import numpy as np
import pytest
from test_training_resume import Death, at_call, die, three_epochs
from tiny_experiment import (
    TRAIN_IMAGES,
    Listener,
    tiny,
    untrained_teacher,
)

from spkd_keras import data
from spkd_keras.distiller import NotFiniteError
from spkd_keras.experiment import Checkpoints
from spkd_keras.training import RunsFailedError, callbacks, checkpoints, run_experiment, train
from spkd_keras.training.callbacks import Reporter
from spkd_keras.training.interruption import Interruption


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return untrained_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.mark.slow
def test_the_state_is_written_every_ten_minutes(tmp_path):
    experiment = tiny(tmp_path, "teacher=", "methods={student: []}", "data.batch_size=16", "schedule.epochs=1")
    now, written, replace = [0.0], [], checkpoints.replace

    def passes(*_, **__):
        now[0] += 250  # seconds, before each of the six batches

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
        patch.setattr(checkpoints, "replace", lambda file, write: written.append(file.stem) or replace(file, write))
        patch.setattr(Reporter, "on_train_batch_begin", passes)
        run_experiment(experiment, tmp_path / "runs")
    assert written == ["epoch-0-batch-3", "epoch-1-batch-0"]


@pytest.mark.slow
def test_a_run_that_begins_anew_has_no_earlier_conditions(teacher, tmp_path):
    experiment, folder = three_epochs(tmp_path, teacher), tmp_path / "runs" / "tiny" / "sp-seed1"
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, tmp_path / "runs", Listener(stop_after=1))
    shutil.rmtree(folder / "backup")
    record = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps(record | {"intra_op_threads": 64, "earlier_conditions": ["a"]}))
    listener = Listener(stop_after=1)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, tmp_path / "runs", listener)
    assert not listener.of("noticed")
    assert json.loads((folder / "environment.json").read_text())["earlier_conditions"] == []


@pytest.mark.slow
def test_how_far_it_is_counts_from_where_it_went_on(teacher, tmp_path, monkeypatch):
    experiment = three_epochs(tmp_path, teacher)
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Death):
        patch.setattr(Reporter, "on_train_batch_begin", at_call(12, die, Reporter.on_train_batch_begin))
        run_experiment(experiment, tmp_path / "runs")
    heard, seconds = [], itertools.count()
    listener = Listener()
    listener.advanced = lambda run, done: heard.append(done)
    monkeypatch.setattr(callbacks, "time", types.SimpleNamespace(monotonic=lambda: next(seconds)))
    run_experiment(experiment, tmp_path / "runs", listener)
    assert heard[0] == pytest.approx(1 + 4 / 6)  # of six batches an epoch
    assert heard[-1] == pytest.approx(2 + 5 / 6)


def test_what_one_process_meets_all_do(tmp_path):
    asked, answers = [], iter([[1, 0, 0], [0, 0, 1]])
    devices = types.SimpleNamespace(workers=2, chief=False, counts=lambda v: asked.append(v) or next(answers))
    interruption = Interruption()
    pointer = checkpoints.Checkpointer(tmp_path, Checkpoints(), 30, interruption, dict, print, devices)
    assert pointer._agreed(False, 10)
    assert not pointer._agreed(True, 11)  # not asked
    interruption.received = signal.SIGINT
    pointer._agreed(False, 20)
    assert asked == [[0, 0, 0], [0, 1, 0]]
    assert (interruption.received, pointer._stopping) == (signal.SIGTERM, True)


@pytest.mark.slow
def test_a_failure_after_going_on_names_its_batch_of_the_whole_epoch(teacher, tmp_path):
    experiment, folder = three_epochs(tmp_path, teacher), tmp_path / "runs" / "tiny" / "sp-seed1"

    def fails(*_, **__):
        raise NotFiniteError(1, 0, ("gradient",))

    for place, name, then, error in (
        (Reporter, "on_train_batch_begin", at_call(12, die, Reporter.on_train_batch_begin), Death),
        (train.Distiller, "fit", fails, RunsFailedError),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, name, then)
            with pytest.raises(error):
                run_experiment(experiment, tmp_path / "runs")
    found = json.loads((folder / "failure.json").read_text())
    assert (found["epoch"], found["batch"]) == (2, 5)  # it went on from the fifth
    assert found["images"] == data.batch_places(TRAIN_IMAGES, 16, 1, 1, 4).tolist()


def test_a_bit_anywhere_in_a_checkpoint_is_found_or_changes_nothing(tmp_path):
    """In the arrays, which have checksums, and in the archive's own list of them, which has none."""
    file = tmp_path / "epoch-1-batch-0.npz"
    state = {"state/0": np.arange(3, dtype="float32"), "state/1": np.float64(2), "metrics/0": np.arange(2)}
    whole = {"entries": np.array(5), **state, "progress": np.array("{}")}
    np.savez(file, **whole)
    content = file.read_bytes()
    assert_same(checkpoints._read(io.BytesIO(content)), whole)
    found, listed = 0, content.index(b"PK\x01\x02")
    bits = [*range(0, 8 * listed, 7), *range(8 * listed, 8 * len(content))]
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            read = checkpoints._read(io.BytesIO(damaged))
        except OSError:  # it would not be taken for a damage
            pytest.fail(f"bit {bit}")
        except Exception:
            found += 1
        else:
            assert_same(read, whole)
    assert found > len(bits) / 2


def assert_same(read, whole):
    assert list(read) == list(whole)
    for name, value in whole.items():
        assert read[name].dtype == value.dtype
        np.testing.assert_array_equal(read[name], value)
