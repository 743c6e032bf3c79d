"""Experiments as data: what a file becomes, what overrides do to it, and what its schedule is."""

import pathlib

import pydantic
import pytest

from spkd_keras.experiment import (
    Data,
    ExperimentError,
    Method,
    Network,
    Schedule,
    Teacher,
    TermSpec,
    differences,
    load_experiment,
    load_search,
    load_students,
)

SHIPPED = sorted((pathlib.Path(__file__).parent.parent / "experiments").glob("*.yaml"))
# In these something varies.
LOADERS = {
    "digits-search": load_search,
    "digits-frontier": load_students,
    **dict.fromkeys(
        ("cifar10-search", "cifar10-shufflenet_v2-search", "dtd-search", "fashion_mnist-search"),
        lambda file: load_search(file, methods=["sp"]),
    ),
}

# The complete example of the design; the teacher has epochs of its own here, so that they can be told apart.
COMPLETE = """
name: digits
data: {name: digits, batch_size: 64, augmentation: none, validation: 0.1, train_fraction: 1.0}
teacher: {model: wide_resnet, depth: 16, width: 2, schedule: {epochs: 40}}
student: {model: wide_resnet, depth: 16, width: 1}
schedule: {epochs: 30, optimizer: sgd, learning_rate: 0.1, momentum: 0.9, nesterov: true, weight_decay: 5.0e-4,
           drops: {0.3: 0.2, 0.6: 0.2, 0.8: 0.2}}
methods:
  student: []
  kd: {student_loss_weight: 0.1, terms: [{loss: soft_targets, temperature: 4.0, weight: 0.9}]}
  sp: [{loss: similarity_preserving, weight: 3000.0}]
seeds: [0, 1, 2]
"""
TEXT_WITH_PUBLISHED = COMPLETE + "published: {source: a paper, test_error: {sp: 7.52, teacher: 6.07}}\n"
SHORTEST = "data: {name: digits}\nstudent: {model: wide_resnet}\nmethods: {student: []}\n"


def test_the_complete_example(load):
    experiment = load(COMPLETE)
    assert experiment.name == "digits"
    assert experiment.data == Data(
        name="digits", batch_size=64, augmentation="none", validation=0.1, train_fraction=1.0
    )
    assert experiment.teacher == Teacher(model="wide_resnet", depth=16, width=2, schedule={"epochs": 40})
    assert experiment.teacher.arguments == {"depth": 16, "width": 2}
    assert experiment.student == Network(model="wide_resnet", depth=16, width=1)
    drops = {0.3: 0.2, 0.6: 0.2, 0.8: 0.2}
    assert experiment.schedule == Schedule(
        epochs=30, learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, drops=drops
    )
    soft_targets = TermSpec(loss="soft_targets", temperature=4.0, weight=0.9)
    assert soft_targets.arguments == {"temperature": 4.0}
    assert experiment.methods == {
        "student": Method(),
        "kd": Method(student_loss_weight=0.1, terms=[soft_targets]),
        "sp": Method(student_loss_weight=1.0, terms=[TermSpec(loss="similarity_preserving", weight=3000.0)]),
    }
    assert list(experiment.methods) == ["student", "kd", "sp"]
    assert experiment.seeds == [0, 1, 2]


def test_the_shortest_experiment_has_the_published_defaults(load):
    experiment = load(SHORTEST)
    assert experiment.name == "tried", "the file's stem"
    assert experiment.data == Data(
        name="digits", batch_size=128, augmentation="none", validation=None, test="test", train_fraction=1.0
    )
    # Tung & Mori, section 4: 200 epochs, rate 0.1 falling by 0.2 at 60, 120 and 160, weight decay 5e-4.
    assert experiment.schedule == Schedule(
        epochs=200, learning_rate=0.1, weight_decay=5e-4, drops={0.3: 0.2, 0.6: 0.2, 0.8: 0.2}
    )
    assert (experiment.teacher, experiment.seeds) == (None, [0])


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_experiments_load(file):
    loader = LOADERS.get(file.stem)
    experiment = load_experiment(file) if loader is None else loader(file)[0]
    assert experiment.name == (file.stem if loader is None else file.stem.rpartition("-")[0]), (
        "they share the teacher's run"
    )
    assert "student" in experiment.methods, "there is a baseline to compare with"


def test_there_are_shipped_experiments():
    assert SHIPPED


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("schedule.learning_rate=1.0e-7",),
        ("schedule.drops={3: 0.1, 0.5: 0.25}",),
        ("name='1.5'",),
        ("teacher={path: été/teacher.keras}",),
        ("methods.sp.terms.0.teacher=[stage1, stage2]", "methods.sp.terms.0.name=pairs"),
        ("teacher=", "methods={student: []}"),
    ],
)
def test_written_and_read_again_it_is_the_same(load, overrides):
    experiment = load(COMPLETE, *overrides)
    written = experiment.to_yaml()
    assert load(written) == experiment
    assert load(written).to_yaml() == written
    for method in experiment.methods:
        single = experiment.single(method, 1)
        assert load(single.to_yaml()) == single
    training = experiment.teacher_training()
    if training:
        assert load(training.to_yaml()) == training


