"""What varies in an experiment, as data: what is read, what is refused, and the points."""

import math

import pytest

from spkd_keras.experiment import ExperimentError, load_experiment, load_search, load_students

FILE = """
name: tried
data: {name: digits, batch_size: 32, validation: 0.1}
teacher: {model: wide_resnet, depth: 10, width: 1}
student: {model: wide_resnet, depth: 10, width: 0.5}
methods:
  student: []
  kd: kd
  sp: [{loss: similarity_preserving, weight: 30.0}]
seeds: [0, 1]
"""
WEIGHT = "methods.sp.terms.0.weight"
RANGE = "{float: [1, 2]}"
GAMMA = f"{WEIGHT}={{float: [1, 10000], log: true}}"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tried.yaml"
    path.write_text(FILE, encoding="utf-8")
    return path


def searched(file, *overrides, methods=("sp",)):
    return load_search(file, overrides, methods)


def test_the_published_weight_comes_first(file):
    experiment, space = searched(file, GAMMA)
    (dimension,) = space.dimensions
    assert (dimension.name, dimension.values, dimension.log, dimension.default) == (WEIGHT, (1.0, 1e4), True, 3000.0)
    assert space.first() == {WEIGHT: 3000.0}
    assert experiment.methods["sp"].terms[0].weight == 3000.0
    assert list(experiment.methods) == ["student", "sp"]
    point = space.at(experiment, {WEIGHT: 7.0})
    assert (list(point.methods), point.methods["sp"].terms[0].weight) == (["sp"], 7.0)
    assert point.schedule == experiment.schedule


@pytest.mark.parametrize(
    ("space", "default"),
    [
        ("{float: [1, 100], log: true}", 10.0),  # 3000 is outside
        ("{float: [1, 100]}", 50.5),
        ("{float: [1, 10000], default: 20}", 20.0),
        ("{float: [1, 100], log: true, step: 10}", 10.0),
        ("{float: [0, 1], step: 0.1, default: 0.30000000000000004}", 0.3),  # which is a step
        ("{float: [0, 1], step: 0.1, default: 0.35}", 0.35),  # which is none
        ("{choice: [5.0, 3000.0]}", 5.0),
        ("{choice: [5.0, 3000.0], default: 3000.0}", 3000.0),
    ],
)
def test_defaults(file, space, default):
    assert searched(file, f"{WEIGHT}={space}")[1].first() == {WEIGHT: default}


def test_defaults_of_others(file):
    overrides = [
        "schedule.learning_rate={float: [0.01, 1], log: true}",
        "schedule.momentum={float: [0.1, 0.5]}",
        "student.depth={int: [10, 22], step: 6}",
        "methods.mine=[{loss: soft_targets, weight: {float: [0.1, 2]}}]",
    ]
    first = searched(file, *overrides, methods=["mine"])[1].first()
    assert first["schedule.learning_rate"] == 0.1  # the schedule's own
    assert first["schedule.momentum"] == pytest.approx(0.3)
    assert first["student.depth"] == 16
    assert first["methods.mine.terms.0.weight"] == 0.9  # of kd, which has the same losses


def test_the_method_may_vary(file):
    experiment, space = load_search(
        file,
        ["methods={choice: {student: [], kd: kd, sp: [{loss: similarity_preserving, weight: {float: [1, 10]}}]}}"],
    )
    method, weight = space.dimensions
    assert (method.name, method.values, method.default) == ("methods", ("student", "kd", "sp"), "student")
    assert weight.method == "sp"
    assert space.first() == {"methods": "student"}
    assert space.active({"methods": "sp", weight.name: 4.0}) == {"methods": "sp", weight.name: 4.0}
    point = space.at(experiment, {"methods": "sp", weight.name: 4.0})
    assert point.methods["sp"].terms[0].weight == 4.0
    assert list(space.at(experiment, {"methods": "kd"}).methods) == ["kd"]


