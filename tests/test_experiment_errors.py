"""What is said about an experiment that is wrong: one clear line for each problem."""

import pytest
import yaml

from spkd_keras.experiment import ExperimentError, load_experiment

# Right in every part; each test spoils one.
COMPLETE = """
data: {name: digits, batch_size: 64, augmentation: none, validation: 0.1, train_fraction: 1.0}
teacher: {model: wide_resnet, depth: 16, width: 2, schedule: {epochs: 40}}
student: {model: wide_resnet, depth: 16, width: 1}
schedule: {epochs: 30, learning_rate: 0.1}
methods:
  student: []
  kd: {student_loss_weight: 0.1, terms: [{loss: soft_targets, temperature: 4.0, weight: 0.9}]}
  sp: [{loss: similarity_preserving, weight: 3000.0}]
seeds: [0, 1, 2]
"""


def problems(load, text=COMPLETE, *overrides):
    """What is said about a wrong experiment, line by line."""
    with pytest.raises(ExperimentError) as caught:
        load(text, *overrides)
    assert "pydantic" not in str(caught.value)
    return str(caught.value).splitlines()


def test_missing_file_names_its_neighbours(tmp_path):
    (tmp_path / "digits.yaml").write_text(COMPLETE, encoding="utf-8")
    with pytest.raises(ExperimentError) as caught:
        load_experiment(tmp_path / "digit.yaml")
    assert str(caught.value) == (
        f"The experiment file does not exist: {tmp_path}/digit.yaml. There is {tmp_path}/digits.yaml."
    )
    with pytest.raises(ExperimentError, match=r"does not exist: .*/nowhere/x\.yaml\. Give the path of a YAML file\.$"):
        load_experiment(tmp_path / "nowhere" / "x.yaml")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ExperimentError, match=r"cannot be read: .*Is a directory"):
        load_experiment(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: été".encode("latin-1"))
    with pytest.raises(ExperimentError, match=r"cannot be read: .*latin\.yaml"):
        load_experiment(tmp_path / "latin.yaml")
    with pytest.raises(ExperimentError, match=r"cannot be read: .*Not a directory"):
        load_experiment(tmp_path / "latin.yaml" / "x.yaml")


def test_a_file_whose_name_no_experiment_can_have(tmp_path):
    file = tmp_path / "my experiment.yaml"
    file.write_text(COMPLETE, encoding="utf-8")
    with pytest.raises(ExperimentError) as caught:
        load_experiment(file)
    assert str(caught.value) == (
        f"{file} has no `name:`, so the experiment's is the file's, which it cannot have. Received: 'my experiment'. "
        "Give `name:`, of letters, digits and _ . + -, in the file, or rename the file."
    )
    assert load_experiment(file, ["name=mine"]).name == "mine"
    file.write_text(f"name: mine{COMPLETE}", encoding="utf-8")
    assert load_experiment(file).name == "mine"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", "is not valid YAML: while parsing a flow sequence"),
        ("a:\n\t- b", "is not valid YAML: while scanning for the next token"),
        ("a: 2024-13-45", "is not valid YAML: '2024-13-45' is no timestamp (month must be in 1..12) in "),
        ("a: !!int abc", "is not valid YAML: 'abc' is no int (invalid literal for int() with base 10: 'abc') in "),
        ("a: !!bool maybe", "is not valid YAML: 'maybe' is no bool ('maybe') in "),
        ("data: &a [*a]", "is not valid YAML: found unconstructable recursive node in "),
        ("data: &a {b: *a}", "is not valid YAML: found unconstructable recursive node in "),
        pytest.param(f"a: {'[' * 5000}", "is not valid YAML: lists or mappings are nested too deeply", id="deep"),
        ("!!python/object:os.system x", "is not valid YAML: could not determine a constructor"),
        ("", "must be a mapping with data, teacher, student, ... Received: nothing."),
        ("- 1", "must be a mapping with data, teacher, student, ... Received: [1] (list)."),
        ("hello", "must be a mapping with data, teacher, student, ... Received: 'hello' (str)."),
    ],
)
def test_text_that_is_no_experiment(load, text, said):
    (line,) = problems(load, text)
    assert f"tried.yaml {said}" in line


WEIGHT = "`methods.sp.terms.0.weight`: input should be a valid"
EPOCHS = "`schedule.epochs`: input should be a valid"
NAME = "must be of letters, digits and _ . + -, and begin with a letter or a digit"

