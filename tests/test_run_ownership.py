"""Whether what is in a run's folder is this run: its images, its teacher, and settings that matter to it."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_runs import digit_network, write_files
from pictures import photo_folder
from test_data_errors import loaded, of
from tiny_experiment import Listener, tiny
from tiny_search import GAMMA, tiny_search

import spkd_keras
from spkd_keras import models, storage
from spkd_keras.data import Images, Splits
from spkd_keras.experiment import ExperimentError, differences
from spkd_keras.training import (
    build,
    cache_teacher,
    cached_teacher,
    check_experiment,
    check_folders,
    environment,
    run_experiment,
    teacher_run,
)
from spkd_keras.training.environment import intra_op_threads
from spkd_keras.training.folder import RunFolder, start_digest
from spkd_keras.training.interruption import Interruption
from spkd_keras.training.train import train

RECORDED = "3f" * 16


def record(folder, **recorded):
    (folder / "environment.json").write_text(json.dumps(recorded), encoding="utf-8")


def untrained(observer_told):
    return [told for told in observer_told if told[0] == "started"] == []


# --- images ----------------------------------------------------------------------------------------------------------


def splits(pixels=0, label=0, validation=True, names=("a", "b")):
    def part(value):
        images = np.full((4, 2, 2, 1), value, np.uint8)
        return Images(images, np.array([label, 1, 0, 1]), names)

    return Splits(part(pixels), part(3) if validation else None, part(5), {})


def test_a_digest_is_of_all_that_a_training_sees_of_the_data():
    digests = [
        splits().digest(),
        splits(pixels=1).digest(),
        splits(label=1).digest(),
        splits(validation=False).digest(),
        splits(names=("a", "c")).digest(),
        splits()._replace(test=splits(pixels=9).train).digest(),
    ]
    assert len(set(digests)) == len(digests)
    assert splits().digest() == digests[0]


@pytest.mark.parametrize("change", ["add", "remove", "rename", "replace", "relabel"])
def test_a_digest_of_photos_is_of_their_names_and_sizes(tmp_path, change):
    photo_folder(tmp_path / "photos", {"train": 5, "test": 3})
    before = loaded(**of(tmp_path / "photos")).digest()
    assert loaded(**of(tmp_path / "photos")).digest() == before
    file = tmp_path / "photos" / "test" / "cat" / "001.jpg"
    if change == "add":
        (file.parent / "009.jpg").write_bytes(file.read_bytes())
    elif change == "remove":
        file.unlink()
    elif change == "rename":
        file.rename(file.with_name("0011.jpg"))
    elif change == "replace":
        file.write_bytes(file.read_bytes() + b"\0")
    else:
        file.rename(file.parents[1] / "dog" / "0011.jpg")
    assert loaded(**of(tmp_path / "photos")).digest() != before


@pytest.mark.parametrize("left", ["a finished run", "a checkpoint"])
def test_runs_on_other_images_are_not_mixed(tmp_path, left):
    experiment = tiny(tmp_path, "seeds=[0, 1]").select(["student"])
    folder = write_files(tmp_path / "runs" / "tiny", experiment.single("student", 0), {} if left[2] == "f" else None)
    if left == "a checkpoint":
        (folder / "backup").mkdir()
        (folder / "backup" / "epoch-1-batch-0.npz").touch()
    record(folder, data_digest=RECORDED)
    digest = build.load_data(experiment.data).digest()
    listener = Listener()
    with pytest.raises(ExperimentError) as caught:
        run_experiment(experiment, tmp_path / "runs", listener)
    assert str(caught.value) == (
        f"{folder} was trained on other images than the data have now (digest {RECORDED}). Received: {digest}. "
        "Nothing was changed. Bring the images back as they were, or train anew into another folder (`spkd run --out`)."
    )
    assert untrained(listener.told)
    for harmless in (digest, None):  # of before digests were recorded
        record(folder, data_digest=harmless)
        RunFolder(folder.parent, experiment.single("student", 0)).check_data(digest)


def test_a_check_refuses_what_a_run_does(tmp_path):
    experiment = tiny(tmp_path, "teacher=", "methods={student: []}")
    folder = write_files(tmp_path / "tiny", experiment.single("student", 0), {})
    record(folder, data_digest=RECORDED)
    (found,) = check_experiment(experiment, runs={}, out=tmp_path, cost=False).findings
    assert (found.severity, found.place, "was trained on other images" in found.found) == ("stop", "out", True)
    digit_network(0.5).save(tmp_path / "teacher.keras")
    experiment = tiny(tmp_path, "name=other", f"teacher={{path: '{tmp_path}/teacher.keras'}}").select(["sp"])
    record(write_files(tmp_path / "other", experiment.single("sp", 0), {}), teacher_fingerprint="one")
    found = check_experiment(experiment, runs={}, out=tmp_path, cost=False).findings
    assert any(one.place == "out" and "was distilled from another teacher" in one.found for one in found)


def test_a_run_that_did_not_come_far_may_begin_with_other_images(tmp_path):
    experiment = tiny(tmp_path)
    folder = write_files(tmp_path, experiment.single("student", 0), None)
    record(folder, data_digest=RECORDED)
    RunFolder(tmp_path, experiment.single("student", 0)).check_data("0" * 32)


def test_runs_from_other_weights_are_not_mixed(tmp_path):
    weights = tmp_path / "start.weights.h5"
    weights.write_bytes(b"one")
    experiment = tiny(tmp_path, f"student.weights='{weights}'").select(["student"])
    folder = write_files(tmp_path / "runs" / "tiny", experiment.single("student", 0), {})
    run = RunFolder(folder.parent, experiment.single("student", 0))
    digest = build.load_data(experiment.data).digest()
    for harmless in ({"start_digest": start_digest(run.experiment.student)}, {}):
        record(folder, **harmless)
        run.check_data(digest)
    record(folder, start_digest=start_digest(run.experiment.student))
    weights.write_bytes(b"two")
    with pytest.raises(ExperimentError, match=rf"^{folder} started from other weights than {weights} has now \(digest"):
        run.check_data(digest)


def test_a_teacher_of_other_images_is_not_used(tmp_path):
    """By `spkd cache`, and by searches and frontiers, which train students beside it."""
    experiment = tiny(tmp_path, "teacher.cache={}")
    folder = write_files(tmp_path / "runs" / "tiny", experiment.teacher_training(), {})
    digit_network(0.5).save(folder / "student.keras")
    record(folder, data_digest=RECORDED)
    loaded_data, interruption = build.load_data(experiment.data), Interruption()
    refused = pytest.raises(ExperimentError, match=r"teacher-seed0 was trained on other images than the data have now")
    with refused:
        teacher_run.prepared_teacher(experiment, tmp_path / "runs", loaded_data, Listener(), interruption)
    with refused:
        cache_teacher(experiment, tmp_path / "runs")
    record(folder, data_digest=loaded_data.digest())
    assert teacher_run.prepared_teacher(experiment, tmp_path / "runs", loaded_data, Listener(), interruption)


@pytest.mark.parametrize("left", ["outcome.json", "backup/epoch-1-batch-0.npz", None])
def test_trials_on_other_images_are_not_mixed(tmp_path, monkeypatch, left):
    search = tiny_search(tmp_path, GAMMA, trials=1)

    class GoesOnError(Exception):
        pass

    def goes_on(self, *_):
        raise GoesOnError

    monkeypatch.setattr(type(search), "_tuner", goes_on)
    search.folder.mkdir(parents=True)
    file = search.folder / "search.json"
    before = search._record() | {"data_digest": RECORDED}
    file.write_text(json.dumps(before), encoding="utf-8")
    if left is None:  # nothing was trained
        with pytest.raises(GoesOnError):
            search.run()
        return
    trial = search.folder / "trials" / "trial_0" / left
    trial.parent.mkdir(parents=True)
    trial.touch()
    with pytest.raises(ExperimentError, match=r"tiny-search was trained on other images than the data have now"):
        search.run()
    assert json.loads(file.read_text()) == before


def test_trials_from_other_weights_are_not_mixed(tmp_path):
    weights = tmp_path / "start.weights.h5"
    weights.write_bytes(b"one")
    search = tiny_search(tmp_path, GAMMA, f"student.weights='{weights}'", trials=1)
    outcome = search.folder / "trials" / "trial_0" / "outcome.json"
    outcome.parent.mkdir(parents=True)
    outcome.touch()
    begun = search._record() | {"start_digest": start_digest(search.experiment.student)}
    (search.folder / "search.json").write_text(json.dumps(begun), encoding="utf-8")
    assert search._check_record() is None
    weights.write_bytes(b"two")
    with pytest.raises(ExperimentError, match=rf"tiny-search started from other weights than {weights} has now"):
        search.run()


# --- settings that matter --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "field"),
    [("teacher.cache={}", "teacher.cache.views"), ("teacher.width=1.0", "teacher.width")],
)
def test_a_run_without_terms_asks_no_teacher(tmp_path, override, field):
    experiment, other = tiny(tmp_path), tiny(tmp_path, override)
    for method in ("student", "sp"):
        write_files(tmp_path, experiment.single(method, 0), {})
    RunFolder(tmp_path, other.single("student", 0)).check_owner()
    with pytest.raises(ExperimentError, match=f"sp-seed0 holds a run of another experiment \\({field}"):
        RunFolder(tmp_path, other.single("sp", 0)).check_owner()


def test_the_baseline_of_before_another_teacher_is_kept(tmp_path):
    runs = [RunFolder(tmp_path, tiny(tmp_path).single(method, 0)) for method in ("student", "sp")]
    for run in runs:
        record(write_files(tmp_path, run.experiment, {}), teacher_fingerprint="one")
    teacher_run.check_fingerprint("another", runs[:1])
    with pytest.raises(ExperimentError, match=r"sp-seed0 was distilled from another teacher, fingerprint one\."):
        teacher_run.check_fingerprint("another", runs)


def test_runs_are_not_mixed_with_those_of_a_replaced_teacher(tmp_path):
    path = tmp_path / "teacher.keras"
    digit_network(0.5).save(path)
    experiment = tiny(tmp_path, f"teacher={{path: '{path}'}}", "seeds=[0, 1]").select(["sp"])
    finished = write_files(tmp_path / "runs" / "tiny", experiment.single("sp", 0), {})
    record(finished, teacher_fingerprint="one")
    listener = Listener()
    with pytest.raises(ExperimentError, match=r"sp-seed0 was distilled from another teacher, fingerprint one\."):
        run_experiment(experiment, tmp_path / "runs", listener)
    assert untrained(listener.told)


def test_a_teacher_may_be_moved_and_not_replaced(tmp_path):
    network = digit_network(0.5)
    here, there = tmp_path / "here.keras", tmp_path / "there.keras"
    network.save(here)
    here_run = tiny(tmp_path, f"teacher={{path: '{here}'}}").single("sp", 0)
    there_run = RunFolder(tmp_path, tiny(tmp_path, f"teacher={{path: '{there}'}}").single("sp", 0))
    folder = write_files(tmp_path, here_run, {})
    network.save(there)
    refused = pytest.raises(ExperimentError, match=r"another experiment \(teacher\.path: .*here\.keras -> .*there")
    with refused:  # nobody knows which teacher it had
        there_run.check_owner()
    record(folder, teacher_fingerprint=models.fingerprint(network))
    there_run.check_owner()
    digit_network(0.5, seed=1).save(there)
    with refused:
        there_run.check_owner()


def test_where_a_cache_is_kept_is_no_setting(tmp_path):
    plain, elsewhere = (tiny(tmp_path, f"teacher.cache={{{where}}}") for where in ("", "path: elsewhere"))
    assert differences(plain, elsewhere) == []
    assert cached_teacher.shared(plain, tmp_path).teacher.cache.path == str(tmp_path / "teacher-cache")
    assert cached_teacher.shared(elsewhere, tmp_path) == elsewhere
    assert cached_teacher.shared(tiny(tmp_path), tmp_path) == tiny(tmp_path)


def test_threads_that_the_environment_asks_for(monkeypatch):
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    every = intra_op_threads()
    for asked, threads in (("1", 1), ("3", 3), ("0", every), ("", every), ("many", every)):
        monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", asked)
        assert intra_op_threads() == threads


def test_the_commit_is_that_of_the_package_s_own_checkout(monkeypatch):
    own = Path(spkd_keras.__file__).parent.parent
    for top, commit in ((own, "a" * 40), (own.parent, None)):
        answer = SimpleNamespace(stdout=f"{top}\n{'a' * 40}\n")
        monkeypatch.setattr(environment.subprocess, "run", lambda *_, answer=answer, **__: answer)
        assert environment._commit() == commit


def test_a_folder_that_another_command_took_meanwhile_is_left_to_it(tmp_path):
    mine, other = tiny(tmp_path).single("student", 0), tiny(tmp_path, "schedule.epochs=7").single("student", 0)
    folder = write_files(tmp_path, other, {"test_error": 0.5})
    before = (folder / "experiment.yaml").read_bytes()
    with pytest.raises(ExperimentError, match="holds a run of another experiment"):
        train(RunFolder(tmp_path, mine), build.load_data(mine.data), Listener(), Interruption())
    assert (folder / "experiment.yaml").read_bytes() == before


def test_a_folder_that_cannot_be_looked_into_is_told_as_one_that_cannot_be_written(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    experiment = tiny(tmp_path).single("student", 0)
    user = os.geteuid()
    if not user:
        os.seteuid(65534)  # root may look into everything
    try:
        run = RunFolder(closed / "runs", experiment)
        run.check_owner()
        assert not run.finished
        (finding,) = check_folders.check_runs(run.experiment, None, None, closed / "runs")
        assert "cannot be written to" in finding.found
        with pytest.raises(ExperimentError, match=r"The output folder cannot be written to: .*Permission denied"):
            storage.check_writable(closed / "runs")
    finally:
        os.seteuid(user)


def test_what_changed_of_the_conditions():
    before = {"processor": ["avx2", "avx512f", "fma"], "intra_op_threads": 2, "devices": ["CPU:0"]}
    now = {"processor": ["avx2", "amx_tile", "fma"], "intra_op_threads": 4, "devices": ["CPU:0"], "replicas": 1}
    assert environment.changes(before, now) == ["processor: -avx512f +amx_tile", "intra_op_threads: 2 -> 4"]
    assert environment.changes({}, now) == []  # nobody knows


def test_the_processor_is_told_by_its_instructions():
    here = environment.environment()
    assert here["processor"] == sorted(set(here["processor"])) != []
    assert here["accelerators"] == []


def test_the_disks_of_two_folders(tmp_path, monkeypatch):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one disk")
    monkeypatch.setattr(check_folders.shutil, "disk_usage", lambda place: SimpleNamespace(free=10**7))
    assert check_folders.room((tmp_path / "runs", 6 * 10**6), (other, 6 * 10**6)) == []
    (one,) = check_folders.room((tmp_path / "runs", 6 * 10**6), (tmp_path / "cache", 6 * 10**6), (other, 1))
    assert one.found == f"12 MB are needed and {tmp_path} has 10 MB free."
