"""What ends a search or a trial, and what refuses to go on: without any training."""

import shutil

import keras
import pytest
import tensorflow as tf
from tiny_experiment import Listener
from tiny_search import GAMMA, WEIGHT, outcomes, tiny_search

from spkd_keras import models
from spkd_keras.experiment import ExperimentError
from spkd_keras.ports import free_ports
from spkd_keras.search import DistillationHyperModel
from spkd_keras.search import search as searches
from spkd_keras.search.distributed import variables
from spkd_keras.search.tuner import MOST_DEATHS, OUTCOME, DistillationTuner
from spkd_keras.storage import locked, write_json
from spkd_keras.training import StorageError
from spkd_keras.training.train import Training

DONE = {"validation_error": 0.25, "val_accuracy": 0.75, "epochs": 2, "parameters": 1}


def broken(monkeypatch, error):
    def run(self):
        raise error

    monkeypatch.setattr(Training, "run", run)


def test_all_trials_may_fail(tmp_path, monkeypatch):
    memory = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor\nwith shape[9]")
    broken(monkeypatch, memory)
    result = tiny_search(tmp_path, GAMMA, trials=2).run()
    assert result.best is None
    assert [trial.status for trial in result.trials] == ["FAILED"] * 2
    assert all(t.reason.startswith("ResourceExhaustedError: OOM when allocating tensor with") for t in result.trials)


def test_a_trial_whose_process_dies_again_and_again_fails(tmp_path, monkeypatch):
    broken(monkeypatch, SystemExit("killed"))  # as good as a process that is gone
    search = tiny_search(tmp_path, GAMMA, trials=1)
    for _ in range(MOST_DEATHS):
        with pytest.raises(SystemExit):
            search.run()
    (trial,) = search.run().trials
    assert trial.reason.startswith("RuntimeError: Its process died 3 times before a first checkpoint")


def test_a_trial_that_another_process_is_at_does_not_fail(tmp_path):
    search = tiny_search(tmp_path, GAMMA, trials=1)
    with locked(search.folder / "trials" / "trial_0"), pytest.raises(ExperimentError, match="by another process"):
        search.run()
    assert not outcomes(search)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("search.json", "{", "is damaged (Expecting property name"),
        ("search.json", '{"tuner": "random"}', "is damaged (it has no experiment)"),
        ("trials/trial_0/outcome.json", "[]", "is damaged (it is a list)"),
        ("trials/trial_0/outcome.json", "{}", "is damaged (it has no validation_error)"),
        ("trials/trial_0/outcome.json", None, "is damaged (it has no validation_error)"),
    ],
)
def test_a_damaged_record(tmp_path, monkeypatch, name, content, said):
    monkeypatch.setattr(
        DistillationTuner, "_train", lambda self, trial, name, run: write_json(run.path / OUTCOME, DONE)
    )
    search = tiny_search(tmp_path, GAMMA, trials=1)
    assert search.run().trials[0].error == 0.25
    file = search.folder / name
    file.unlink() if content is None else file.write_text(content, encoding="utf-8")
    with pytest.raises(ExperimentError) as caught:
        tiny_search(tmp_path, GAMMA, trials=1).run()
    assert str(caught.value).startswith(f"{file} {said}")
    assert str(caught.value).endswith(f". Delete {search.folder}, and `spkd tune` searches anew.")
    shutil.rmtree(search.folder)
    assert tiny_search(tmp_path, GAMMA, trials=1).run().trials[0].error == 0.25


def test_what_a_trial_came_to_before_a_kill_stands(tmp_path, monkeypatch):
    broken(monkeypatch, ValueError("It was trained before."))
    search = tiny_search(tmp_path, GAMMA, trials=1)
    (search.folder / "trials" / "trial_0").mkdir(parents=True)
    write_json(search.folder / "trials" / "trial_0" / OUTCOME, DONE)
    assert [(trial.status, trial.error) for trial in search.run().trials] == [("COMPLETED", 0.25)]


def test_a_search_with_other_settings_is_refused(tmp_path):
    search = tiny_search(tmp_path, GAMMA, trials=1)
    search.folder.mkdir(parents=True)
    write_json(search.folder / "search.json", search._record())
    for changes, options, said in (
        (["data.batch_size=16"], {}, "data.batch_size: 32 -> 16"),
        ([], {"objective": "val_loss"}, "objective: val_accuracy -> val_loss"),
    ):
        with pytest.raises(ExperimentError, match=rf"holds another search \({said}"):
            tiny_search(tmp_path, GAMMA, *changes, trials=1, **options).run()


def test_deaths_behind_a_checkpoint_are_not_counted(tmp_path, monkeypatch):
    def train(self, trial, name, run):
        run.create()
        (run.backup / "epoch-1-batch-0.npz").touch()
        raise SystemExit("killed")

    monkeypatch.setattr(DistillationTuner, "_train", train)
    search = tiny_search(tmp_path, GAMMA, trials=1)
    for _ in range(MOST_DEATHS + 1):
        with pytest.raises(SystemExit):
            search.run()


