"""What methods came to over their seeds."""

import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spkd_keras.experiment import BASELINE, TEACHER, Published, differences
from spkd_keras.report.weight_curves import WeightCurve, weight_curves
from spkd_keras.run_files import Run, folds, read_similarities

CONDITIONS = ("devices", "processor", "threads", "replicas")  # of a summary; a change of these may change bits
DIGESTS = {"data_digest": "images", "start_digest": "weights at the start"}  # of a summary, and of what
Runs = dict[tuple[str, int], Run]  # by method and seed


class MethodResult(NamedTuple):
    """What a method came to over its seeds. Errors are fractions of the test images, at the last epoch.

    Attributes:
        method: its name.
        seeds: of the finished runs.
        errors: for each seed.
        best_errors: at the epoch that was best on the held-out images; empty if none were held out.
        differences: error less the baseline's with the same seed, for the seeds that both have; below 0 is better.
        parameters: of the network.
        multiply_adds: of the network, for one image.
        epochs: of a run; None where the summaries do not say.
        images: that it trained on in an epoch.
        wall_seconds: of training, for each seed.
        published: what others reported, with its source.
    """

    method: str
    seeds: list[int]
    errors: list[float]
    best_errors: list[float]
    differences: list[float]
    parameters: int
    multiply_adds: int
    epochs: int | None = None
    images: int | None = None
    wall_seconds: list[float] = []  # noqa: RUF012  (a tuple's default, which nobody changes)
    published: Published | None = None

    @property
    def published_error(self) -> float | None:
        """In percent."""
        return self.published.test_error.get(self.method) if self.published else None


class Comparison(NamedTuple):
    """One method against another.

    `differences` are the errors of `one` less those of `other`, for the seeds that both have.
    """

    one: str
    other: str
    differences: list[float]


class ExperimentResult(NamedTuple):
    """All methods of one experiment, the teacher first, then the baseline.

    Attributes:
        name: of the experiment.
        folder: with its runs, or with the folders of the folds.
        runs: of it, also those that have not ended, with the fold in place of the seed.
        methods: what each came to.
        unfinished: names of the runs that have not ended.
        comparisons: of the methods with terms, each with each.
        warnings: what makes the results less than they seem, as sentences.
        weights: errors by the weight of a term, where several were tried.
        unit: what medians are taken over: "seeds", or "folds" where the experiments of several folds are together.
        title: the name, and what tells it from others.
    """

    name: str
    folder: Path
    runs: list[Run]
    methods: list[MethodResult]
    unfinished: list[str]
    comparisons: list[Comparison]
    warnings: list[str]
    weights: list[WeightCurve]
    unit: str
    title: str


def summarise(runs: Sequence[Run], trials: Sequence[Run] = ()) -> list[ExperimentResult]:
    """Returns the results of experiments that are folds of one, taken together, and then those of each experiment.

    Args:
        runs: of `read_runs`.
        trials: of searches, `read_trials`, for the curves over weights.
    """
    results = []
    for name, root, own in folds(runs):
        title = f"{name}, folds {', '.join(map(str, sorted({run.seed for run in own})))}"
        results.append(_result(name, root, own, "folds", title))
    experiments = list(dict.fromkeys((run.experiment, run.folder.parent) for run in runs))
    names = [name for name, _ in experiments]
    for name, root in experiments:
        own = [run for run in runs if (run.experiment, run.folder.parent) == (name, root)]
        result = _result(name, root, own, "seeds", name if names.count(name) == 1 else f"{name} in {root}")
        results.append(result._replace(weights=weight_curves(own, [*trials, *runs])))
    return results


