"""`teacher.cache` in an experiment, and `spkd cache`."""

import json
import shutil
import types

import filelock
import numpy as np
import pytest
from test_cli import call
from tiny_experiment import Listener, tiny, untrained_teacher, weights_of

from spkd_keras.distiller import Distiller
from spkd_keras.distiller.stand_in import StandIn
from spkd_keras.experiment import ExperimentError
from spkd_keras.training import build, cache_teacher, cached_teacher, run_experiment
from spkd_keras.training import check as check_module
from spkd_keras.training.check import check_experiment


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return untrained_teacher(tmp_path_factory.mktemp("teacher"))


def cached(folder, teacher, *overrides):
    experiment = tiny(
        folder, f"teacher={{path: '{teacher}', cache: {{views: 2}}}}", "data.augmentation=cifar", *overrides
    )
    return experiment.select(["sp"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teacher.cache={views: 2}"], "`teacher.cache.views` must be 1 without augmentation"),
        (["teacher.cache={}", "data.mixup=0.2"], "`teacher.cache` needs images that are augmented one by one"),
        (["teacher.cache={store: bfloat16}"], "teacher.cache.store"),
        (["teacher.cache={view: 2}"], "Did you mean `views`"),
    ],
)
def test_what_cannot_be_cached_is_refused_by_the_experiment(overrides, message, tmp_path):
    with pytest.raises(ExperimentError, match=message):
        tiny(tmp_path, *overrides)


def test_a_cache_of_something_else_is_refused_in_one_line(teacher, tmp_path):
    experiment = cached(tmp_path, teacher)
    cache = cache_teacher(experiment, tmp_path / "runs")
    root, splits = cache.folder.parent, build.load_data(experiment.data)
    fingerprint = cache.manifest.teacher_fingerprint
    opened = cached_teacher.opened(experiment, experiment.teacher_cache, root, splits, fingerprint)
    assert opened.manifest == cache.manifest
    for override, difference in (
        ("teacher.cache.views=3", "views: 2 -> 3"),
        ("teacher.cache.seed=1", "seed: 0 -> 1"),
        ("teacher.cache.store=float32", "store: float16 -> float32"),
        ("teacher.cache.sketch=64", "sketch: None -> 64"),
        ("teacher.dtype=bfloat16", "teacher_dtype: None -> bfloat16"),
        ("data.validation_seed=3", "data: "),
    ):
        other = cached(tmp_path, teacher, override)
        with pytest.raises(ExperimentError, match=f"^teacher.cache: [^\n]*something else \\([^\n]*{difference}[^\n]*$"):
            cached_teacher.opened(other, other.teacher_cache, root, build.load_data(other.data), fingerprint)
    plain = cached(tmp_path, teacher, "data.augmentation=none", "teacher.cache.views=1")
    with pytest.raises(ExperimentError, match=r"augmentation: .*cifar.* -> .*none"):
        cached_teacher.opened(plain, plain.teacher_cache, root, splits, fingerprint)
    with pytest.raises(ExperimentError, match="teacher_fingerprint: "):
        cached_teacher.opened(experiment, experiment.teacher_cache, root, splits, "0" * 32)