def test_the_given_point_is_trial_0_of_ten_too(tmp_path, monkeypatch):
    def train(self, trial, name, run):
        raise ValueError("It need not train.")

    monkeypatch.setattr(DistillationTuner, "_train", train)
    search = tiny_search(tmp_path, GAMMA, trials=10)
    result = search.run()
    assert [trial.name for trial in result.trials] == [f"trial {n}" for n in range(10)]
    assert result.trials[0].values == search.space.first()


def test_the_least_loss_is_the_best(tmp_path, monkeypatch):
    def train(self, trial, name, run):
        write_json(run.path / OUTCOME, DONE | {"val_loss": 1.0 - int(trial.trial_id) / 4})

    monkeypatch.setattr(DistillationTuner, "_train", train)
    found = tiny_search(tmp_path, GAMMA, trials=3, objective="val_loss").run().trials
    assert [(trial.name, trial.score) for trial in found] == [("trial 2", 0.5), ("trial 1", 0.75), ("trial 0", 1.0)]


def test_the_last_step_of_a_range_is_tried_and_not_its_end(tmp_path, monkeypatch):
    broken(monkeypatch, ValueError("It need not train."))
    search = tiny_search(tmp_path, "student.depth={int: [10, 21], step: 6}", trials=1)  # 10 and 16, 6n + 4
    assert len(search.run().trials) == 1
    (depth,) = search.space.dimensions
    assert depth.ends() == (10, 16)


@pytest.mark.parametrize(
    ("space", "values"),
    [
        ("data.batch_size={int: [4, 16], log: true, step: 2, default: 8}", [8, 4, 16]),
        (f"{WEIGHT}={{float: [0, 0.9], step: 0.3, default: 0.5}}", [0.5, 0.0, 0.3, 0.6, 0.9]),
    ],
)
def test_a_grid_is_of_each_step_and_the_given_point_once(tmp_path, monkeypatch, space, values):
    monkeypatch.setattr(
        DistillationTuner, "_train", lambda self, trial, name, run: write_json(run.path / OUTCOME, DONE)
    )
    result = tiny_search(tmp_path, space, trials=9, tuner="grid").run()
    assert [tuple(trial.values.values()) for trial in result.trials] == [(value,) for value in values]
    assert {trial.status for trial in result.trials} == {"COMPLETED"}
    assert result.exhausted == f"There are no more points than those of these {len(values)}."


def test_a_point_that_cannot_be_fails_with_its_reason(tmp_path, monkeypatch):
    """Within a range of which the schema allows both ends; a worker's chief knows of it by the file alone."""

    def refused(self, hp):
        raise ExperimentError("It cannot be.")

    monkeypatch.setattr(DistillationHyperModel, "point", refused)
    listener = Listener()
    search = tiny_search(tmp_path, GAMMA, trials=1, observer=listener)
    (trial,) = search.run().trials
    assert (trial.status, trial.reason) == ("FAILED", "ExperimentError: It cannot be.")
    assert outcomes(search) == {"trial_0": {"failed": trial.reason}}
    assert listener.of("failed") == ["trial 0"]


def test_another_teacher_is_refused(tmp_path, monkeypatch):
    """Its file may be replaced, which no experiment tells; neither the chief nor a worker mixes trials."""
    broken(monkeypatch, ValueError("It need not train."))
    tiny_search(tmp_path, GAMMA, trials=1).run()
    again = tiny_search(tmp_path, GAMMA, trials=2)  # writes the same file
    assert len(again.run().trials) == 2
    again = tiny_search(tmp_path, GAMMA, trials=3)
    keras.utils.set_random_seed(99)
    models.wide_resnet(10, 0.5, image_shape=(8, 8, 1)).save(tmp_path / "teacher.keras")
    recorded = (again.folder / "search.json").read_text()
    with pytest.raises(ExperimentError, match=r"tiny-search was distilled from another teacher, fingerprint .*--out"):
        again.run()
    assert (again.folder / "search.json").read_text() == recorded
    assert len(list(again.folder.glob("trials/trial_*"))) == 2
    monkeypatch.setattr(searches, "wait_for_chief", lambda oracle: None)
    with (
        variables("worker0", "127.0.0.1", *free_ports(1)),
        pytest.raises(ExperimentError, match=r"distilled from another teacher"),
    ):
        again.run()


def test_a_batch_that_is_too_large_is_refused_before_the_search(tmp_path):
    search = tiny_search(tmp_path, "data.batch_size={choice: [32, 500]}", trials=1)
    with pytest.raises(ExperimentError, match=r"^data: `batch_size` must be at most 81, .*Received: 500\.$"):
        search.run()
    assert not list(search.folder.glob("trials"))


def test_a_full_disk_ends_the_search(tmp_path, monkeypatch):
    broken(monkeypatch, StorageError("There is no room."))
    search = tiny_search(tmp_path, GAMMA, trials=4)
    with pytest.raises(StorageError, match="There is no room"):
        search.run()
    assert not outcomes(search)