def test_published_methods_may_be_the_choice(file):
    experiment, space = load_search(file, ["methods={choice: [student, kd, sp]}"])
    assert space.dimensions[0].values == ("student", "kd", "sp")
    assert space.at(experiment, {"methods": "sp"}).methods["sp"].terms[0].weight == 3000.0


def test_values_that_are_no_plain_ones_have_labels(file):
    taps = "methods.sp.terms.0.student={choice: [stage2, [stage2, stage3], null]}"
    (dimension,) = searched(file, taps)[1].dimensions
    assert dimension.options == ("stage2", "[stage2, stage3]", "null")
    assert [dimension.value(option) for option in dimension.options] == ["stage2", ["stage2", "stage3"], None]
    assert dimension.option(None) == "null"


@pytest.mark.parametrize(
    ("space", "values"),
    [
        ("{choice: [0.25, 1.0]}", [0.25, 1.0]),
        ("{int: [1, 6], step: 2}", [1, 3, 5]),
        ("{int: [1, 3]}", [1, 2, 3]),
        ("{int: [1, 10], log: true, step: 3}", [1, 3, 9]),
        ("{float: [0.5, 1.0], step: 0.25}", [0.5, 0.75, 1.0]),
        ("{float: [0.1, 0.7], step: 0.2}", [0.1, 0.3, 0.5, 0.7]),
        ("{float: [1, 100], log: true, step: 3.1622776601683795}", [1.0, 3.16227766017, 10.0, 31.6227766017, 100.0]),
        ("{float: [0.5, 1.0], step: 0.25, default: 0.6}", [0.5, 0.6, 0.75, 1.0]),
        ("{float: [0.5, 1.0], step: 2}", [0.5]),
    ],
)
def test_students_take_every_value(file, space, values):
    students = load_students(file, [f"student.width={space}"])[1]
    assert [student.experiment.student.arguments["width"] for student in students] == values
    assert [student.name for student in students] == [f"width-{value}" for value in values]


def test_students_over_several_fields(file):
    overrides = ["student.width={choice: [0.5, 1]}", "student.depth={choice: [10, 16]}", "seeds=[3]"]
    experiment, students = load_students(file, overrides, ["student", "sp"], [4])
    assert experiment.name == "tried"
    names = ["depth-10-width-0.5", "depth-10-width-1", "depth-16-width-0.5", "depth-16-width-1"]
    assert [student.name for student in students] == names
    assert all(list(s.experiment.methods) == ["student", "sp"] and s.experiment.seeds == [4] for s in students)


def test_whole_students_may_vary(file):
    choice = "student={choice: [{model: wide_resnet, depth: 10, width: 0.5}, {model: resnet, depth: 8}]}"
    students = load_students(file, [choice])[1]
    assert [student.name for student in students] == ["model-wide_resnet-depth-10-width-0.5", "model-resnet-depth-8"]
    assert students[1].experiment.student.model == "resnet"


