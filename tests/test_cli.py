"""The command line: answers on standard output, progress and problems on standard error, exit codes 0, 1 and 2."""

import importlib.metadata
import json
import logging
import signal
import subprocess
import sys

import pytest
from fake_runs import write_bare_run
from typer.testing import CliRunner

import spkd_keras
from spkd_keras import cli, report, training

TINY = """
data: {name: digits, batch_size: 32, validation: 0.1, train_fraction: 0.1}
teacher: {model: wide_resnet, depth: 10, width: 0.5, schedule: {epochs: 1}}
student: {model: wide_resnet, depth: 10, width: 0.25}
schedule: {epochs: 2, learning_rate: 0.05}
methods: {student: [], sp: [{loss: similarity_preserving, weight: 100.0}]}
"""


@pytest.fixture
def experiment_file(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY, encoding="utf-8")
    return file


@pytest.fixture
def runs(tmp_path):
    """Three finished runs, written by hand."""
    root = tmp_path / "runs" / "tiny"
    # As many as a WideResNet-16-1 for CIFAR-10 has.
    counts = {"parameters": 175066, "multiply_adds": 26534912}
    for method, seed, error in [("student", 0, 0.5), ("student", 1, 0.25), ("sp", 0, 0.375)]:
        write_bare_run(root, method, seed, error, error, similarity=False, **counts)
    return root


def call(*arguments):
    """Runs the command line in this process, in a terminal of 80 columns."""
    return CliRunner(env={"COLUMNS": "80"}).invoke(cli.app, [str(argument) for argument in arguments])


def words(text):
    """What a reader of a table sees, wherever lines are broken."""
    return " ".join(text.replace("│", " ").replace("┃", " ").split())


# --- help and version ------------------------------------------------------------------------------------------------


def test_version():
    result = call("--version")
    assert (result.exit_code, result.stdout) == (0, f"spkd_keras {spkd_keras.__version__}\n")
    assert importlib.metadata.version("spkd_keras") == spkd_keras.__version__


def test_spkd_is_installed():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="spkd")
    assert script.load() is cli.main


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help(arguments):
    result = call(*arguments)
    assert result.exit_code == (0 if arguments else 2), "no command is wrong use"
    for word in ("run", "report", "spkd run experiments/digits.yaml", "--version", "--traceback", "Exit codes: 0 done"):
        assert word in words(result.output)


@pytest.mark.parametrize(
    ("command", "options"),
    [("run", ["--out", "--set", "--methods", "--seeds", "--json"]), ("report", ["--out", "--json"])],
)
def test_help_of_a_command(command, options):
    result = call(command, "--help")
    assert result.exit_code == 0
    for option in options:
        assert option in result.stdout


@pytest.mark.parametrize("arguments", [["rum"], ["run"], ["run", "a.yaml", "--epochs", "3"], ["report"]])
def test_wrong_commands_and_options(arguments):
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage" in result.stderr


# --- wrong use -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "digit.yaml"], "The experiment file does not exist: digit.yaml. There is tiny.yaml."),
        (["run", "."], "The experiment file cannot be read: "),
        (
            ["run", "tiny.yaml", "--set", "data.batchsize=3"],
            "tiny.yaml: unknown key `batchsize` in `data`. Did you mean",
        ),
        (["run", "tiny.yaml", "--set", "data.batch_size"], "--set takes KEY=VALUE, for example data.batch_size=64. "),
        (["run", "tiny.yaml", "--set", "seeds=[0"], "--set seeds: the value is not valid YAML"),
        (
            ["run", "tiny.yaml", "--set", "teacher.schedule.epochs=0"],
            "tiny.yaml: teacher.schedule: `epochs`: input should be",
        ),
        (["run", "tiny.yaml", "--seeds", "0,x"], "--seeds takes integers, for example 0,1,2. Received: 0,x."),
        (["run", "tiny.yaml", "--seeds", "0,0"], "tiny: `seeds` must differ, received [0, 0]."),
        (["run", "tiny.yaml", "--seeds", ""], "tiny: `seeds`: list should have at least 1 item"),
        (
            ["run", "tiny.yaml", "--methods", "student,ps"],
            "unknown method `ps`. Did you mean `sp`? Valid: student, sp.",
        ),
        (["run", "tiny.yaml", "--methods", ","], "tiny: `methods`: dictionary should have at least 1 item"),
        (["report", "empty"], "There are no runs in empty. Give the folder that `spkd run` wrote, runs/<name>."),
        (["report", "nowhere"], "The folder does not exist: nowhere. Give the folder that `spkd run` wrote"),
        (["report", "tiny.yaml"], "tiny.yaml is a file. Give the folder that `spkd run` wrote, runs/<name>."),
    ],
)
def test_wrong_use_is_told_in_one_line(experiment_file, monkeypatch, arguments, said):
    monkeypatch.chdir(experiment_file.parent)
    (experiment_file.parent / "empty").mkdir()
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"spkd: {said}")
    assert not (experiment_file.parent / "runs").exists()


