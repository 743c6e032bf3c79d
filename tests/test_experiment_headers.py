"""The comments above the experiments: where each comes from, and commands that a shell and `spkd` take as printed."""

import functools
import re
import subprocess
from pathlib import Path

import pytest
import typer
from published_tables import WITHOUT_NUMBERS, published_errors

from spkd_keras.cli import app
from spkd_keras.experiment import load_experiment, load_search, load_students

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / "experiments"
PAPER = sorted((EXPERIMENTS / "paper").glob("*.yaml"))
FILES = [*sorted(EXPERIMENTS.glob("*.yaml")), *sorted((EXPERIMENTS / "cpu").glob("*.yaml")), *PAPER]
HEADER = ("source", "run", "expected", "cost", "differs")
# Given to a shell in place of the real one: it prints what it is given, an argument a field, a command a line. Anything
# but `spkd` is not found.
STAND_IN = 'set -eu; PATH=/nowhere; spkd() { printf "%s\\t" "$@"; echo; }\n'
LOADED = {
    "run": lambda file, overrides, _: load_experiment(file, overrides),
    "tune": lambda *given: load_search(*given)[0],
    "frontier": lambda file, overrides, _: load_students(file, overrides)[0],
}


def name(path):
    return path.relative_to(EXPERIMENTS).with_suffix("").as_posix()


def comment(path):
    """The lines above the experiment."""
    return re.match(r"(?:#.*\n)+", path.read_text(encoding="utf-8"))[0].splitlines()


def header(path):
    """The comment by the words at the left."""
    found, last = {}, None
    for line in comment(path):
        match = re.match(r"#   (\w+) +(.*)", line)
        if match:
            last = match[1]
            found[last] = match[2]
        elif last and line.startswith("#     "):
            found[last] += "\n" + line[1:].strip()
    return found


def script(path):
    """What a reader would copy: the part `run`, or the lines that begin with a command."""
    told = header(path)
    return told["run"] if "run" in told else "\n".join(re.findall(r"^#   (spkd .*)$", "\n".join(comment(path)), re.M))


def shell(*arguments):
    done = subprocess.run(["bash", *arguments], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def command_of(words):
    """The command that the first words name, and the words after it."""
    command, words = typer.main.get_command(app), list(words)
    while hasattr(command, "commands"):
        assert words, "a command is missing"
        assert words[0] in command.commands, f"no command {words[0]}"
        command = command.commands[words.pop(0)]
    return command, words


@functools.cache
def issued(path):
    """Each command of a header, as `spkd` would get it from a shell: its name and its parameters."""
    commands = []
    for line in shell("-c", STAND_IN + script(path)).splitlines():
        command, words = command_of(line.split("\t")[:-1])
        context = command.make_context(command.name, words)  # refuses what the command does not have
        commands.append((command.name, context.params))
    return commands


def loaded(command, given):
    """The experiment that a command names."""
    methods = given["methods"].split(",") if given["methods"] else None
    return LOADED[command](ROOT / given["file"], given["overrides"] or (), methods)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_the_commands_are_taken_by_a_shell_and_by_spkd(path):
    shell("-n", "-c", script(path))
    runs = []
    for command, given in issued(path):
        if command in LOADED:
            assert given["file"] == path.relative_to(ROOT)
            experiment = loaded(command, given)
            if given["methods"]:
                experiment.select(given["methods"].split(","))  # refuses one that is not there
            runs.append((given["out"], experiment.name))
    assert runs
    assert len(set(runs)) == len(runs), "one would be taken for the continuation of another"
    # Named in passing, without their arguments.
    for words in re.findall(r"`spkd ([^`]+)`", " ".join(comment(path))):
        command_of(words.split())


def prepared_first(path):
    """Whether each experiment of a header has its data when its turn comes, on a machine that has none."""
    there = {"digits"}
    for command, given in issued(path):
        if command == "prepare":
            there.add(given["name"])
        elif command in LOADED:
            experiment = loaded(command, given)
            if experiment.data.name not in there:
                return False
    return True


@pytest.mark.parametrize("path", FILES, ids=name)
def test_the_data_are_prepared_before_they_are_used(path):
    assert prepared_first(path)


@pytest.mark.parametrize("path", [path for path in PAPER if path.stem.startswith("dtd-")], ids=name)
def test_all_ten_folds_are_run_and_then_taken_together(path):
    *folds, (last, given) = issued(path)
    assert (last, str(given["runs"])) == ("report", "runs")
    expected = []
    for fold in range(1, 11):
        expected += [("prepare", f"dtd/fold{fold}"), ("run", (f"dtd/fold{fold}", f"{path.stem}-fold{fold}"))]
    found = []
    for command, given in folds:
        if command == "prepare":
            found.append((command, given["name"]))
        else:
            experiment = load_experiment(ROOT / given["file"], given["overrides"])
            found.append((command, (experiment.data.name, experiment.name)))
    assert found == expected


@pytest.mark.parametrize("path", [path for path in FILES if "cost" in header(path)], ids=name)
def test_a_cost_is_a_number(path):
    told = " ".join(header(path)["cost"].split())
    assert re.search(r"^2 cores, CPU\b.* \d+(\.\d+)? (ms|minutes?|hours?)\b", told)


@pytest.mark.parametrize("path", PAPER, ids=name)
def test_the_header_says_where_it_comes_from_and_what_is_expected(path):
    told, experiment = header(path), load_experiment(path)
    assert tuple(told) == HEADER
    assert "2 cores, CPU" in told["cost"]
    assert re.search(r"\d ms", told["cost"])
    assert "not measured" not in told["cost"]
    # What nobody has read again is called so: numbers, protocols, and how the paper multiplies KD.
    from_the_paper = "RepDistiller" not in told["source"]
    assert ("as remembered" in told["source"]) == from_the_paper
    has_its_kd = from_the_paper and "kd" in experiment.methods
    assert ("the paper may have twice the second term" in told["differs"]) == has_its_kd
    if path.stem in WITHOUT_NUMBERS:
        assert "not recovered" in told["expected"]
        return
    numbers = {method: float(number) for method, number in re.findall(r"(\w+) (\d+\.\d+)", told["expected"])}
    if "accuracy" in told["expected"]:
        numbers = {method: round(100 - number, 2) for method, number in numbers.items()}
    assert numbers == published_errors(path.stem)
    assert set(numbers) == {*experiment.methods, "teacher"}
    assert ("as remembered" in told["expected"]) == ("as remembered" in experiment.published.source) == from_the_paper
    # RepDistiller's ShuffleNetV2 is not quite ours: 24 filters of 1x1x3 where ours are of 3x3x3.
    assert ("1x1 stem" in told["differs"]) == (not from_the_paper and experiment.student.model == "shufflenet_v2")
