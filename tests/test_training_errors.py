"""What a run refuses, before any training, and what a failing one leaves alone."""

import json

import keras
import pytest
import tensorflow as tf
from tiny_experiment import Listener, content, tiny

from spkd_keras import data, models, storage
from spkd_keras.experiment import ExperimentError, Network, load_experiment
from spkd_keras.storage import StorageError
from spkd_keras.training import RunsFailedError, build, run_experiment
from spkd_keras.training.folder import RunFolder

ONLY_STUDENT = ("teacher=", "methods={student: []}", "data.validation=0", "schedule.epochs=1")


class Impatient(Listener):
    """Does not let any training begin."""

    def started(self, run, epochs):
        pytest.fail(f"{run} began to train")


def refusal(experiment, out):
    """What is said of an experiment that cannot be run."""
    with pytest.raises(ExperimentError) as caught:
        run_experiment(experiment, out, Impatient())
    assert "\n" not in str(caught.value)
    assert not (out / experiment.name).is_dir() or list((out / experiment.name).iterdir())  # no empty folder is left
    return str(caught.value)


def saved(folder, *layers, shape=(8, 8, 1)):
    """The file of a small network made of these layers."""
    path = folder / "network.keras"
    keras.Sequential([keras.Input(shape), *layers]).save(path)
    return f"teacher={{path: '{path}'}}"