def test_each_problem_has_its_line(experiment_file):
    result = call("run", experiment_file, "--set", "data.batch_size=x", "--set", "student.path=y", "--set", "seeds=[]")
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"spkd: {experiment_file}: `") for line in lines)


def test_a_report_that_cannot_be_written(runs, tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = call("report", runs, "--out", tmp_path / "file")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"spkd: The report cannot be written to {tmp_path / 'file'} (")
    assert len(result.stderr.splitlines()) == 1


def test_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-m", "spkd_keras", "run", "nowhere.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "spkd: The experiment file does not exist: nowhere.yaml. Give the path of a YAML file.\n"


def test_another_backend_of_keras(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    result = call("models")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "spkd: spkd needs Keras' TensorFlow backend. Received: KERAS_BACKEND=jax. Unset it, or set "
        "KERAS_BACKEND=tensorflow.\n"
    )


# --- failures --------------------------------------------------------------------------------------------------------


def failing(error):
    def read_runs(_):
        raise error

    return read_runs


def test_a_failure_is_told_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "read_runs", failing(RuntimeError("out of\n  luck")))
    result = call("report", tmp_path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "spkd: RuntimeError: out of luck (`spkd --traceback ...` shows where)\n"


def test_an_interruption(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "read_runs", failing(KeyboardInterrupt()))
    result = call("report", tmp_path)
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "spkd: Interrupted.\n"  # nothing was kept that the same command could continue


def test_an_interruption_of_what_keeps_its_state(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "read_runs", failing(training.Interrupted(signal.SIGTERM)))
    result = call("report", tmp_path)
    assert (result.exit_code, result.stdout) == (143, "")
    assert result.stderr == "spkd: Interrupted by SIGTERM. The same command continues where it stopped.\n"


@pytest.mark.parametrize(("error", "code"), [(RuntimeError("out of luck"), 1), (None, 2)])
def test_traceback_when_asked_for(monkeypatch, tmp_path, error, code):
    if error:
        monkeypatch.setattr(report, "read_runs", failing(error))
    result = call("--traceback", "report", tmp_path)
    assert result.exit_code == code
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("spkd: ")
    again = call("report", tmp_path)
    assert "Traceback" not in again.stderr, "nobody asked this time"


# --- report ----------------------------------------------------------------------------------------------------------


def test_report(runs):
    assert "Students:" not in call("report", runs).stdout, "of which only summaries are kept"
    (runs / "sp-seed0" / "student.keras").touch()
    result = call("report", runs)
    assert (result.exit_code, result.stderr) == (0, "")
    text = words(result.stdout)
    assert "sp had fewer errors than the student alone with the one seed: -12.50 points in the median" in text
    assert f"Written: {runs}/report/RESULTS.md, " in result.stdout
    assert f"Students: {runs}/<method>-seed<k>/student.keras\n" in result.stdout
    assert (runs / "report" / "RESULTS.md").is_file()


def test_a_folder_whose_name_could_be_taken_for_a_style(runs, tmp_path):
    folder = runs.rename(tmp_path / "tiny [bold]")
    assert f"Written: {folder}/report/RESULTS.md, " in call("report", folder).stdout


def test_the_table_fits_a_terminal_of_80_columns(runs):
    table = call("report", runs).stdout
    assert "…" not in table
    for cell in ("37.50", "-12.50", "175,066", "26,534,912"):
        assert cell in words(table)


def test_report_elsewhere_as_json(runs, tmp_path):
    result = call("report", runs, "--out", tmp_path / "elsewhere", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == json.loads(json.dumps(report.as_json(report.summarise(report.read_runs(runs)))))
    assert (tmp_path / "elsewhere" / "RESULTS.md").is_file()
    assert not (runs / "report").exists()


# --- run -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quiet_tensorflow(monkeypatch):
    """Undoes what the command sets for its own process."""
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    logger = logging.getLogger("tensorflow")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.mark.usefixtures("quiet_tensorflow")
def test_what_a_run_is_given(experiment_file, runs, monkeypatch):
    given = []

    def run_experiment(experiment, out, observer, **options):
        given.append((experiment, out, options))
        observer.planned(["student-seed0", "sp-seed0"], ["student-seed0"])
        observer.checking("the method sp")
        found = {"severity": "warning", "place": "methods.sp", "found": "odd.", "advice": "Look."}
        observer.checked([found], 7300.0)
        observer.started("sp-seed0", 2)
        observer.advanced("sp-seed0", 0.5)
        observer.noticed("Something [to] know.")
        observer.progressed("sp-seed0", 1, {"accuracy": 0.5})
        observer.completed("sp-seed0", {"test_error": 0.125, "epochs": 2, "wall_seconds": 3.4})
        return runs

    monkeypatch.setattr(training, "run_experiment", run_experiment)
    overrides = ["--set", "name=other", "--set", "methods.sp.terms.0.weight=7"]
    options = ["--methods", "sp", "--seeds", "3, 4", "--jobs", "2", "--no-check"]
    result = call("run", experiment_file, "--out", "there", *overrides, *options)
    assert result.exit_code == 0
    ((experiment, out, options),) = given
    assert options.pop("devices").strategy is None
    assert options == {"jobs": 2, "check": False, "force": False}
    assert (experiment.name, list(experiment.methods), experiment.seeds) == ("other", ["sp"], [3, 4])
    assert experiment.methods["sp"].terms[0].weight == 7.0
    assert str(out) == "there"
    assert "Finished before: student-seed0" in result.stderr
    assert "sp-seed0: test error 12.50%, 2 epochs in 3 s" in result.stderr
    for line in (
        "warning: methods.sp: odd. Look.",
        "Expected, one run after the other: 2.0 hours",
        "Something [to] know.",
    ):
        assert line in result.stderr
    assert "sp-seed0" not in result.stdout
    assert f"Written: {runs}/report/RESULTS.md" in result.stdout


@pytest.mark.usefixtures("quiet_tensorflow")
def test_runs_that_fail_are_told_behind_the_report(experiment_file, runs, monkeypatch):
    def run_experiment(experiment, out, observer, **options):
        observer.planned(["student-seed0", "sp-seed0"], ["student-seed0"])
        observer.started("sp-seed0", 2)
        observer.failed("sp-seed0", "it broke")
        raise training.RunsFailedError(runs, {"sp-seed0": "it broke"})

    monkeypatch.setattr(training, "run_experiment", run_experiment)
    result = call("run", experiment_file)
    assert result.exit_code == 1
    assert f"Written: {runs}/report/RESULTS.md" in result.stdout
    assert result.stderr.splitlines()[-1] == "spkd: sp-seed0 failed: it broke"


def test_the_devices_that_are_asked_for(experiment_file, runs, monkeypatch):
    from spkd_keras import training

    asked = []
    monkeypatch.setattr(training, "devices_for", lambda *given: asked.append(given) or training.Devices())
    monkeypatch.setattr(training, "run_experiment", lambda *_, **__: runs)
    assert call("run", experiment_file, "--strategy", "mirrored", "--devices", "4").exit_code == 0
    assert asked == [("mirrored", 4)]
    refused = call("run", experiment_file, "--devices", "2")
    assert (refused.exit_code, refused.stderr[:29]) == (2, "spkd: --devices needs --strat")