def test_places():
    from spkd_keras.experiment import Dimension

    log = Dimension(("x",), "float", (1.0, 10000.0), log=True)
    assert log.position(100.0) == pytest.approx(0.5)
    assert log.marks() == [1.0, pytest.approx(100.0), 10000.0]
    assert Dimension(("x",), "int", (2, 6)).position(3) == 0.25
    choice = Dimension(("x",), "choice", ("a", "b", "c"))
    assert [choice.position(value) for value in choice.values] == [0.0, 0.5, 1.0]
    assert math.isclose(Dimension(("x",), "choice", ("a",)).position("a"), 0.0)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (f"{WEIGHT}={{choice: []}}", r"`methods.sp.terms.0.weight`: `choice` must be .* at least one value"),
        (f"{WEIGHT}={{choice: 3}}", r"`choice` must be a list of at least one value. Received: 3 \(int\)"),
        (f"{WEIGHT}={{choice: [1.0, 1.0]}}", r"the values of `choice` must differ"),
        (f"{WEIGHT}={{choice: [1.0, -2.0]}}", r"weight=-2.0: .*greater than or equal to 0. Received: -2.0"),
        (f"{WEIGHT}={{choice: [1.0], default: 2.0}}", r"`default` must be one of the choice"),
        (f"{WEIGHT}={{choice: [{{float: [1, 2]}}]}}", r"cannot have a range within"),
        (f"{WEIGHT}={{float: [10, 1]}}", r"\[low, high\] with low below high. Received: \[10, 1\]"),
        (f"{WEIGHT}={{float: [1, 1]}}", r"low below high"),
        (f"{WEIGHT}={{float: [1]}}", r"must be two numbers, \[low, high\]"),
        (f"{WEIGHT}={{float: [1e-4, 1]}}", r"YAML reads 1e-4 as text; write 1\.0e-4"),
        (f"{WEIGHT}={{float: [1, 1.5e3]}}", r"YAML reads 1\.5e3 as text; write 1\.5e\+3"),
        (f"{WEIGHT}={{float: [1, a]}}", r"two numbers, \[low, high\]\. Received: \[1, 'a'\] \(list\)\.$"),
        (f"{WEIGHT}={{float: [.nan, 1]}}", r"low below high|two numbers"),
        (f"{WEIGHT}={{float: [1, .inf]}}", r"two numbers"),
        (f"{WEIGHT}={{int: [1, 2.5]}}", r"must be two integers"),
        (f"{WEIGHT}={{float: [0, 10], log: true}}", r"a range with `log` must begin above 0. Received: \[0, 10\]"),
        (f"{WEIGHT}={{float: [1, 10], log: 1}}", r"`log` must be true or false"),
        (f"{WEIGHT}={{float: [1, 10], log: true, step: 1}}", r"`step` must be one of the numbers above 1"),
        (f"{WEIGHT}={{float: [0, 1], step: 1.0e-6}}", r"at most 10,000 steps. Received: 1,000,001. Give a larger"),
        (f"{WEIGHT}={{float: [0, 1], step: 1.0e-320}}", r"at most 10,000 steps"),
        (f"{WEIGHT}={{float: [1, 10], step: 0}}", r"`step` must be one of the numbers above 0"),
        (f"{WEIGHT}={{float: [1, 10], default: 11}}", r"`default` must be one of the numbers in \[1, 10\]"),
        (f"{WEIGHT}={{float: [1, 10], lg: true}}", r"unknown key `lg` in `methods.sp.*Did you mean `log`\?"),
        (f"{WEIGHT}={{float: [1, 10], int: [1, 2]}}", r"must be one of choice, float, int. Received: float, int"),
        ("schedule.learning_rat={float: [0.1, 1]}", r"`learning_rat` in `schedule`. Did you mean `learning_rate`\?"),
        ("schedul={learning_rate: {float: [0.1, 1]}}", r"unknown key `schedul`. Did you mean `schedule`\?"),
        ("schedule.momentum={float: [0.5, 1.5]}", r"momentum=1.5: `schedule.momentum`: .*less than 1"),
        ("seeds={choice: [1, 2]}", r"`seeds` cannot vary: .*What can: fields of methods, student"),
        ("name={choice: [a, b]}", r"`name` cannot vary"),
        ("data.validation={float: [0.1, 0.2]}", r"`data.validation` cannot vary"),
        ("data.name={choice: [digits, mnist]}", r"`data.name` cannot vary"),
        ("teacher.width={choice: [1, 2]}", r"`teacher.width` cannot vary"),
        ("methods={choice: []}", r"`methods`: `choice` must be .* at least one"),
        ("methods={choice: [sp, ks]}", r"unknown method `ks`"),
        ("methods={float: [1, 2]}", r"unknown key `float` in `methods`"),
        ("data.batch_size=16", r"nothing varies. Give a field a range or a choice"),
    ],
)
def test_what_is_refused(file, override, said):
    methods = None if override.startswith("methods=") else ["sp"]
    with pytest.raises(ExperimentError, match=said) as caught:
        load_search(file, [override], methods)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            f"methods.sp={{terms: [similarity_preserving, {{loss: soft_targets, weight: {RANGE}}}]}}",
            "methods.sp.terms.0",
        ),
        (f"methods.sp={{terms: {{a: {{weight: {RANGE}}}}}}}", "methods.sp.terms"),
    ],
)
def test_terms_that_are_none(file, override, said):
    with pytest.raises(ExperimentError, match=said) as caught:
        load_search(file, [override], ["sp"])
    assert "\n" not in str(caught.value)


