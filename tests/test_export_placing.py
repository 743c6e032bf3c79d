"""What is at an export's path, whatever happens meanwhile."""

import errno
import json
import os
import resource

import keras
import numpy as np
import pytest
from exported import FILES, each_format, logits_of
from keras import layers

from spkd_keras.export import export_student, load_runner, placing
from spkd_keras.training import StorageError

GIVEN = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 2), dtype=np.uint8)


def tiny_network(seed):
    """As small as a network can be; pictures have no two channels, so that a SavedModel has one signature less."""
    initializer = keras.initializers.RandomNormal(stddev=0.01, seed=seed)
    return keras.Sequential(
        [keras.Input((4, 4, 2)), layers.Flatten(), layers.Dense(64, kernel_initializer=initializer), layers.Dense(3)]
    )


@pytest.fixture(scope="module")
def network():
    return tiny_network(0)


@pytest.fixture(scope="module")
def other():
    return tiny_network(1)


class Killed(BaseException):
    """Stands for a kill: nothing of ours catches it."""


def export_and_kill(monkeypatch, function, source, *arguments, error=Killed, raised=Killed):
    """Exports, and ends that where it would give the file or folder of this name another one."""
    own = getattr(os, function)

    def killed(file, name):
        if os.path.basename(file) == source:
            raise error
        own(file, name)

    with monkeypatch.context() as patch:
        patch.setattr(placing.os, function, killed)
        with pytest.raises(raised):
            export_student(*arguments)


def says(path, network):
    """Whether what is at the path is the network."""
    return np.allclose(load_runner(path).predict(GIVEN)["logits"], logits_of(network, GIVEN), atol=1e-5)


def names(folder):
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("then", ["read", "export"])
def test_a_folder_between_its_two_names_is_put_back(network, other, tmp_path, monkeypatch, then):
    path = tmp_path / "saved"
    export_student(network, path, "saved_model")
    export_and_kill(monkeypatch, "rename", ".partial-saved", other, path, "saved_model")
    assert names(tmp_path) == [".partial-old-saved", ".partial-old-saved.json"], "neither of them has its name"
    if then == "read":
        assert says(path, network)
        assert names(tmp_path) == ["saved", "saved.json"]
        assert json.loads((tmp_path / "saved.json").read_text(encoding="utf-8"))["sha256"] == placing.digest(path)
    else:
        export_student(other, path, "saved_model")
        assert says(path, other)
        assert names(tmp_path) == ["saved", "saved.json"]


def test_a_kill_after_both_names_leaves_the_new_one(network, other, tmp_path, monkeypatch):
    path = tmp_path / "saved"
    export_student(network, path, "saved_model")
    export_and_kill(monkeypatch, "rename", ".partial-old-saved", other, path, "saved_model")
    assert says(path, other)
    assert names(tmp_path) == [".partial-old-saved", ".partial-old-saved.json", "saved"]
    export_student(other, path, "saved_model")
    assert names(tmp_path) == ["saved", "saved.json"]


def test_a_folder_that_cannot_be_cleared_away_is_replaced_all_the_same(network, other, tmp_path, monkeypatch):
    path = tmp_path / "saved"
    export_student(network, path, "saved_model")
    own = os.rename

    def rename(file, name):
        if os.path.basename(file) == ".partial-old-saved":
            raise OSError
        own(file, name)

    with monkeypatch.context() as patch:
        patch.setattr(placing.os, "rename", rename)
        export_student(other, path, "saved_model")
    assert says(path, other)
    assert json.loads((tmp_path / "saved.json").read_text(encoding="utf-8"))["sha256"] == placing.digest(path)


@pytest.mark.parametrize(("kind", "function"), [("saved_model", "rename"), ("onnx", "replace")])
def test_what_cannot_get_its_name_leaves_the_old_one_and_its_text(
    network, other, tmp_path, monkeypatch, kind, function
):
    path = tmp_path / FILES[kind]
    beside = path.with_name(f"{path.name}.json")
    export_student(network, path, kind)
    before = beside.read_bytes()
    arguments = (function, f".partial-{path.name}", other, path, kind)
    export_and_kill(monkeypatch, *arguments, error=OSError, raised=StorageError)
    assert says(path, network)
    assert beside.read_bytes() == before
    assert names(tmp_path) == sorted([path.name, beside.name])