def _result(name: str, root: Path, runs: Sequence[Run], unit: str, title: str) -> ExperimentResult:
    done = {(run.method, run.seed): run for run in runs if run.summary}
    methods = sorted({method for method, _ in done}, key=lambda m: (m != TEACHER, m != BASELINE, m))
    unfinished = [run.folder.name for run in runs if run.summary is None]
    mixed = {method: found for method in methods if (found := _differing(_of(done, method), unit))}
    alike = {key: run for key, run in done.items() if key[0] not in mixed}
    results = [_method_result(method, done, _differences(method, BASELINE, alike, unit)) for method in methods]
    with_terms = [method for method in methods if method not in (BASELINE, TEACHER)]
    comparisons = [
        Comparison(one, other, apart)
        for one, other in itertools.combinations(with_terms, 2)
        if (apart := _differences(one, other, alike, unit))
    ]
    warnings = [f"The runs of {method} differ, and are not compared: {'; '.join(mixed[method])}." for method in mixed]
    warnings += _unpaired([method for method in methods if method != TEACHER], done, unit)
    warnings += _unlike(with_terms, alike, unit)
    warnings += _views(with_terms, done)
    warnings += _teachers(done) if unit == "seeds" else []
    warnings += _conditions(done)
    return ExperimentResult(name, root, list(runs), results, unfinished, comparisons, warnings, [], unit, title)


def _of(done: Runs, method: str) -> list[Run]:
    return [run for (name, _), run in sorted(done.items()) if name == method]


def _method_result(method: str, done: Runs, differences: list[float]) -> MethodResult:
    runs = _of(done, method)
    summaries = [run.summary or {} for run in runs]
    epochs, seen = summaries[0].get("epochs"), summaries[0].get("images")
    return MethodResult(
        method,
        seeds=[run.seed for run in runs],
        errors=[summary["test_error"] for summary in summaries],
        best_errors=[s["test_error_best"] for s in summaries if s["test_error_best"] is not None],
        differences=differences if method not in (BASELINE, TEACHER) else [],
        parameters=summaries[0]["parameters"],
        multiply_adds=summaries[0]["multiply_adds"],
        epochs=epochs,
        images=seen // epochs if seen and epochs else None,
        wall_seconds=[s["wall_seconds"] for s in summaries if s.get("wall_seconds") is not None],
        published=runs[0].spec.published,
    )


def _pairs(one: str, other: str, done: Runs) -> list[tuple[Run, Run]]:
    """Returns the runs of two methods with the same seed."""
    return [(run, done[other, run.seed]) for run in _of(done, one) if (other, run.seed) in done]


def _differences(one: str, other: str, done: Runs, unit: str) -> list[float]:
    """Returns the differences of two methods' errors over the seeds of both; none if more than the method differs."""
    pairs = _pairs(one, other, done)
    if any(_differing(pair, unit, apart=True) for pair in pairs):
        return []
    # Errors are counts of images over their number: what is equal must not differ by a rounding.
    return [round((a.summary or {})["test_error"] - (b.summary or {})["test_error"], 9) + 0.0 for a, b in pairs]


def _differing(runs: Sequence[Run], unit: str, apart: bool = False) -> list[str]:
    """Returns the settings that differ among runs, besides seed or fold, and the method if they are of two."""
    ignored = ["seeds", *(["data.name"] if unit == "folds" else [])]
    if apart:
        ignored += ["methods"] if all(run.spec.methods[run.method].terms for run in runs) else ["methods", "teacher"]
    known = teachers(runs)
    if len(known) == 1 and None not in known:
        ignored.append(r"teacher\.path")  # it was moved
    found = [line for run in runs[1:] for line in differences(runs[0].spec, run.spec)]
    for key, what in DIGESTS.items():
        digests = dict.fromkeys(str((run.summary or {}).get(key) or "")[:8] for run in runs)
        if len(told := [digest for digest in digests if digest]) > 1 and (unit == "seeds" or what != "images"):
            found.append(f"{what}: {' -> '.join(told)}")
    return list(dict.fromkeys(line for line in found if not re.match(rf"({'|'.join(ignored)})\b", line)))


def _unpaired(methods: Sequence[str], done: Runs, unit: str) -> list[str]:
    """Names the seeds that some methods have and others have not."""
    every = {seed for method, seed in done if method in methods}
    lacking = {method: sorted(every - {run.seed for run in _of(done, method)}) for method in methods}
    told = [f"{method} lacks {', '.join(map(str, seeds))}" for method, seeds in lacking.items() if seeds]
    return [f"Not every method has all {unit}: {'; '.join(told)}. Only those of both are compared."] if told else []


