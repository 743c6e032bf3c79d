"""What a cache refuses: wrong arguments, other images, teachers that do not fit, and files that are not whole."""

import os
import resource
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from networks import CLASSES, IMAGE_SHAPE, cross_entropy, small_network
from test_cache import CIFAR, some_images, sp
from test_distiller import KD

from spkd_keras import Distiller, Term
from spkd_keras.cache import TeacherCache, compute, computing, data_digest
from spkd_keras.data import EpochClock, Images, load


@pytest.fixture
def images():
    return some_images()


@pytest.fixture
def teacher():
    return small_network(8, name="teacher")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"views": 17, "augmentation": CIFAR}, "`views` must be an integer from 1 to 16. Received: views=17"),
        ({"views": 2}, "Without augmentation an image has one view. Received: views=2"),
        ({"store": "bfloat16"}, "`store` must be one of float16, float32. Received: 'bfloat16'"),
        ({"sketch": 0}, "`sketch` must be an integer of at least 1"),
    ],
)
def test_wrong_arguments(arguments, message, images, teacher, tmp_path):
    with pytest.raises(ValueError, match=message):
        compute(tmp_path / "cache", teacher, [sp()], images, **arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_kept(images, teacher, tmp_path):
    with pytest.raises(
        ValueError, match=r"exists\. TeacherCache\(folder\) opens the cache that is there\. To compute an"
    ):
        compute(tmp_path, teacher, [sp()], images)


def test_values_that_do_not_fit_into_float16_are_refused(images, teacher, tmp_path):
    teacher.get_layer("bn2").gamma.assign(1e6 * np.ones(8))
    with pytest.raises(ValueError, match=r"stage2 must be finite in float16.*store: float32"):
        compute(tmp_path / "cache", teacher, [sp()], images)
    assert not (tmp_path / "cache").exists()
    compute(tmp_path / "cache", teacher, [sp()], images, store="float32")


def test_other_images_are_refused_in_one_line(images, teacher, tmp_path):
    cache = compute(tmp_path / "cache", teacher, [sp()], images)
    changed = Images(images.pixels.copy(), images.labels, images.class_names)
    changed.pixels[3, 2, 2, 0] ^= 1
    with pytest.raises(ValueError, match=r"^[^\n]*was computed for something else \(data: \w+ -> \w+\)[^\n]*$"):
        cache.batches(changed, 8, 0, EpochClock())


def test_an_interrupted_computation_leaves_nothing_that_looks_whole(images, teacher, tmp_path):
    def interrupt(done, entries):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute(tmp_path / "cache", teacher, [sp()], images, batch_size=8, tell=interrupt)
    with pytest.raises(ValueError, match="is no cache of a teacher"):
        TeacherCache(tmp_path / "cache")
    compute(tmp_path / "cache", teacher, [sp()], images, batch_size=8)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    with pytest.raises(ValueError, match=r"exists\. TeacherCache\(folder\) opens"):
        compute(tmp_path / "cache", teacher, [sp()], images)


@pytest.mark.parametrize("batch_size", [8, 5, 22])
def test_an_interrupted_computation_goes_on(batch_size, images, teacher, tmp_path, monkeypatch):
    """Behind the last file that is whole, within a view and a batch; with the teacher on what is left alone."""
    arguments = {"batch_size": batch_size, "augmentation": CIFAR, "views": 3, "store": "float32"}
    monkeypatch.setattr(computing, "SHARD_BYTES", 7 * 4 * (CLASSES + 4 * 4 * 8))
    whole = compute(tmp_path / "whole", teacher, [sp()], images, **arguments)
    told = []

    def interrupt(done, entries):
        told.append(done)
        if done >= 37:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute(tmp_path / "cache", teacher, [sp()], images, tell=interrupt, **arguments)
    (partial,) = (path for path in tmp_path.iterdir() if path.name.startswith(".partial"))
    shards = len(list(partial.glob("entries-*")))
    a_shard = whole.manifest.entries_a_shard
    assert shards == told[-1] // a_shard > 1
    again = []
    cache = compute(tmp_path / "cache", teacher, [sp()], images, tell=lambda done, _: again.append(done), **arguments)
    assert shards * a_shard < again[0] <= shards * a_shard + batch_size
    numbers = np.arange(66)
    for name, values in whole.read(numbers).items():
        np.testing.assert_array_equal(cache.read(numbers)[name], values)
    assert sorted(file.name for file in cache.folder.iterdir()) == sorted(file.name for file in whole.folder.iterdir())


@pytest.mark.parametrize("damage", ["empty", "half", "missing"])
def test_what_is_not_whole_of_an_interrupted_computation_is_computed_again(
    damage, images, teacher, tmp_path, monkeypatch
):
    """And the rest with it; what was interrupted at its very end is whole."""
    monkeypatch.setattr(computing, "SHARD_BYTES", 5 * 2 * (CLASSES + 4 * 4 * 8))
    rename = Path.rename

    def interrupt(path, name):
        if path.is_dir():
            raise KeyboardInterrupt
        return rename(path, name)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupt)
        with pytest.raises(KeyboardInterrupt):
            compute(tmp_path / "cache", teacher, [sp()], images)
    told = []
    arguments = {"batch_size": 4, "tell": lambda done, _: told.append(done)}
    shutil.copytree(tmp_path / ".partial-cache", tmp_path / ".partial-other")
    whole = compute(tmp_path / "cache", teacher, [sp()], images, **arguments)
    assert told == [], "22 entries in five files"
    file = tmp_path / ".partial-other" / "entries-00002.array_record"
    content = file.read_bytes()
    file.unlink() if damage == "missing" else file.write_bytes(content[: len(content) // 2 if damage == "half" else 0])
    other = compute(tmp_path / "other", teacher, [sp()], images, **arguments)
    assert told == [12, 16, 20, 22], "behind the ten of the first two files"
    for name, values in whole.read(np.arange(22)).items():
        np.testing.assert_allclose(other.read(np.arange(22))[name], values, rtol=2e-3)


def test_an_interrupted_computation_of_something_else_begins_anew(images, teacher, tmp_path):
    def interrupt(done, entries):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute(tmp_path / "cache", teacher, [sp()], images, tell=interrupt)
    (tmp_path / ".partial-cache" / "entries-00000.array_record").write_bytes(b"of another dtype")
    cache = compute(tmp_path / "cache", teacher, [sp()], images, store="float32")
    assert cache.read(np.arange(22))["/output"].dtype == "float32"


def test_hours_of_something_else_are_not_thrown_away(images, teacher, tmp_path, monkeypatch):
    def interrupt(done, entries):
        if done > 14:
            raise KeyboardInterrupt

    monkeypatch.setattr(computing, "SHARD_BYTES", 5 * 2 * (CLASSES + 4 * 4 * 8))
    with pytest.raises(KeyboardInterrupt):
        compute(tmp_path / "cache", teacher, [sp()], images, batch_size=4, tell=interrupt)
    with pytest.raises(ValueError, match=r"is a part of .* else \(of other store, entries_a_shard\)\. Remove"):
        compute(tmp_path / "cache", teacher, [sp()], images, store="float32")
    assert compute(tmp_path / "cache", teacher, [sp()], images, batch_size=4).manifest.store == "float16"


def test_a_file_that_becomes_too_large_for_its_disk(images, teacher, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            compute(tmp_path / "cache", teacher, [sp()], images, store="float32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "cache").exists()
    compute(tmp_path / "cache", teacher, [sp()], images, store="float32")


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_cache_is_refused(damage, images, teacher, tmp_path):
    compute(tmp_path / "cache", teacher, [sp()], images)
    (shard,) = (tmp_path / "cache").glob("*.array_record")
    if damage == "remove":
        shard.unlink()
    else:
        os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"is not whole|must have 22 entries"):
        TeacherCache(tmp_path / "cache")


def ending_in(**last):
    """A teacher whose last layer, of this name and activation, gives the output."""
    inputs = keras.Input(IMAGE_SHAPE)
    return keras.Model(inputs, layers.Dense(CLASSES, **last)(layers.Flatten()(inputs)), name="teacher")


def test_probabilities_are_refused_where_logits_are_compared(images, tmp_path):
    teacher = ending_in(activation="softmax")
    with pytest.raises(ValueError, match=r"compares logits\. Received: a teacher 'teacher' that ends in a softmax"):
        compute(tmp_path / "cache", teacher, [Term(KD())], images)
    assert not list(tmp_path.iterdir())


def test_a_cache_knows_that_its_teacher_gives_probabilities(images, tmp_path):
    teacher = keras.Sequential([small_network(8, name="inner"), layers.Softmax()], name="teacher")
    cache = compute(tmp_path / "cache", teacher, [], images)
    with pytest.raises(ValueError, match=r"compares logits\. Received: a teacher 'teacher'"):
        Distiller(cache.stand_in, small_network(), [Term(KD())])


def test_a_layer_of_the_teacher_may_be_called_output(images, tmp_path):
    """It is another place than the network's own output, which has no layer's name."""
    teacher = ending_in(name="output")
    inputs = teacher.input
    teacher = keras.Model(inputs, 2.0 * teacher.output, name="teacher")
    cache = compute(tmp_path / "cache", teacher, [Term(KD(), teacher="output")], images, store="float32")
    values = cache.read(np.arange(3))
    np.testing.assert_allclose(values["/output"], 2 * values["output"], rtol=1e-6)
    model = Distiller(cache.stand_in, small_network(), [Term(KD(), teacher="output"), Term(KD(), name="own")])
    model.compile("sgd", cross_entropy())
    clock = EpochClock()
    history = model.fit(cache.batches(images, 8, 0, clock), shuffle=False, callbacks=[clock], verbose=0).history
    assert history["soft_targets"][0] != history["own"][0]


def test_another_dtype_of_the_teacher_than_that_of_the_cache_is_refused(images, teacher, tmp_path):
    cache = compute(tmp_path / "cache", teacher, [sp()], images, teacher_dtype="bfloat16")
    Distiller(cache.stand_in, small_network(), [sp()], teacher_dtype="bfloat16")
    with pytest.raises(ValueError, match="`teacher_dtype` must be 'bfloat16', as when the cache was computed, or None"):
        Distiller(cache.stand_in, small_network(), [sp()], teacher_dtype="float16")


def test_photos_that_are_replaced_are_other_images(tmp_path):
    """Under the same names, of the same size, as many of each class."""

    def digest(seed):
        random = np.random.default_rng(seed)
        for split in ("train", "test"):
            for name in ("bark", "sand"):
                folder = tmp_path / split / name
                folder.mkdir(parents=True, exist_ok=True)
                pixels = random.integers(0, 256, (8, 8, 3)).astype("uint8")
                keras.utils.save_img(folder / "0.png", pixels, scale=False)
        return data_digest(load("image_folder", path=str(tmp_path), image_size=8, validation=0.0).train)

    assert digest(0) == digest(0) != digest(1)
    small, large = (load("image_folder", path=str(tmp_path), image_size=n, validation=0.0).train for n in (8, 16))
    assert data_digest(small) != data_digest(large)