# What is set in the experiment, and how the one line begins, after the file's name.
WRONG = [
    ("dta={}", "unknown key `dta`. Did you mean `data`? Valid: name, data, teacher, student, schedule,"),
    (
        "data.batchsize=3",
        "unknown key `batchsize` in `data`. Did you mean `batch_size`? Valid: name, path, image_size,",
    ),
    ("schedule.lr=3", "unknown key `lr` in `schedule`. Valid: epochs, optimizer, learning_rate,"),
    ("methods.kd.weight=3", "unknown key `weight` in `methods.kd`. "),
    ("int=3", "unknown key `int`. "),
    ("data[0]=3", "unknown key `data[0]`. Did you mean `data`? Valid: name, data,"),
    ("data.float=3", "unknown key `float` in `data`. "),
    ("data.name=3", "`data.name`: input should be a valid string. Received: 3 (int)."),
    ("data=", "`data`: must be a mapping (key: value). Received: nothing."),
    ("data.batch_size='64'", "`data.batch_size`: input should be a valid integer. Received: '64' (str)."),
    ("data.batch_size=64.0", "`data.batch_size`: input should be a valid integer. Received: 64.0 (float)."),
    ("data.batch_size=true", "`data.batch_size`: input should be a valid integer. Received: True (bool)."),
    ("data.batch_size=1", "`data.batch_size`: input should be greater than or equal to 2. Received: 1 (int)."),
    (
        "data.augmentation=flip",
        "`data.augmentation`: input should be 'none', 'cifar' or 'imagenet'. Received: 'flip' (str).",
    ),
    (
        "data.validation=1.0",
        "`data.validation` must be the name of a split or a fraction from 0 to below 1, received 1.0.",
    ),
    ("data.train_fraction=0", "`data.train_fraction`: input should be greater than 0. Received: 0 (int)."),
    ("schedule.epochs=0", "`schedule.epochs`: input should be greater than or equal to 1. Received: 0 (int)."),
    ("schedule.optimizer=adam", "`schedule.optimizer`: input should be 'sgd'. Received: 'adam' (str)."),
    (
        "schedule.learning_rate=1e-4",
        "`schedule.learning_rate`: input should be a valid number. Received: '1e-4' (str) "
        "(YAML reads 1e-4 as text; write 1.0e-4).",
    ),
    (
        "methods.sp.terms.0.weight=3.0e3",
        f"{WEIGHT} number. Received: '3.0e3' (str) (YAML reads 3.0e3 as text; write 3.0e+3).",
    ),
    ("methods.sp.terms.0.weight='3.0e+3'", f"{WEIGHT} number. Received: '3.0e+3' (str)."),
    ("schedule.epochs=1e2", f"{EPOCHS} integer. Received: '1e2' (str) (YAML reads 1e2 as text; write 100)."),
    ("schedule.epochs=1e-2", f"{EPOCHS} integer. Received: '1e-2' (str)."),
    ("schedule.learning_rate=.inf", "`schedule.learning_rate`: input should be a finite number."),
    ("schedule.weight_decay=.nan", "`schedule.weight_decay`: input should be "),
    ("schedule.momentum=1", "`schedule.momentum`: input should be less than 1. Received: 1 (int)."),
    ("schedule.nesterov=1", "`schedule.nesterov`: input should be a valid boolean. Received: 1 (int)."),
    *(
        (
            f"schedule.drops={{{key}: 0.1}}",
            "`schedule.drops` keys must be epochs (integers from 1) or fractions between 0 and 1, "
            f"received {'nan' if key == '.nan' else key}.",
        )
        for key in ("0", "-3", "0.0", "1.0", "1.5", ".nan")
    ),
    (
        "schedule.drops={a: 0.1}",
        "`schedule.drops` keys must be epochs (integers from 1) or fractions between 0 and 1, received 'a'.",
    ),
    (
        "schedule.drops.30=0.1",
        "`schedule.drops` keys must be epochs (integers from 1) or fractions between 0 and 1, received '30' as text; "
        "by --set give all of them, as in 'schedule.drops={30: 0.1}'.",
    ),
    ("schedule.drops={2: 0}", "`schedule.drops.2`: input should be greater than 0. Received: 0 (int)."),
    ("schedule.drops={2: .inf}", "`schedule.drops.2`: input should be a finite number. Received: inf (float)."),
    ("schedule.drops=[1]", "`schedule.drops`: must be a mapping (key: value). Received: [1] (list)."),
    ("seeds=[1, 2, 1]", "`seeds` must differ, received [1, 2, 1]."),
    ("seeds=[]", "`seeds`: list should have at least 1 item"),
    ("seeds=3", "`seeds`: input should be a valid list. Received: 3 (int)."),
    ("seeds=[-1]", "`seeds.0`: input should be greater than or equal to 0. Received: -1 (int)."),
    ("teacher=", "needs a `teacher`, since there are methods with terms: kd, sp."),
    ("teacher.path=x.keras", "`teacher` needs either `model`, a network's name, or `path`, a .keras file."),
    ("teacher={depth: 16}", "`teacher` needs either `model`, a network's name, or `path`, a .keras file."),
    ("teacher={path: x.keras, depth: 16}", "`teacher` `path` takes no arguments, received depth."),
    (
        "teacher={path: x.keras, schedule: {epochs: 3}}",
        "`teacher` `path` is a trained network, so it takes no `schedule`.",
    ),
    ("student={path: x.keras}", "`student` needs `model`: every run starts from a new student."),
    ("methods.teacher=sp", "`methods` cannot have one named `teacher`, the teacher's own run."),
    (
        "methods.student=[{loss: soft_targets}]",
        "the method `student` is the baseline, trained on the labels alone: `student: []`.",
    ),
    ("methods.student.student_loss_weight=2", "the method `student` is the baseline, trained on the labels alone:"),
    (
        "methods.a/b=sp",
        f"`methods.a/b`: {NAME}. Received: 'a/b' (str).",
    ),
    ("methods.x=3", "`methods.x`: must be a mapping (key: value). Received: 3 (int)."),
    ("methods={}", "`methods`: dictionary should have at least 1 item"),
    ("methods.sp.terms.0=3", "`methods.sp.terms.0`: must be a mapping (key: value). Received: 3 (int)."),
    ("methods.sp=[{weight: 1.0}]", "`methods.sp.terms.0.loss` is missing. It must be given."),
    ("methods.sp.terms.0.weight=-1", "`methods.sp.terms.0.weight`: input should be greater than or equal to 0."),
    (
        "methods.sp.terms.0.student=3",
        "`methods.sp.terms.0.student` must be a layer's name or a list of names, received 3.",
    ),
    ("methods.float=[{loss: 3}]", "`methods.float.terms.0.loss`: input should be a valid string. Received: 3 (int)."),
    ("name=a b", f"`name`: {NAME}. Received: 'a b' (str)."),
]


