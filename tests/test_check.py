"""What `spkd check` finds: each defect of an experiment, on real digits, and nothing where all is well."""

import json
import os
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny_experiment import TINY, Listener, tiny
from typer.testing import CliRunner

from spkd_keras import cli, data, models
from spkd_keras.cli.check import _plain
from spkd_keras.experiment import ExperimentError
from spkd_keras.observer import Observer
from spkd_keras.training import Check, build, check_experiment, findings, run_experiment
from spkd_keras.training import check as check_module
from spkd_keras.training.check_methods import PartRow, check_method
from spkd_keras.training.check_teacher import check_teacher

CLASSES = [str(digit) for digit in range(10)]


def saved(network, folder):
    path = folder / "teacher.keras"
    network.save(path)
    return f"teacher={{path: '{path}'}}"


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", validation=0.1)


@pytest.fixture(scope="module")
def teacher(digits):
    """A quick and good one: a dense layer is right on nearly all digits."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Rescaling(1 / 127.5, -1.0, name="preprocessing")(image)
    x = keras.layers.Conv2D(8, 3, activation="relu", name="stage1")(x)
    x = keras.layers.Flatten(name="flat")(x)
    network = keras.Model(image, keras.layers.Dense(10, name="logits")(x))
    network.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    network.fit(digits.train.pixels, digits.train.labels, epochs=15, verbose=0)
    return network


def shown(digits, count=256):
    return digits.train.pixels[:count], digits.train.labels[:count], CLASSES


def texts(found, severity=None):
    return [str(finding) for finding in found if severity in (None, finding.severity)]


# --- the teacher -----------------------------------------------------------------------------------------------------


def test_a_good_teacher(teacher, digits):
    pixels, labels, names = shown(digits)
    facts, found = check_teacher(teacher, pixels, labels, names)
    predicted = np.asarray(teacher(pixels)).argmax(axis=1)
    assert facts == {"images": 256, "accuracy": pytest.approx(np.mean(predicted == labels)), "outputs": "logits"}
    assert facts["accuracy"] > 0.95
    assert found == []


def test_a_random_teacher(digits):
    (found,) = check_teacher(models.wide_resnet(10, 0.5, image_shape=(8, 8, 1)), *shown(digits))[1]
    assert found.severity == "stop"
    assert "% of guessing" in found.found


def test_a_softmax_teacher(teacher, digits):
    probabilities = keras.Model(teacher.input, keras.layers.Softmax()(teacher.output))
    facts, (found,) = check_teacher(probabilities, *shown(digits))
    assert facts["outputs"] == "probabilities"
    assert (found.severity, found.found) == ("warning", "it gives probabilities, not logits.")


@pytest.mark.parametrize(
    ("scale", "offset", "named"), [(255.0, 0.0, "x / 255"), (127.5, 127.5, "x / 127.5 - 1")], ids=["0 to 1", "-1 to 1"]
)
def test_a_teacher_with_other_preprocessing(teacher, digits, scale, offset, named):
    image = keras.Input((8, 8, 1))
    network = keras.Model(image, teacher(keras.layers.Rescaling(scale, offset)(image)))
    found = check_teacher(network, *shown(digits))[1]
    (about_pixels,) = [finding for finding in found if "it wants other pixels" in finding.found]
    assert named in about_pixels.found
    assert "Rescaling" in about_pixels.advice


def test_a_teacher_that_wants_blue_first():
    pixels = np.random.default_rng(0).integers(0, 256, (200, 4, 4, 3), "uint8")
    image = keras.Input((4, 4, 3))
    dense = keras.layers.Dense(2, use_bias=False)
    network = keras.Model(image, dense(keras.layers.GlobalAveragePooling2D()(image)))
    dense.kernel.assign([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]])  # the first class is that of blue
    labels = pixels.mean(axis=(1, 2))[:, [0, 2]].argmax(axis=1)  # and here that of red
    _, found = check_teacher(network, pixels, labels, ["r", "b"])
    assert any("BGR in the place of RGB" in text for text in texts(found))


def test_swapped_labels(teacher, digits):
    pixels, labels, names = shown(digits)
    swapped = np.array([0, 1, 2, 8, 4, 5, 6, 7, 3, 9])[labels]
    (found,) = check_teacher(teacher, pixels, swapped, names)[1]
    assert found.severity == "warning"
    assert "'3' as '8', '8' as '3'" in found.found
    # All of them in another order: it is stopped too, and the reason is told first or second.
    found = check_teacher(teacher, pixels, (labels + 1) % 10, names)[1]
    assert {finding.severity for finding in found} == {"stop", "warning"}


def test_too_few_images_to_tell(teacher, digits):
    pixels, labels, _ = shown(digits)
    two = np.flatnonzero(labels < 2)[:8]
    network = keras.Model(teacher.input, teacher.output[:, :2])
    facts, (found,) = check_teacher(network, pixels[two], labels[two], ["0", "1"])
    assert (facts["accuracy"], found.severity) == (1, "note")


def test_a_teacher_that_always_says_the_most_frequent_class(digits):
    image = keras.Input((8, 8, 1))
    x = keras.layers.Dense(2, bias_initializer=keras.initializers.Constant([0.0, 9.0]))(keras.layers.Flatten()(image))
    constant = keras.Model(image, x)
    constant.layers[-1].kernel.assign(np.zeros((64, 2)))
    pixels = digits.train.pixels[:200]
    (found,) = check_teacher(constant, pixels, (np.arange(200) % 5 > 0).astype(int), ["no", "yes"])[1]
    assert found.severity == "stop"


def test_a_teacher_of_other_classes(digits):
    network = models.wide_resnet(10, 0.5, image_shape=(8, 8, 1), num_classes=7)
    facts, (found,) = check_teacher(network, *shown(digits))
    assert (facts["accuracy"], found.severity) == (None, "note")


def test_a_teacher_that_is_broken(teacher, digits):
    broken = keras.models.clone_model(teacher)
    broken.set_weights([weight * np.nan for weight in teacher.get_weights()])
    assert [finding.severity for finding in check_teacher(broken, *shown(digits))[1]] == ["stop"]


# --- the methods -----------------------------------------------------------------------------------------------------


def method_of(experiment, teacher, digits, name="sp"):
    student = build.build_network(experiment.student, digits.train, "student")
    distiller = build.build_distiller(teacher, student, experiment, name)
    size = experiment.data.batch_size
    batches = [(digits.train.pixels[i : i + size], digits.train.labels[i : i + size]) for i in (0, size)]
    return check_method(distiller, batches, f"methods.{name}", trained=True)


def test_parts_add_up(teacher, digits, tmp_path):
    rows, found = method_of(tiny(tmp_path), teacher, digits)
    assert found == []
    labels, term = rows
    assert [labels.name, term.name] == ["student_loss", "similarity_preserving"]
    assert (labels.weight, labels.pairs, term.weight, term.pairs) == (1, 0, 100, 32 * 31 // 2)
    assert labels.share + term.share == pytest.approx(1)
    assert term.share == pytest.approx(100 * term.value / (labels.value + 100 * term.value))
    assert labels.gradient_norm > 0
    assert term.gradient_norm > 0


def test_gamma_a_thousand_times_too_large(teacher, digits, tmp_path):
    experiment = tiny(tmp_path, "methods.sp.terms.0.weight=1.0e+5")
    found = method_of(experiment, teacher, digits)[1]
    assert any("It drowns them. Lower its weight." in text for text in texts(found, "warning"))
    assert any("0.64 to 3200 is usual" in text for text in texts(found, "warning"))


def test_gamma_too_small(teacher, digits, tmp_path):
    found = method_of(tiny(tmp_path, "methods.sp.terms.0.weight=0.01"), teacher, digits)[1]
    assert any("It does next to nothing." in text for text in texts(found, "warning"))


def test_a_batch_of_two(teacher, digits, tmp_path):
    rows, found = method_of(tiny(tmp_path, "data.batch_size=2", "methods.sp.terms.0.weight=5"), teacher, digits)
    assert rows[1].pairs == 1
    assert any("a batch of 2 images has 1 pairs to compare" in text for text in texts(found, "warning"))


def test_dead_rows(teacher, digits, tmp_path):
    dead = keras.models.clone_model(teacher)
    dead.set_weights(teacher.get_weights())
    dead.get_layer("stage1").bias.assign(np.full(8, -1e3))  # nothing passes the ReLU
    found = method_of(tiny(tmp_path), dead, digits)[1]
    assert any("64 of 64 images have no activation at all at the teacher's tap" in text for text in texts(found))


def test_a_loss_that_is_not_finite(teacher, digits, tmp_path):
    found = method_of(tiny(tmp_path, "methods.sp.terms.0.weight=1.0e+35"), teacher, digits)[1]
    assert any("not finite on the first batches: similarity_preserving" in text for text in texts(found, "stop"))


# --- the whole -------------------------------------------------------------------------------------------------------


@pytest.fixture
def experiment(teacher, tmp_path):
    return tiny(tmp_path, saved(teacher, tmp_path), "data.train_fraction=1.0")


@pytest.mark.slow
def test_all_is_well(experiment, tmp_path):
    check = check_experiment(experiment, out=tmp_path)
    assert check.findings == []
    assert check.teacher["accuracy"] > 0.95
    assert list(check.parts) == list(check.costs) == ["student", "kd", "sp"]
    assert check.taps["sp"] == {"similarity_preserving": {"teacher": ["stage1"], "student": ["stage3"]}}
    assert check.runs == {"student": 1, "kd": 1, "sp": 1}
    assert check.seconds == pytest.approx(sum(cost.seconds for cost in check.costs.values()))
    student = models.wide_resnet(10, 0.25, image_shape=(8, 8, 1)).count_params() * 4
    assert check.disk > 3 * 2 * student
    assert check.peak_memory > 1e8
    assert list(tmp_path.rglob("*")) == [tmp_path / "teacher.keras", tmp_path / "tiny.yaml"]


@pytest.mark.slow
def test_no_room_on_the_disk(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1000))
    check = check_experiment(experiment, runs={"student": 1}, out=tmp_path / "not" / "there")
    assert texts(check.findings, "stop")[0].startswith("disk: ")


def test_a_method_that_cannot_be_built(experiment):
    broken = experiment.model_dump()
    broken["methods"]["sp"]["terms"][0]["student"] = "stage9"
    check = check_experiment(type(experiment).model_validate(broken), runs={"sp": 1, "student": 1}, cost=False)
    assert texts(check.findings, "stop")[0].startswith("methods.sp: ")
    assert "stage9" in str(check.findings[0])
    assert list(check.parts) == ["student"]


@pytest.mark.slow
def test_a_teacher_that_is_not_trained_yet(tmp_path):
    check = check_experiment(tiny(tmp_path, "methods.sp.terms.0.weight=1.0e+5"), runs={"sp": 1})
    assert check.teacher is None
    assert check.parts == {}  # its values would say nothing
    assert set(check.costs) == {"sp", "teacher"}
    assert [finding.found.split(" is ")[0] for finding in check.findings] == [
        "drops at 1 never happen in 1 epoch.",  # the teacher's own
        "the weight of similarity_preserving",
    ]


def test_what_is_left_is_counted(tmp_path):
    experiment = tiny(tmp_path, "seeds=[0, 1]", "teacher=", "methods={student: []}")
    run = tmp_path / "runs" / "tiny" / "student-seed1"
    run.mkdir(parents=True)
    (run / "experiment.yaml").write_text(experiment.single("student", 1).to_yaml(), encoding="utf-8")
    for left in (2, 1):
        assert check_experiment(experiment, out=tmp_path / "runs", cost=False).runs == {"student": left}
        (run / "summary.json").write_text("{}", encoding="utf-8")


@pytest.mark.parametrize("kind", ["a file", "not writable"])
def test_a_folder_that_cannot_have_the_cache(kind, teacher, tmp_path, monkeypatch):
    place = tmp_path / "place"
    place.touch() if kind == "a file" else place.mkdir()
    monkeypatch.setattr(os, "access", lambda path, _: path != place)  # root may write anywhere
    cached = saved(teacher, tmp_path).replace("}", f", cache: {{path: '{place}/cache'}}}}")
    experiment = tiny(tmp_path, cached).select(["sp"])
    check = check_experiment(experiment, out=tmp_path / "runs", cost=False)
    found = f"teacher.cache: its folder cannot be written to: {place}/cache ({place} is {kind})."
    assert texts(check.findings, "stop")[0] == f"{found} Give another `teacher.cache.path`."
    if kind == "a file":
        with pytest.raises(ExperimentError, match=r"^teacher.cache: its folder cannot be written to: .*/place \("):
            run_experiment(experiment, tmp_path / "runs")


def test_a_batch_that_does_not_fit_is_told_and_the_others_are_tried(experiment, monkeypatch):
    tried = check_module.check_method

    def check_method(distiller, batches, place, trained):
        if place == "methods.sp":
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return tried(distiller, batches, place, trained)

    monkeypatch.setattr(check_module, "check_method", check_method)
    for replicas, severity in ((1, "stop"), (2, "warning")):
        check = check_experiment(experiment, cost=False, replicas=replicas)
        (found,) = texts(check.findings, severity)
        assert found.startswith("methods.sp: a batch of 32 does not fit into the memory of one device")
        assert list(check.parts) == ["student", "kd"]


def test_what_two_checks_find_is_told_once_and_what_was_done(teacher, digits, tmp_path):
    class Told(Observer):
        def __init__(self):
            self.findings = []

        def checked(self, findings, seconds):
            self.findings += findings

    experiment = tiny(tmp_path, saved(teacher, tmp_path), "methods.sp.terms.0.weight=1.0e+35").select(["sp"])
    first, second, options = Told(), Told(), {"cost": False, "out": tmp_path / "runs"}
    found = check_module.check_before_running(experiment, digits, first, True, **options)
    message = r"No student was run. The teacher is trained: runs/teacher-seed0. To train"
    options |= {"told": found, "trained": Path("runs/teacher-seed0")}
    with pytest.raises(ExperimentError, match=message):
        check_module.check_before_running(experiment, digits, second, False, **options)
    assert found
    assert (len(first.findings), second.findings) == (len(found), [])


def test_the_worst_comes_first():
    found = [findings.Finding(kind, kind, "") for kind in ("note", "warning", "stop", "warning")]
    assert [finding.severity for finding in findings.worst_first(found)] == ["stop", "warning", "warning", "note"]


@pytest.mark.slow
def test_a_run_refuses_what_cannot_work_unless_forced(tmp_path):
    random = models.wide_resnet(10, 0.5, image_shape=(8, 8, 1))
    experiment = tiny(tmp_path, saved(random, tmp_path), "schedule.epochs=1").select(["sp"])
    with pytest.raises(ExperimentError, match=r"near the .*% of guessing[\s\S]*--force"):
        run_experiment(experiment, tmp_path / "runs", check=True)
    assert not list((tmp_path / "runs").rglob("*.*"))
    listener = Listener()
    root = run_experiment(experiment, tmp_path / "runs", listener, check=True, force=True)
    assert (root / "sp-seed0" / "summary.json").exists()


@pytest.mark.slow
def test_a_run_is_tried_before_its_teacher_is_trained(tmp_path):
    experiment, listener = tiny(tmp_path, "methods.sp.terms.0.weight=1.0e+35").select(["sp"]), Listener()
    with pytest.raises(ExperimentError, match="not finite on the first batches: similarity_preserving"):
        run_experiment(experiment, tmp_path / "runs", listener, check=True)
    assert listener.of("started") == []


@pytest.mark.slow
def test_a_check_changes_no_result(experiment, tmp_path):
    short = experiment.model_copy(update={"seeds": [3]})
    roots = [run_experiment(short.select(["sp"]), tmp_path / str(check), check=check) for check in (False, True)]
    one, other = (keras.saving.load_model(root / "sp-seed3" / "student.keras").get_weights() for root in roots)
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left, right)


def test_what_is_not_finite_is_null_in_json():
    check = Check(parts={"sp": [PartRow("similarity_preserving", float("nan"), 3.0, float("nan"), float("inf"), 6)]})
    (row,) = json.loads(json.dumps(_plain(check)), parse_constant=pytest.fail)["parts"]["sp"]
    assert (row["value"], row["weight"], row["share"], row["gradient_norm"]) == (None, 3.0, None, None)


@pytest.mark.slow
def test_the_command(teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    options = ["check", "tiny.yaml", "--methods", "sp", "--set", saved(teacher, tmp_path)]
    done = CliRunner().invoke(cli.app, options)
    assert done.exit_code == 0, done.output
    for part in ("Nothing wrong was found.", "similarity_preserving", "ms a step", "GiB of memory", "teacher's stage1"):
        assert part in done.output
    done = CliRunner().invoke(cli.app, [*options, "--json"])
    answer = json.loads(done.stdout)
    assert answer["teacher"]["accuracy"] > 0.9
    assert {"seconds", "disk", "peak_memory", "findings", "parts"} <= set(answer)
    random = models.wide_resnet(10, 0.5, image_shape=(8, 8, 1))
    done = CliRunner().invoke(cli.app, [*options[:-1], saved(random, tmp_path)])
    assert done.exit_code == 2
    assert done.output.startswith("stop: teacher: it is right on ")