def classifier(classes=10, activation=None):
    return keras.layers.Flatten(), keras.layers.Dense(classes, activation=activation, name="last")


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished experiment of one run."""
    folder = tmp_path_factory.mktemp("finished")
    return run_experiment(tiny(folder, *ONLY_STUDENT), folder / "runs")


@pytest.mark.parametrize(
    ("overrides", "fields"),
    [
        (["data.batch_size=16"], "data.batch_size: 32 -> 16"),
        (
            ["student.width=0.5", "schedule.learning_rate=0.1"],
            "student.width: 0.25 -> 0.5; schedule.learning_rate: 0.05 -> 0.1",
        ),
        # More epochs are another schedule, not more of the same.
        (["schedule.epochs=2"], "schedule.epochs: 1 -> 2"),
        (["schedule.drops={}"], "schedule.drops.1: 0.2 -> None; schedule.drops: None -> {}"),
    ],
)
def test_another_experiment_of_the_same_name(finished, tmp_path, overrides, fields):
    before = content(finished)
    said = refusal(tiny(tmp_path, *ONLY_STUDENT, *overrides), finished.parent)
    assert said.startswith(f"{finished / 'student-seed0'} holds a run of another experiment ({fields}). ")
    assert "Nothing was changed." in said
    assert "--out" in said
    assert content(finished) == before


def test_a_new_run_beside_one_of_another_experiment(finished, tmp_path):
    before = content(finished)
    experiment = tiny(tmp_path, *ONLY_STUDENT, "data.batch_size=16", "seeds=[0, 1]")
    assert "data.batch_size: 32 -> 16" in refusal(experiment, finished.parent)
    assert content(finished) == before


def test_a_folder_that_is_no_run(tmp_path):
    folder = tmp_path / "runs" / "tiny" / "student-seed0"
    folder.mkdir(parents=True)
    (folder / "holiday.jpg").write_bytes(b"beach")
    said = refusal(tiny(tmp_path, *ONLY_STUDENT), tmp_path / "runs")
    assert said == (
        f"{folder} exists and is not a run's folder (it has no experiment.yaml). Choose another folder with --out."
    )
    assert [path.name for path in folder.iterdir()] == ["holiday.jpg"]


def test_a_file_where_a_run_goes(tmp_path):
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "student-seed0").write_text("notes")
    assert "is not a run's folder" in refusal(tiny(tmp_path, *ONLY_STUDENT), tmp_path / "runs")


@pytest.mark.parametrize("left", [[], [".partial-experiment.yaml"], [".lock"]])
def test_what_a_kill_at_the_very_start_leaves_is_no_obstacle(tmp_path, left):
    experiment = tiny(tmp_path, *ONLY_STUDENT)
    folder = RunFolder(tmp_path, experiment)
    folder.path.mkdir()
    for name in left:
        (folder.path / name).write_text("name: ti")
    folder.check_owner()
    folder.create()
    assert {file.name for file in folder.path.iterdir()} - {".lock"} == {"backup", "experiment.yaml"}
    assert load_experiment(folder.path / "experiment.yaml") == experiment


def test_a_damaged_record(tmp_path):
    folder = tmp_path / "runs" / "tiny" / "student-seed0"
    folder.mkdir(parents=True)
    (folder / "experiment.yaml").write_text("data: [")
    assert "experiment.yaml is not valid YAML" in refusal(tiny(tmp_path, *ONLY_STUDENT), tmp_path / "runs")


@pytest.mark.parametrize("place", ["runs", "runs/tiny"])
def test_a_file_where_the_output_goes(tmp_path, place):
    file = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    file.write_text("in the way")
    said = refusal(tiny(tmp_path, *ONLY_STUDENT), tmp_path / "runs")
    assert said.startswith(f"The output folder cannot be written to: {tmp_path / 'runs' / 'tiny'} (")
    assert said.endswith("Choose another with --out.")
    assert file.read_text() == "in the way"


def test_a_disk_that_is_full_at_the_very_start_is_no_obstacle(tmp_path, monkeypatch):
    experiment = tiny(tmp_path, *ONLY_STUDENT)
    run = RunFolder(tmp_path, experiment)

    def full(path):
        raise OSError(28, "No space left on device")

    with run.locked(), monkeypatch.context() as patch:
        patch.setattr(storage, "bring_to_disk", full)
        with pytest.raises(StorageError, match="then give the same command again"):
            run.create()
    run.check_owner()
    run.create()
    assert {file.name for file in run.path.iterdir()} == {"backup", "experiment.yaml"}


# --- what cannot be built --------------------------------------------------------------------------------------------

WRONG = [
    ("data.name=digit", "data: TFDS has no data set 'digit'. Did you mean digits or"),
    ("data.train_fraction=0.001", "data: `train_fraction` must leave an image of each of the 10 classes"),
    ("student.depth=15", "student: `depth` must be 6n + 4, for example 16 or 40. Received: depth=15."),
    ("teacher.depth=15", "teacher: `depth` must be 6n + 4, for example 16 or 40. Received: depth=15."),
    ("student.width=wide", "student: "),
    ("student.wdth=1", "student: unknown key `wdth`. Did you mean `width`? Valid: depth, width,"),
    ("student.model=wide_resne", "student.model: unknown network `wide_resne`. Did you mean `wide_resnet`? Valid: "),
    ("teacher.model=resnext", "teacher.model: unknown network `resnext`. "),
    (
        "student.num_classes=12",
        "student: `num_classes` must be 10, the number of classes of the data. Received: 12. Leave it out.",
    ),
    (
        "student.image_shape=[8, 8, 3]",
        "student: 'wide_resnet_10_0.25' takes images of shape (8, 8, 3). Received: (8, 8, 1)",
    ),
    (
        "methods.sp.terms.0.loss=similarity",
        "methods.sp.terms.0.loss: unknown loss `similarity`. Did you mean `similarity",
    ),
    (
        "methods.kd.terms.0.temprature=3",
        "methods.kd.terms.0: unknown key `temprature`. Did you mean `temperature`? Valid:",
    ),
    ("methods.kd.terms.0.wieght=3", "methods.kd.terms.0: unknown key `wieght`. Did you mean `weight`? Valid:"),
    ("teacher.shedule={epochs: 1}", "teacher: unknown key `shedule`. Did you mean `schedule`? Valid: depth, width,"),
    ("methods.kd.terms.0.temperature=-1", "methods.kd.terms.0: `temperature` must be "),
    ("methods.kd.terms.0.temperature=hot", "methods.kd.terms.0: "),
    (
        "methods.sp.terms.0.teacher=stage4",
        "methods.sp: The teacher 'wide_resnet_10_0.5' has no layer 'stage4'. Did you mean stage3",
    ),
    (
        "methods.sp.terms.0.student=staeg1",
        "methods.sp: The student 'wide_resnet_10_0.25' has no layer 'staeg1'. Did you mean stage1",
    ),
    ("methods.sp={student_loss_weight: 0, terms: []}", "methods.sp: There is nothing to train on"),
    # Names that the history uses for something else.
    ("methods.sp.terms.0.name=loss", "methods.sp: `name` of a Term must be"),
    ("methods.sp.terms.0.name=epoch", "methods.sp"),
    ("methods.sp.terms.0.name=accuracy", "methods.sp"),
    ("methods.sp.terms.0.name=learning_rate", "methods.sp"),
    ("methods.sp.terms.0.name=val_accuracy", "methods.sp: `name` of a Term must not begin with val_, which stands"),
    ("teacher={path: nowhere.keras}", "teacher.path: the file does not exist: nowhere.keras. "),
]


@pytest.mark.parametrize(("override", "said"), WRONG, ids=[override for override, _ in WRONG])
def test_what_cannot_be_built_is_refused_before_any_training(tmp_path, override, said):
    assert refusal(tiny(tmp_path, override), tmp_path / "runs").startswith(said)
    assert not list((tmp_path / "runs").rglob("*.*"))


@pytest.mark.parametrize("name", ["network.keras", "network.h5", "network.txt"])
def test_a_file_that_is_no_network(tmp_path, name):
    (tmp_path / name).write_text("no network")
    said = refusal(tiny(tmp_path, f"teacher={{path: '{tmp_path / name}'}}"), tmp_path / "runs")
    assert said.startswith(f"teacher.path: {tmp_path / name} is not a .keras file. ")


def test_a_teacher_that_gives_probabilities(tmp_path):
    experiment = tiny(tmp_path, saved(tmp_path, *classifier(activation="softmax")))
    said = refusal(experiment.select(["kd"]), tmp_path / "runs")
    assert said.startswith("methods.kd: The term 'soft_targets' compares logits. Received: a teacher ")
    assert "ends in a softmax" in said


def test_a_teacher_with_other_classes(tmp_path):
    experiment = tiny(tmp_path, saved(tmp_path, *classifier(classes=12)))
    said = refusal(experiment.select(["kd"]), tmp_path / "runs")
    assert said.startswith("methods.kd: The term 'soft_targets' compares logits, so teacher and student must have the")
    assert "Received: 12 for " in said


@pytest.mark.parametrize("shape", [(8, 8, 3), (16, 16, 1), (None, None, 3), (64,)])
def test_a_teacher_of_other_images(tmp_path, shape):
    pooling = keras.layers.GlobalAveragePooling2D() if len(shape) == 3 else keras.layers.Flatten()
    experiment = tiny(tmp_path, saved(tmp_path, pooling, keras.layers.Dense(10), shape=shape))
    said = refusal(experiment.select(["sp"]), tmp_path / "runs")
    assert said.startswith("teacher: ")
    assert f"takes images of shape {shape}. Received: (8, 8, 1)." in said


@pytest.mark.parametrize(
    ("outputs", "shapes"),
    [
        (lambda maps, logits: [logits, maps], "(10,) and (6, 6, 2)"),
        (lambda maps, logits: maps, "(6, 6, 2)"),
    ],
)
def test_a_teacher_that_gives_no_vector_of_logits(tmp_path, outputs, shapes):
    image = keras.Input((8, 8, 1))
    maps = keras.layers.Conv2D(2, 3)(image)
    logits = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(maps))
    path = tmp_path / "network.keras"
    network = keras.Model(image, outputs(maps, logits), name="several")
    network.save(path)
    with pytest.raises(ExperimentError) as caught:
        build.build_network(Network(path=str(path)), data.digits()[1], "teacher")
    assert str(caught.value) == (
        "teacher: a classifier takes one image to one vector of logits. Received: 'several' from (8, 8, 1) to "
        f"{shapes}. Save a network that ends in the logits alone."
    )


# What is compared is not the logits, so probabilities and other classes do no harm.
@pytest.mark.parametrize("last", [{"activation": "softmax"}, {"classes": 12}])
def test_a_teacher_whose_logits_nobody_compares(tmp_path, last):
    experiment = tiny(tmp_path, saved(tmp_path, keras.layers.Conv2D(2, 3), *classifier(**last))).select(["sp"])
    with pytest.raises(pytest.fail.Exception, match="sp-seed0 began to train"):
        run_experiment(experiment, tmp_path / "runs", Impatient())


# --- what fails ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_loss_that_is_not_finite(tmp_path):
    path = tmp_path / "teacher.keras"
    models.wide_resnet(10, 0.5, image_shape=(8, 8, 1)).save(path)
    # So large a weight that float32 overflows within the first epoch.
    experiment = tiny(
        tmp_path,
        f"teacher={{path: '{path}'}}",
        "methods={student: [], sp: [{loss: similarity_preserving, weight: 1.0e+35}]}",
        "data.validation=0",
        "schedule.epochs=1",
    )
    listener = Listener()
    with pytest.raises(RunsFailedError, match=r"The loss is not finite in epoch 1, batch 1: .*Lower the learning rate"):
        run_experiment(experiment, tmp_path / "runs", listener)
    assert listener.of("completed") == ["student-seed0"]
    root = tmp_path / "runs" / "tiny"
    assert (root / "student-seed0" / "summary.json").exists()
    left = {file.name for file in (root / "sp-seed0").iterdir()}
    assert left == {"experiment.yaml", "environment.json", "failure.json", "backup"}
    found = json.loads((root / "sp-seed0" / "failure.json").read_text())
    assert (found["epoch"], found["batch"], found["not_finite"]) == (1, 1, ["gradient"])
    # The images of the batch, by hand: the first of the order that the seed and the epoch give.
    images = len(data.load("digits", validation=0, train_fraction=0.1).train)
    order = tf.random.experimental.stateless_shuffle(tf.range(images), seed=[0, 0]).numpy()
    assert found["images"] == order[:32].tolist()
