"""Files that are there whole or not at all, and folders that one process has for itself."""

import os
import pathlib

import pytest

from spkd_keras import storage


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done, fsync, rename = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: done.append(os.readlink(f"/proc/self/fd/{file}")) or fsync(file))
    monkeypatch.setattr(os, "replace", lambda one, other: done.append("renamed") or rename(one, other))
    storage.write_text(tmp_path / "a.json", "{}")
    assert done == [str(tmp_path / ".partial-a.json"), "renamed", str(tmp_path)]


def test_a_folder_that_can_no_longer_be_written_ends_with_its_own_error(tmp_path, monkeypatch):
    """Not with that of the lock, which cannot be removed either; it dies all the same."""

    def read_only(path, missing_ok=False):
        raise PermissionError(13, "Permission denied")

    def use():
        with storage.locked(tmp_path):
            monkeypatch.setattr(pathlib.Path, "unlink", read_only)
            storage.write_text(tmp_path / "missing" / "a.json", "{}")

    with pytest.raises(storage.StorageError, match=r"a\.json cannot be written"):
        use()
    monkeypatch.undo()
    with storage.locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
