"""A tiny experiment in which something varies, and the searches over it that the tests make."""

import json

from tiny_experiment import TINY, untrained_teacher

from spkd_keras.experiment import load_search
from spkd_keras.search import Search

WEIGHT = "methods.sp.terms.0.weight"
GAMMA = f"{WEIGHT}={{float: [1, 10000], log: true}}"


def tiny_space(folder, *overrides, methods=("sp",)):
    """The tiny experiment with a teacher that nobody trains."""
    file = folder / "tiny.yaml"
    file.write_text(TINY, encoding="utf-8")
    teacher = f"teacher={{path: {untrained_teacher(folder)}}}"
    return load_search(file, [teacher, *overrides], methods)


def tiny_search(folder, *overrides, methods=("sp",), **options):
    """A search over it, under the folder's `runs`."""
    experiment, space = tiny_space(folder, *overrides, methods=methods)
    return Search(experiment, space, folder / "runs", **options)


def by_name(result):
    return {trial.name: trial for trial in result.trials}


def outcomes(search):
    """What each trial came to, from its file."""
    files = sorted(search.folder.glob("trials/trial_*/outcome.json"))
    return {file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in files}