def test_an_old_text_that_a_kill_left_is_in_nobodys_way(network, other, tmp_path, monkeypatch):
    path = tmp_path / "a.onnx"
    export_student(network, path, "onnx")
    export_and_kill(monkeypatch, "replace", ".partial-a.onnx", other, path, "onnx")
    assert says(path, network)
    assert names(tmp_path) == [".partial-old-a.onnx.json", "a.onnx"], "no text beside a model that may be another"
    (tmp_path / "a.onnx.json").mkdir()
    with pytest.raises(
        StorageError, match=r"a.onnx cannot be written \(Is a directory\). What was there before is intac"
    ):
        export_student(other, path, "onnx")
    assert says(path, network)
    assert names(tmp_path) == ["a.onnx", "a.onnx.json"]


@each_format
def test_an_export_replaces_the_one_before_and_no_text_is_beside_another_model(
    network, other, tmp_path, monkeypatch, kind
):
    path = tmp_path / FILES[kind]
    beside = path.with_name(f"{path.name}.json")
    for written in (network, other):
        export = export_student(written, path, kind)
        assert says(path, written)
        assert names(tmp_path) == sorted([path.name, beside.name])
        told = json.loads(beside.read_text(encoding="utf-8"))
        assert told["sha256"] == export.sha256 == placing.digest(path)
    export_and_kill(monkeypatch, "replace", f".partial-{path.name}.json", network, path, kind)
    assert names(tmp_path) == [path.name]
    assert says(path, network)


@each_format
def test_a_link_stays_one_and_what_it_points_at_is_replaced(network, other, tmp_path, kind):
    (tmp_path / "store").mkdir()
    store, link = tmp_path / "store" / "7f3a", tmp_path / FILES[kind]
    link.symlink_to(store)
    for written in (network, other):  # first it points at nothing
        export_student(written, link, kind)
        assert link.is_symlink()
        assert not store.is_symlink()
        assert says(link, written)
    assert names(tmp_path) == sorted(["store", link.name, f"{link.name}.json"])
    assert names(store.parent) == ["7f3a"]


def test_two_exports_to_one_path_are_one_after_the_other(network, tmp_path):
    path = tmp_path / "student.onnx"
    with placing.Place(path).held(), pytest.raises(ValueError, match=r"student.onnx is being written by another proc"):
        export_student(network, path, "onnx")
    assert names(tmp_path) == []
    export_student(network, path, "onnx")


@each_format
def test_what_is_not_whole_is_no_model(network, tmp_path, kind):
    whole = export_student(network, tmp_path / FILES[kind], kind).path
    left = placing.Place(whole).partial
    whole.rename(left)
    with pytest.raises(ValueError, match=r"is not whole: it is being written, or a kill left it. Export or train it"):
        load_runner(left)
    assert placing.Place(whole).partial.parent == tmp_path


@pytest.mark.parametrize("kind", ["saved_model", "onnx"])
def test_a_disk_that_takes_no_more(network, other, tmp_path, kind):
    path = tmp_path / FILES[kind]
    export_student(network, path, kind)
    before = placing.digest(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StorageError) as caught:
            export_student(other, path, kind)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path} cannot be written (File too large). What was there before is intact. Make room")
    assert placing.digest(path) == before
    assert names(tmp_path) == sorted([path.name, f"{path.name}.json"])


def test_a_disk_that_is_full_when_it_is_asked_to_keep(network, other, tmp_path, monkeypatch):
    path = export_student(network, tmp_path / "a.onnx", "onnx").path

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    with monkeypatch.context() as patch:
        patch.setattr(placing, "bring_to_disk", full)  # that of models alone
        with pytest.raises(StorageError, match="What was there before is intact"):
            export_student(other, path, "onnx")
    assert says(path, network)
    assert names(tmp_path) == ["a.onnx", "a.onnx.json"]
