"""Which students are on the front, and which is the smallest that is good enough: on numbers by hand."""

import hashlib
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_experiment import TINY, untrained_teacher

from spkd_keras.experiment import ExperimentError, load_students
from spkd_keras.frontier import COSTS, Candidate, Constraints, decide, pareto, students
from spkd_keras.frontier.decision import percent_range, read_latency, read_size
from spkd_keras.observer import Observer
from spkd_keras.training import RunsFailedError
from spkd_keras.training.interruption import Interruption


def candidate(student, method, errors, parameters, *, size=1000, latency=1.0, differences=()):
    seeds = list(range(len(errors)))
    return Candidate(
        student,
        method,
        seeds,
        list(errors),
        list(differences),
        parameters,
        10 * parameters,
        [size] * len(seeds),
        [latency] * len(seeds),
    )


SMALL = candidate("small", "student", [0.10, 0.12], 100, size=500, latency=1.0)
SMALL_SP = candidate("small", "sp", [0.06, 0.07], 100, size=500, latency=1.0, differences=[-0.04, -0.05])
LARGE = candidate("large", "student", [0.05, 0.05], 400, size=2000, latency=3.0)
LARGE_SP = candidate("large", "sp", [0.04, 0.055], 400, size=2000, latency=2.5, differences=[-0.01, 0.005])
ALL = [SMALL, SMALL_SP, LARGE, LARGE_SP]
TEACHER = 0.04


def test_the_front():
    assert pareto(ALL, "parameters") == [SMALL_SP, LARGE_SP]
    assert pareto(ALL, "latency, ms") == [SMALL_SP, LARGE_SP]
    equal = candidate("other", "sp", [0.06, 0.07], 100)
    assert pareto([SMALL_SP, equal], "parameters") == [SMALL_SP, equal]  # neither undercuts the other
    dearer = candidate("other", "sp", [0.06, 0.07], 101)
    assert pareto([dearer, SMALL_SP], "multiply-adds") == [SMALL_SP]
    assert [of(LARGE_SP) for of in COSTS.values()] == [400, 4000, 2000, 2.5]


def test_the_smallest_that_is_good_enough():
    decision = decide(ALL, TEACHER, Constraints(3.0))
    assert (decision.met, decision.chosen) == (True, SMALL_SP)
    first, second = decision.sentences
    assert first == (
        "The smallest student with a validation error of at most 7.00%, 3 points above the teacher's 4.00%: small, sp, "
        "6.50% (6.00 to 7.00) over 2 seeds, 100 parameters, 500 bytes, 1 ms."
    )
    assert second == (
        "sp had fewer errors than the same-seed baseline of small with each of 2 seeds: -4.50 points in the median "
        "(sign test: p = 0.5, the least that 2 can give)."
    )


def test_the_limit_itself_is_good_enough():
    exact = candidate("exact", "sp", [0.035], 10)
    assert decide([exact], 0.025, Constraints(1.0)).met  # although 0.025 + 0.01 < 0.035 in binary
    assert decide([exact], 0.025, Constraints(1.0, size=1000, latency=1.0)).met
    assert not decide([exact], 0.025, Constraints(0.9)).met
    assert not decide([exact], 0.025, Constraints(1.0, size=999)).met
    assert not decide([exact], 0.025, Constraints(1.0, latency=0.999)).met


def test_distillation_that_harmed_is_told():
    decision = decide([LARGE, LARGE_SP], TEACHER, Constraints(1.0))
    assert decision.chosen == LARGE_SP
    worse = candidate("large", "sp", [0.08, 0.06], 400, differences=[0.03, 0.01])
    decision = decide([LARGE, worse], TEACHER, Constraints(1.0))
    assert decision.chosen == LARGE
    assert "large, the student alone" in decision.sentences[0]
    assert decision.sentences[1].startswith("sp had more errors than the same-seed baseline of large with each")


def test_with_a_baseline_alone():
    alone = candidate("small", "student", [0.04], 100)
    first, second = decide([alone], TEACHER, Constraints(1.0)).sentences
    assert "small, the student alone, 4.00% over 1 seed, " in first
    assert second == "No other method was trained for small."


def test_without_a_baseline():
    alone = candidate("small", "sp", [0.04], 100)
    assert "no baseline to compare with" in decide([alone], TEACHER, Constraints(1.0)).sentences[1]