def test_a_file_that_is_a_choice(file):
    file.write_text("choice: [1, 2]", encoding="utf-8")
    for load in (load_search, load_experiment):
        with pytest.raises(ExperimentError, match=r"unknown key `choice`"):
            load(file)
    with pytest.raises(ExperimentError, match="the student does not vary"):
        load_students(file)


def test_what_a_search_needs(file):
    with pytest.raises(ExperimentError, match=r"one method a trial. Received: kd, sp. Name one with --methods kd"):
        load_search(file, [GAMMA])
    with pytest.raises(ExperimentError, match=r"nothing varies"):
        load_search(file, [GAMMA], ["kd"])
    with pytest.raises(ExperimentError, match=r"unknown method `so`"):
        load_search(file, [GAMMA], ["so"])
    with pytest.raises(ExperimentError, match=r"`data.validation` must be above 0"):
        load_search(file, [GAMMA, "data.validation=0"], ["sp"])
    with pytest.raises(ExperimentError, match=r"--set teacher.cache=null"):
        load_search(file, [GAMMA, "teacher.cache={}"], ["sp"])


def test_what_a_frontier_needs(file):
    for override, said in {
        "seeds=[0]": "the student does not vary",
        GAMMA: "cannot vary here: students are compared under one budget",
        "student.width={float: [0.5, 1]}": "every value is needed here. Give a `choice`, or a `step`",
    }.items():
        with pytest.raises(ExperimentError, match=said):
            load_students(file, [override])
    width = "student.width={choice: [0.5, 1]}"
    with pytest.raises(ExperimentError, match="`teacher` must be given"):
        load_students(file, [width, "teacher=null", "methods={student: []}"])
    with pytest.raises(ExperimentError, match=r"`data.validation` must be above 0"):
        load_students(file, [width, "data.validation=0"])
    with pytest.raises(ExperimentError, match="unknown method `so`"):
        load_students(file, [width], ["so"])


def test_a_run_refuses_what_varies(file):
    with pytest.raises(ExperimentError, match=r"`methods.sp.terms.0.weight` varies. `spkd tune` searches it"):
        load_experiment(file, [GAMMA])


def test_what_others_measured_is_not_of_a_searched_point(file, tmp_path):
    published = "published: {source: a paper, test_error: {student: 5.0, kd: 4.5, sp: 4.0}}\n"
    file.write_text(FILE + published, encoding="utf-8")
    assert load_experiment(file).published.test_error["sp"] == 4.0
    experiment, space = load_search(file, [GAMMA], ["sp"])
    assert (experiment.published, list(experiment.methods), space.methods) == (None, ["student", "sp"], ("sp",))
    best = tmp_path / "best.yaml"
    best.write_text(space.at(experiment, {WEIGHT: 7.0}).to_yaml(), encoding="utf-8")
    assert load_experiment(best).methods["sp"].terms[0].weight == 7.0
    file.write_text(FILE + published.replace("source", "sorce"), encoding="utf-8")
    with pytest.raises(ExperimentError, match=r"published: unknown key `sorce`. Did you mean `source`\?"):
        load_search(file, [GAMMA], ["sp"])


@pytest.mark.parametrize(("method", "space", "first"), [("kd", "{int: [0, 10]}", 5), ("sp", "{int: [1, 10000]}", 3000)])
def test_the_first_of_a_range_of_integers_is_one(file, method, space, first):
    (value,) = searched(file, f"methods.{method}.terms.0.weight={space}", methods=[method])[1].first().values()
    assert (value, type(value)) == (first, int)