@pytest.mark.parametrize("method", ["[{loss: soft_targets}]", "{terms: [{loss: soft_targets}]}"])
def test_a_bare_list_of_terms_weighs_the_labels_by_one(load, method):
    chosen = load(COMPLETE, f"methods.kd={method}").methods["kd"]
    assert chosen == Method(student_loss_weight=1.0, terms=[TermSpec(loss="soft_targets", weight=1.0)])


@pytest.mark.parametrize("baseline", ["student: []", "student:", "student: {}", "student: {terms: []}"])
def test_the_baseline_can_be_written_in_any_way(load, baseline):
    assert load(COMPLETE.replace("student: []", baseline)) == load(COMPLETE)


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("data.batch_size=32", lambda e: e.data.batch_size, 32),
        ("schedule.nesterov=false", lambda e: e.schedule.nesterov, False),
        ("schedule.learning_rate=0.05", lambda e: e.schedule.learning_rate, 0.05),
        ("schedule.learning_rate=1", lambda e: e.schedule.learning_rate, 1.0),
        ("schedule.drops={10: 0.5}", lambda e: e.schedule.drops, {10: 0.5}),
        ("methods.sp.terms.0.weight=100", lambda e: e.methods["sp"].terms[0].weight, 100.0),
        ("methods.kd.student_loss_weight=0.5", lambda e: e.methods["kd"].student_loss_weight, 0.5),
        ("methods.x.terms=[{loss: soft_targets}]", lambda e: len(e.methods["x"].terms), 1),
        ("seeds=[4, 5]", lambda e: e.seeds, [4, 5]),
        ("seeds.1=7", lambda e: e.seeds, [0, 7, 2]),
        ("teacher.width=4", lambda e: e.teacher.arguments["width"], 4),
        ("teacher.schedule.learning_rate=0.2", lambda e: e.teacher_training().schedule.learning_rate, 0.2),
        ("student.mean=a=b", lambda e: e.student.arguments["mean"], "a=b"),
        ("name=other", lambda e: e.name, "other"),
    ],
)
def test_overrides(load, override, read, expected):
    assert read(load(COMPLETE, override)) == expected


def test_an_override_changes_one_place_of_what_an_anchor_shares(load):
    shared = COMPLETE.replace("schedule: {epochs: 40}", "schedule: &its {epochs: 40}")
    shared = shared.replace("schedule: {epochs: 30, ", "schedule: {<<: *its, ").replace("sp: [{", "sp: &sp [{")
    experiment = load(shared, "teacher.schedule.epochs=3")
    assert (experiment.schedule.epochs, experiment.teacher.schedule) == (40, {"epochs": 3})
    again = shared.replace("seeds:", "  again: *sp\nseeds:")
    methods = load(again, "methods.sp.terms.0.weight=30").methods
    assert [methods[name].terms[0].weight for name in ("sp", "again")] == [30.0, 3000.0]


def test_later_overrides_win_and_build_on_earlier_ones(load):
    experiment = load(
        COMPLETE, "methods.x={terms: [{loss: soft_targets}]}", "seeds=[4, 5]", "seeds=[6, 7]", "seeds.0=8"
    )
    assert experiment.seeds == [8, 7]
    assert load(COMPLETE, "teacher.schedule={}", "teacher.schedule.epochs=3").teacher_training().schedule.epochs == 3
    assert load(COMPLETE, "teacher.cache=null", "teacher.cache.seed=3").teacher.cache.seed == 3


@pytest.mark.parametrize("part", ["", "data", "schedule", "student", "teacher"])
def test_nothing_can_be_changed(load, part):
    experiment = load(COMPLETE)
    place = getattr(experiment, part) if part else experiment
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        setattr(place, next(iter(type(place).model_fields)), "other")


# The published schedule: 200 epochs, 0.1, times 0.2 at 60, 120 and 160.
PUBLISHED = {0: 0.1, 59: 0.1, 60: 0.02, 119: 0.02, 120: 0.004, 159: 0.004, 160: 0.0008, 199: 0.0008}


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ({}, PUBLISHED),
        ({"drops": {60: 0.2, 120: 0.2, 160: 0.2}}, PUBLISHED),
        ({"drops": {160: 0.2, 60: 0.2, 120: 0.2}}, PUBLISHED),
        # 0.3, 0.6 and 0.8 of 30 epochs are 9, 18 and 24.
        ({"epochs": 30}, {0: 0.1, 8: 0.1, 9: 0.02, 17: 0.02, 18: 0.004, 23: 0.004, 24: 0.0008, 29: 0.0008}),
        # Of 8 they are 2.4, 4.8 and 6.4: the nearest epoch.
        ({"epochs": 8}, {1: 0.1, 2: 0.02, 4: 0.02, 5: 0.004, 6: 0.0008}),
        ({"epochs": 10, "drops": {1: 0.5, 0.9: 0.1}}, {0: 0.1, 1: 0.05, 8: 0.05, 9: 0.005}),
        ({"drops": {}}, {0: 0.1, 199: 0.1}),
        ({"epochs": 4, "drops": {100: 0.1}}, {3: 0.1}),
        # However short the schedule is, no drop comes before the first epoch is done.
        ({"epochs": 1}, {0: 0.1}),
    ],
)
def test_learning_rate(schedule, rates):
    schedule = Schedule(**schedule)
    assert {epoch: schedule.learning_rate_at(epoch) for epoch in rates} == pytest.approx(rates)