def _unlike(methods: Sequence[str], alike: Runs, unit: str) -> list[str]:
    """Names what else differs between methods and the baseline."""
    told = []
    for method in methods:
        pairs = _pairs(method, BASELINE, alike)
        found = list(dict.fromkeys(line for pair in pairs for line in _differing(pair, unit, apart=True)))
        if found:
            told.append(f"{method} and the student alone are not compared, since they differ: {'; '.join(found)}.")
    return told


def _views(methods: Sequence[str], done: Runs) -> list[str]:
    """Says that what is taken from a cache sees other augmented images than the student alone."""
    compared = [method for method in methods if _pairs(method, BASELINE, done)]
    return [
        f"{method} saw {views} fixed view{'s' * (views > 1)} of each image (`teacher.cache`), the student alone a new "
        "one in every epoch, so that their difference is not the method's alone."
        for method in compared
        if (views := _of(done, method)[0].spec.fixed_views)
    ]


def teachers(runs: Iterable[Run]) -> set[str | None]:
    """Returns the fingerprints of the teachers that students were distilled from; None where a summary does not say."""
    return {(run.summary or {}).get("teacher_fingerprint") for run in runs if run.spec.methods[run.method].terms}


def _teachers(done: Runs) -> list[str]:
    found = len(teachers(done.values()) - {None})
    return [f"The students were distilled from {found} teachers, which is in their differences."] if found > 1 else []


def _conditions(done: Runs) -> list[str]:
    """Says in what else the runs differ that may change bits, and which of them went on under other conditions."""
    known: dict[str, set[str]] = {}
    told = []
    for run in done.values():
        summary = run.summary or {}
        versions = {f"version of {name}": version for name, version in (summary.get("versions") or {}).items()}
        for name, value in {**versions, **{key: summary[key] for key in CONDITIONS if key in summary}}.items():
            known.setdefault(name, set()).add(str(value))
        if changed := {line.split(":")[0] for line in summary.get("earlier_conditions") or []}:
            told.append(
                f"{run.folder.name} went on under other conditions than it began ({', '.join(sorted(changed))})."
            )
    if differing := [name for name, values in known.items() if len(values) > 1]:
        told.insert(0, f"The runs were made under different conditions: {', '.join(differing)}.")
    return told


def similarities(result: ExperimentResult) -> tuple[dict[str, Any], Any]:
    """Reads the similarity matrices of the first seed that has some.

    Returns:
        The matrices by method, the teacher's first, and the class of their rows; neither where none are kept.
    """
    students = [method.method for method in result.methods if method.method != TEACHER]
    files = {(run.method, run.seed): run.folder / "similarity.npz" for run in result.runs if run.method in students}
    files = {key: file for key, file in files.items() if file.exists()}
    first = min((seed for _, seed in files), default=0)
    terms = {run.method: bool(run.spec.methods[run.method].terms) for run in result.runs}
    matrices: dict[str, Any] = {}
    labels = None
    for method in (method for method in students if (method, first) in files):
        arrays = read_similarities(files[method, first])
        labels = arrays["labels"]
        if "teacher" in arrays and (terms[method] or TEACHER not in matrices):  # the baseline may know another
            matrices[TEACHER] = arrays["teacher"]
        matrices[figure_name(method)] = arrays["student"]
    return {name: matrices[name] for name in sorted(matrices, key=lambda name: name != TEACHER)}, labels


def figure_name(method: str) -> str:
    """Returns a method's name as figures have it."""
    return "student alone" if method == BASELINE else method


def sign_test(differences: Sequence[float]) -> float:
    """Returns the probability of signs as uneven as these if either were as likely, two-sided; ties do not count.

    With n seeds it cannot be below 2 / 2^n: three that agree give 0.25, six 0.03.
    """
    from scipy.stats import binomtest

    signs = [difference < 0 for difference in differences if difference]
    return float(binomtest(sum(signs), len(signs)).pvalue) if signs else 1.0