@pytest.mark.parametrize(
    ("overrides", "methods", "received"),
    [(["teacher.cache={}"], ["student"], "the methods student."), ([], ["sp"], "no `teacher.cache`.")],
)
def test_nothing_to_cache_is_said_before_the_teacher_is_trained(tmp_path, monkeypatch, overrides, methods, received):
    monkeypatch.setattr(build, "load_data", lambda spec: pytest.fail("it is loaded, and then the teacher is trained"))
    with pytest.raises(ExperimentError, match=f"^There is nothing to cache: .* Received: {received}$"):
        cache_teacher(tiny(tmp_path, *overrides).select(methods), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_cache_that_lacks_what_a_method_compares(teacher, tmp_path):
    """Is said before anything is trained, by every command; and a new one is not what is there already."""
    plain = [f"teacher={{path: '{teacher}', cache: {{}}}}", "methods.at=[{loss: attention_transfer}]"]
    experiment = tiny(tmp_path, *plain)
    folder = cache_teacher(experiment.select(["sp"]), tmp_path / "runs").folder
    both = experiment.select(["sp", "at"])
    said = f"must have the all_stages.* Remove {folder} for that, or name another as `teacher.cache.path`"
    listener = Listener()
    for command in (cache_teacher, run_experiment):
        with pytest.raises(ExperimentError, match=said):
            command(both, tmp_path / "runs", listener)
    assert listener.of("started") == []
    findings = check_experiment(both, out=tmp_path / "runs", cost=False).findings
    (finding,) = (found for found in findings if found.place == "teacher.cache")
    assert finding.severity == "stop"
    assert str(folder) in finding.found
    shutil.rmtree(folder)
    assert set(cache_teacher(both, tmp_path / "runs").stand_in.shapes) == {"stage1", "stage2", "stage3", "/output"}


@pytest.mark.slow
def test_a_run_from_the_cache_goes_on_after_a_kill(teacher, tmp_path, monkeypatch):
    """Bit for bit, in the second epoch's views; the teacher is not among what is trained with."""
    experiment = cached(tmp_path, teacher, "schedule.epochs=3")
    whole = run_experiment(experiment, tmp_path / "whole") / "sp-seed0"
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, tmp_path / "runs", Listener(stop_after=1))
    teachers = []
    compile_ = Distiller.compile
    monkeypatch.setattr(
        Distiller, "compile", lambda self, *a, **k: teachers.append(self.teacher) or compile_(self, *a, **k)
    )
    again = run_experiment(experiment, tmp_path / "runs") / "sp-seed0"
    assert type(teachers[-1]).__name__ == "StandIn"
    for one, other in zip(weights_of(whole), weights_of(again), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (whole / "history.csv").read_text() == (again / "history.csv").read_text()


@pytest.mark.slow
def test_the_command_says_what_it_kept(teacher, tmp_path):
    tiny(tmp_path)
    arguments = ["cache", str(tmp_path / "tiny.yaml"), "--set", f"teacher={{path: '{teacher}'}}"]
    done = call(*arguments, "--out", str(tmp_path / "runs"))
    assert done.exit_code == 0, done.output
    assert "81 images, 1 view(s) of each, float16" in done.output
    assert "error of the similarity matrix" in done.output
    done = call(*arguments, "--out", str(tmp_path / "runs"), "--json")
    answer = json.loads(done.stdout)
    assert [tensor["name"] for tensor in answer["tensors"]] == ["/output", "stage3"]
    done = call(*arguments, "--out", str(tmp_path / "runs"), "--set", "teacher.cache={store: float32}")
    assert (done.exit_code, "store: float16 -> float32" in done.output) == (2, True)


@pytest.mark.parametrize("wrong", ["teacher=stage9", "loss=similarity"])
def test_a_check_tells_what_cannot_be_built_where_a_cache_is_asked_for(wrong, teacher, tmp_path):
    overrides = [f"teacher={{path: '{teacher}', cache: {{}}}}", f"methods.sp.terms.0.{wrong}"]
    found = check_experiment(tiny(tmp_path, *overrides).select(["sp"]), out=tmp_path / "runs").findings
    assert ("stop", "methods.sp") in [(finding.severity, finding.place) for finding in found]


def test_the_size_of_a_cache_that_will_be_computed(teacher, tmp_path):
    experiment = cached(tmp_path, teacher)  # two views
    size = check_experiment(experiment, runs={}, out=tmp_path / "runs").cache
    begun = tmp_path / "runs" / "tiny" / ".partial-teacher-cache"  # by a command that was killed
    begun.mkdir(parents=True)
    (begun / "entries-00000.array_record").write_bytes(bytes(1000))
    assert check_experiment(experiment, runs={}, out=tmp_path / "runs").cache == size - 1000
    manifest = cache_teacher(experiment, tmp_path / "runs").manifest
    assert size == manifest.entries * manifest.bytes_an_entry
    assert check_experiment(experiment, runs={}, out=tmp_path / "runs").cache == 0


@pytest.mark.slow
def test_what_a_run_from_the_cache_takes_is_measured_from_the_cache(teacher, tmp_path, monkeypatch):
    experiment = cached(tmp_path, teacher)
    cache_teacher(experiment, tmp_path / "runs")
    measured, measure = [], check_module.measure
    monkeypatch.setattr(
        check_module,
        "measure",
        lambda distiller, *rest: measured.append(distiller.teacher) or measure(distiller, *rest),
    )
    check = check_experiment(experiment, runs={"sp": 1}, out=tmp_path / "runs")
    assert [isinstance(teacher, StandIn) for teacher in measured] == [True]
    assert check.costs["sp"].seconds > 0


def test_who_waits_for_the_cache_is_told(teacher, tmp_path, monkeypatch):
    experiment = cached(tmp_path, teacher)
    held = filelock.FileLock(tmp_path / ".teacher-cache.lock")
    held.acquire()
    told = []

    def noticed(text):
        told.append(text)
        held.release()

    monkeypatch.setattr(cached_teacher.cache, "compute", lambda *_, **__: None)
    monkeypatch.setattr(cached_teacher, "opened", lambda *_: "opened")
    monkeypatch.setattr(cached_teacher.models, "fingerprint", str)
    observer = types.SimpleNamespace(noticed=noticed, cached=None)
    for _ in range(2):  # the second time nobody is there
        found = cached_teacher.computed(
            experiment, experiment.teacher_cache, tmp_path, types.SimpleNamespace(train=None), teacher, observer
        )
        assert found == "opened"
    assert told == [f"Another process computes {tmp_path / 'teacher-cache'}. Waiting for it."]