def test_the_teachers_training(load):
    experiment = load(COMPLETE, "schedule.momentum=0.8", "teacher.schedule={epochs: 40, drops: {20: 0.1}}")
    training = experiment.teacher_training()
    assert training.teacher is None
    assert training.student == Network(model="wide_resnet", depth=16, width=2)
    assert training.schedule == Schedule(epochs=40, drops={20: 0.1}, momentum=0.8, learning_rate=0.1)
    assert training.methods == {"teacher": Method()}
    assert training.seeds == [0]
    assert (training.name, training.data) == (experiment.name, experiment.data)


@pytest.mark.parametrize("text", [SHORTEST, SHORTEST + "teacher: {path: teacher.keras}"])
def test_no_teacher_to_train(load, text):
    assert load(text).teacher_training() is None


def test_a_single_run(load):
    experiment = load(COMPLETE)
    single = experiment.single("kd", 2)
    assert (list(single.methods), single.seeds) == (["kd"], [2])
    assert single.methods["kd"] == experiment.methods["kd"]
    for field in ("name", "data", "teacher", "student", "schedule"):
        assert getattr(single, field) == getattr(experiment, field)


def test_select(load):
    experiment = load(COMPLETE)
    assert experiment.select() == experiment
    some = experiment.select(["sp", "student"], [5])
    assert (list(some.methods), some.seeds) == (["student", "sp"], [5])
    assert experiment.select(seeds=[2]).methods == experiment.methods


@pytest.mark.parametrize(
    ("methods", "seeds", "said"),
    [
        (["ps"], None, "unknown method `ps`. Did you mean `sp`? Valid: student, kd, sp."),
        (None, [1, 1], "digits: `seeds` must differ, received [1, 1]."),
        (None, [-1], "digits: `seeds.0`: input should be greater than or equal to 0. Received: -1 (int)."),
        (None, [], "digits: `seeds`: list should have at least 1 item"),
        ([], None, "digits: `methods`: dictionary should have at least 1 item"),
    ],
)
def test_select_what_is_not_there(load, methods, seeds, said):
    with pytest.raises(ExperimentError) as caught:
        load(COMPLETE).select(methods, seeds)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), []),
        (("name=other",), []),
        (("schedule.learning_rate=0.10",), []),
        (("data.batch_size=128",), ["data.batch_size: 64 -> 128"]),
        (("student.width=2", "seeds=[0, 1]"), ["student.width: 1 -> 2", "seeds.2: 2 -> None"]),
        (("teacher.schedule.momentum=0.5",), ["teacher.schedule.momentum: None -> 0.5"]),
        (("schedule.drops={0.3: 0.1, 0.6: 0.2, 0.8: 0.2}",), ["schedule.drops.0.3: 0.2 -> 0.1"]),
        (("methods.sp.terms.0.weight=100",), ["methods.sp.terms.0.weight: 3000.0 -> 100.0"]),
    ],
)
def test_differences(load, overrides, expected):
    assert differences(load(COMPLETE), load(COMPLETE, *overrides)) == expected


def test_published_numbers_go_with_their_method(load):
    experiment = load(TEXT_WITH_PUBLISHED)
    assert experiment.single("sp", 0).published.test_error == {"sp": 7.52}
    assert experiment.single("student", 0).published is None
    assert experiment.teacher_training().published.test_error == {"teacher": 6.07}
    assert experiment.select(["sp"]).published == experiment.published
    assert experiment.select(["student"]).published.test_error == {"teacher": 6.07}
    assert differences(load(TEXT_WITH_PUBLISHED.replace("7.52", "9.99")), experiment) == [], "no result depends on it"
    for single in (experiment.single("sp", 0), experiment.teacher_training()):
        assert load(single.to_yaml()) == single


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("sp: 7.52", "ps: 7.52", "published.test_error"),
        ("sp: 7.52", "sp: 107.52", "published.test_error.sp"),
        ("source: a paper, ", "", "published.source"),
    ],
)
def test_published_numbers_are_checked(load, old, new, told):
    with pytest.raises(ExperimentError, match=told.replace(".", r"\.")):
        load(TEXT_WITH_PUBLISHED.replace(old, new))


def test_what_two_networks_share_can_be_merged(load):
    networks = "student: &net {model: wide_resnet, depth: 16}\nteacher: {<<: *net, width: 2}"
    experiment = load(SHORTEST.replace("student: {model: wide_resnet}", networks))
    assert experiment.teacher.arguments == {"depth": 16, "width": 2}