def test_none_is_good_enough():
    decision = decide(ALL, TEACHER, Constraints(1.0, size=1000))
    # small sp is 1.5 points over one, a share of 1.5; large sp twice as many bytes as allowed, a share of 1.
    assert (decision.met, decision.chosen) == (False, LARGE_SP)
    assert decision.sentences[0].startswith("None of the 4 has a validation error of at most 5.00%")
    assert decision.sentences[0].endswith("2.5 ms: 1,000 bytes too many.")
    decision = decide(ALL, TEACHER, Constraints(0.0, latency=2.0))
    assert decision.chosen == LARGE_SP
    assert "0.75 points too high" in decision.sentences[0]
    assert "0.5 ms too long" in decision.sentences[0]
    assert decide([], TEACHER, Constraints(1.0)).sentences == ["No student was trained and exported."]


def test_what_three_seeds_come_to():
    one = candidate("x", "sp", [0.1, 0.1, 0.4], 10)._replace(bytes=[1, 2, 9], latencies=[1.0, 2.0, 9.0])
    assert (one.error, one.size, one.latency) == (0.1, 9, 2.0)


def test_excesses_are_shares_of_what_is_allowed():
    one = candidate("x", "sp", [0.16], 10, size=3000, latency=5.0)
    found = Constraints(4.0, size=2000, latency=4.0).excesses(one, 0.1)
    shares = {name: share for name, (share, _) in found.items()}
    assert shares == pytest.approx({"error": 2 / 4, "size": 1 / 2, "latency": 1 / 4})


def test_sizes_and_times():
    assert [read_size(text) for text in ("2MB", "1.5 kB", "1KiB", "7B")] == [2_000_000, 1500, 1024, 7]
    assert [read_latency(text) for text in ("5ms", "0.5 s", "200us")] == [5.0, 500.0, pytest.approx(0.2)]
    for text in ("2", "MB", "-2MB", "0MB", "2mb", "2 MB 3"):
        with pytest.raises(ExperimentError, match=r"--size takes a number above 0 and a unit .*for example 2MB"):
            read_size(text)
    with pytest.raises(ExperimentError, match=r"--size must be at least 1B\. Received: 0\.5B"):
        read_size("0.5B")
    with pytest.raises(ExperimentError, match=r"--latency takes .*Received: 5"):
        read_latency("5")


def test_ranges():
    assert percent_range([0.25, 0.5, 0.3125]) == "31.25% (25.00 to 50.00)"
    assert percent_range([0.25]) == percent_range([0.25, 0.25 + 1e-9]) == "25.00%"


# --- seeds that failed -----------------------------------------------------------------------------------------------


def test_a_student_with_seeds_that_failed_is_not_good_enough():
    fragile = SMALL_SP._replace(seeds=[1], errors=[0.04], differences=[], failed=1, baselines_failed=2)
    decision = decide([fragile, LARGE_SP], TEACHER, Constraints(1.0))
    assert (decision.met, decision.chosen) == (True, LARGE_SP)
    assert decision.sentences[-1] == ("small, sp would do, but 1 of 2 seeds failed: it is not counted as good enough.")
    alone = decide([fragile], TEACHER, Constraints(1.0), ["small, the student alone"])
    assert (alone.met, alone.chosen) == (False, fragile)
    assert alone.sentences[0].endswith("1 ms: 1 of 2 seeds failed.")
    assert alone.sentences[1:] == [
        "The student alone failed with 2 of 2 seeds: there is no seed to compare by.",
        "small, the student alone has no part in this: all its seeds failed.",
    ]


def test_a_baseline_with_seeds_that_failed():
    one = LARGE_SP._replace(differences=[-0.01], baselines_failed=1)
    assert decide([one], TEACHER, Constraints(1.0)).sentences[1:] == [
        "sp had fewer errors than the same-seed baseline of large with the one seed: -1.00 points in the median "
        "(sign test: p = 1, the least that 1 can give).",
        "The student alone failed with 1 of 2 seeds.",
    ]


def measured(error):
    summary = {"validation_error": error, "parameters": 100, "multiply_adds": 1000}
    return summary, {"bytes": 500, "latency": {"batches": {"1": {"median_ms": 1.0}}}}


def test_failed_seeds_are_counted(tmp_path):
    from spkd_keras.frontier.students import _candidate

    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    widths = ["student.width={choice: [0.25, 0.5]}"]
    _, (student, other) = load_students(tmp_path / "tiny.yaml", widths, ["student", "sp"], [0, 1])
    found = {(student.name, "sp", 1): measured(0.05), (other.name, "student", 0): measured(0.07)}
    sp = _candidate(student, "sp", found)
    assert (sp.seeds, sp.failed, sp.baselines_failed, sp.differences) == ([1], 1, 2, [])
    assert _candidate(student, "student", found) is None
    alone = _candidate(other, "student", found)
    assert (alone.seeds, alone.failed, alone.baselines_failed) == ([0], 1, 0)