@pytest.mark.parametrize(("override", "said"), WRONG, ids=[override for override, _ in WRONG])
def test_wrong_values_are_told_in_one_line(load, override, said):
    lines = problems(load, COMPLETE, override)
    assert len(lines) == 1, lines
    place, _, problem = lines[0].partition("tried.yaml: ")
    assert "\n" not in place
    assert problem.startswith(said)


def test_each_problem_has_its_line(load):
    lines = problems(load, COMPLETE, "data.batch_size=x", "data.size=3", "seeds=[]")
    assert len(lines) == 3
    assert all("tried.yaml: " in line for line in lines)


@pytest.mark.parametrize("empty", ["", "[]", "{}", "{terms: []}", "{student_loss_weight: 0.5}"])
def test_a_method_without_terms_is_the_student_under_another_name(load, empty):
    (line,) = problems(load, COMPLETE, f"methods.sp={empty}")
    assert "methods.sp: it must have terms, or be the name of a published method. Received: " in line
    assert " Write `sp: sp` for the published one. Valid: student, kd, " in line
    (line,) = problems(load, COMPLETE, f"methods.mine={empty}")
    assert "Write `mine" not in line


def test_a_single_name_is_no_list_of_methods(load):
    (line,) = problems(load, COMPLETE, "methods=sp")
    assert line.endswith("Received: 'sp' (str). Write `methods: [sp]`, or `--set methods=[sp]`.")


@pytest.mark.parametrize("missing", ["data", "student", "methods"])
def test_what_must_be_given(load, missing):
    plain = {key: value for key, value in yaml.safe_load(COMPLETE).items() if key != missing}
    (line,) = problems(load, yaml.safe_dump(plain))
    assert line.endswith(f"tried.yaml: `{missing}` is missing. It must be given.")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("teacher.schedule.epoch=3", "teacher.schedule: unknown key `epoch`. Did you mean `epochs`? Valid: epochs,"),
        ("teacher.schedule.epochs=0", "teacher.schedule: `epochs`: input should be greater than or equal to 1."),
        ("data.batch_size", "--set takes KEY=VALUE, for example data.batch_size=64. Received: data.batch_size."),
        ("=3", "--set takes KEY=VALUE, for example data.batch_size=64. Received: =3."),
        ("seeds=[1", "--set seeds: the value is not valid YAML: while parsing a flow sequence"),
        ("name=2024-13-45", "--set name: the value is not valid YAML: '2024-13-45' is no timestamp (month must be in "),
        ("data=&a [*a]", "--set data: the value is not valid YAML: found unconstructable recursive node"),
        pytest.param(
            f"data={'[' * 5000}",
            "--set data: the value is not valid YAML: lists or mappings are nested too deeply",
            id="deep",
        ),
        ("data={name: a, name: b}", "--set data: the value is not valid YAML: the key `name` is there twice"),
        ("data={name: a, name: b}", 'in "file", line 1, column 11'),
        ("seeds.3=1", "--set seeds.3: seeds is a list of 3 items. Received: item 3."),
        ("seeds.x=1", "--set seeds.x: seeds is a list of 3 items. Received: item x."),
        ("methods.sp.terms.1.weight=3", "--set methods.sp.terms.1.weight: methods.sp.terms is a list of 1 items."),
        ("data.batch_size.x=3", "--set data.batch_size.x: data.batch_size is 64 (int), which has no x."),
    ],
)
def test_wrong_overrides(load, override, said):
    (line,) = problems(load, COMPLETE, override)
    assert said in line


def test_an_experiment_error_is_a_value_error():
    # So that a caller who knows nothing of experiments catches it too.
    assert issubclass(ExperimentError, ValueError)
