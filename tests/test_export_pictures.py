"""Which files of a folder are pictures to classify."""

import pytest

from spkd_keras.experiment import ExperimentError
from spkd_keras.export.pictures import NO_PICTURE, find_pictures


def test_a_folder_is_searched_as_the_data_are_and_what_is_not_read_is_named(tmp_path):
    hidden = ("._a.png", ".git/b.png")
    for name in ("a.png", "more/b.JPG", "photo.webp", "more/IMG.HEIC", "scan.tiff", "notes.txt", *hidden):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files, problems = find_pictures([tmp_path])
    assert files == [tmp_path / "a.png", tmp_path / "more" / "b.JPG"]
    named = {problem["file"].rpartition("/")[2]: problem["problem"] for problem in problems}
    assert named == dict.fromkeys(("photo.webp", "IMG.HEIC", "scan.tiff"), NO_PICTURE)
    assert find_pictures([tmp_path / hidden[0]]) == ([tmp_path / hidden[0]], [])  # which is meant


def test_a_folder_of_formats_that_are_not_read(tmp_path):
    (tmp_path / "photo.webp").touch()
    with pytest.raises(ExperimentError, match=rf"photo\.webp {NO_PICTURE}\.$"):
        find_pictures([tmp_path])