def test_a_latency_is_measured_again_elsewhere(tmp_path, monkeypatch):
    """What an export weighs is the same on any machine; how long it takes is not."""
    from spkd_keras.frontier import students

    folder = tmp_path / "frontier"
    folder.mkdir()
    (tmp_path / "student.keras").write_bytes(b"weights")
    (folder / "student.tflite").write_bytes(b"export")
    digest = hashlib.sha256(b"weights").hexdigest()
    record = folder / "litert.json"
    record.write_text(json.dumps({"student": digest, "bytes": 6, "latency": "of another version of ours"}))
    times, splits = iter(range(10)), SimpleNamespace(validation="held out")
    monkeypatch.setattr(students, "some", lambda images, count: (images, None))
    monkeypatch.setattr(students, "load_runner", lambda path: path)
    monkeypatch.setattr(students, "measure", lambda runner, pixels: {"file": runner.name, "time": next(times)})

    def measured_here():
        found = students._measured(SimpleNamespace(folder=tmp_path), splits, "litert", nullcontext)
        assert found == json.loads(record.read_text())
        assert (found["bytes"], found["latency"]["file"]) == (6, "student.tflite")
        return found["latency"]["time"]

    assert [measured_here(), measured_here()] == [0, 0]
    for module, name, value in [
        (students.platform, "node", lambda: "another"),
        (students, "machine", lambda: "a faster one"),
        (students.os, "sched_getaffinity", lambda _: range(99)),
        (students.metadata, "version", lambda name: f"{name} 9"),
    ]:
        before = measured_here()
        monkeypatch.setattr(module, name, value)
        assert [measured_here(), measured_here()] == [before + 1, before + 1], name


@pytest.fixture
def two_students(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    depths = [f"teacher={{path: '{untrained_teacher(tmp_path)}'}}", "student.depth={choice: [10, 12]}"]
    return load_students(tmp_path / "tiny.yaml", depths, ["student", "sp"], [0])


def test_a_student_that_cannot_be_is_named_before_any_is_trained(two_students, tmp_path):
    with pytest.raises(ExperimentError, match=r"^depth-12: student: .*6n \+ 4"):
        students.train_students(*two_students, tmp_path / "runs")
    assert not list((tmp_path / "runs").rglob("student.keras"))


@pytest.mark.parametrize(("beside", "known"), [(None, False), ("other", False), ("these", True)])
def test_whether_the_teacher_saw_the_held_out_images(two_students, tmp_path, beside, known):
    if beside:
        (tmp_path / "environment.json").write_text(json.dumps({"data_digest": beside}), encoding="utf-8")
    assert students._was_held_out(two_students[0].teacher, "these") == known
    assert students._was_held_out(two_students[0].teacher.model_copy(update={"path": None}), "these")


def test_a_format_whose_packages_are_missing_is_told_before_any_training(two_students, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(ExperimentError, match=r"tf2onnx is not installed.*pip install '.\[export\]'"):
        students.train_students(*two_students, tmp_path / "runs", format="onnx")
    assert not (tmp_path / "runs").exists()


def test_runs_and_exports_that_fail_are_told_and_the_rest_is_measured(two_students, tmp_path, monkeypatch):
    def fails(experiment, out, observer, jobs):
        assert experiment.teacher.path == str(tmp_path / "teacher.keras")
        raise RunsFailedError(Path(out), {"sp-seed0": "NaN"})

    monkeypatch.setattr(students, "run_experiment", fails)
    checked = []
    finished = SimpleNamespace(summary={}, check_data=checked.append)
    monkeypatch.setattr(students, "FinishedRun", lambda run: finished)
    student = two_students[1][0]
    failures = students._run(student, tmp_path, tmp_path, Observer(), 1)
    assert failures == {"depth-10 sp-seed0": "NaN"}
    rest = [student], tmp_path, lambda run: {"bytes": 1}, Observer(), Interruption(), failures, "digest of now"
    assert students._measure_all(*rest) == {("depth-10", "student", 0): ({}, {"bytes": 1})}
    assert checked == ["digest of now"], "of the one that did not fail"

    def broken(error):
        def measure(run):
            raise error

        return measure

    told = students._measure_all([student], tmp_path, broken(ValueError("It is\nanother")), *rest[3:])
    assert (told, failures["depth-10 student-seed0"]) == ({}, "ValueError: It is another")
    failures.clear()
    with pytest.raises(ExperimentError, match="damaged"):  # what the next one would meet too
        students._measure_all([student], tmp_path, broken(ExperimentError("It is damaged.")), *rest[3:])
