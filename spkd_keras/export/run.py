"""What a run's folder tells of its student: networks, data, method and the accuracy over the seeds."""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from spkd_keras import data
from spkd_keras.experiment import (
    BASELINE,
    TEACHER,
    Experiment,
    ExperimentError,
    Network,
    differences,
    load_experiment,
    read_record,
)
from spkd_keras.training.build import construct, load_data
from spkd_keras.training.folder import DATA_DIGEST, LAYERS, check_same_data, images_of

PICTURES = 256  # of a data set that are read at a time


class FinishedRun:
    """A run that `spkd run` has finished.

    Args:
        folder: `runs/<experiment>/<method>-seed<k>`.

    Raises:
        ExperimentError: if it is no such folder, or the run is not finished.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.is_file() and self.folder.suffix == ".keras":
            raise ExperimentError(
                f"{self.folder} is a network's file and not a run's folder. For a network of your own, in Python: "
                "spkd_keras.export.export_student(model, 'student.onnx', 'onnx', images=...)."
            )
        if not (self.folder / "experiment.yaml").is_file():
            raise ExperimentError(
                f"{self.folder} is not a run's folder (it has no experiment.yaml). "
                "Give the one that `spkd run` wrote, runs/<name>/<method>-seed<k>."
            )
        self.experiment: Experiment = load_experiment(self.folder / "experiment.yaml")
        self.method = next(iter(self.experiment.methods))
        self.seed = self.experiment.seeds[0]
        if self.folder.resolve().name != f"{self.method}-seed{self.seed}":
            raise ExperimentError(f"{self.folder} is not a run's folder. Give runs/<name>/<method>-seed<k>.")
        summary = read_record(self.folder / "summary.json")
        if summary is None or not (self.folder / "student.keras").is_file():
            raise ExperimentError(f"The run in {self.folder} is not finished. `spkd run` continues it.")
        self.summary = summary
        self.environment = read_record(self.folder / "environment.json") or {}

    def student(self) -> keras.Model:
        """Loads the student."""
        return construct(Network(path=str(self.folder / "student.keras")), "student")

    def splits(self) -> data.Splits:
        """Loads the data that it was trained on.

        Raises:
            ExperimentError: if they are others now.
        """
        splits = load_data(self.experiment.data)
        self.check_data(splits.digest())
        return splits

    def check_data(self, digest: str) -> None:
        """Checks that it was trained on the images that there are now, of the same classes.

        Args:
            digest: of the `Splits` of now.

        Raises:
            ExperimentError: if it was not.
        """
        check_same_data(self.folder, self.environment.get(DATA_DIGEST), digest)

    def story(self) -> dict[str, Any]:
        """Returns, as plain data, what the student was distilled from and how, and what it came to."""
        experiment, method = self.experiment, self.experiment.methods[self.method]
        teacher = None if experiment.teacher is None else experiment.teacher.model_dump(exclude_defaults=True)
        return {
            "experiment": experiment.name,
            "method": self.method,
            "seed": self.seed,
            "teacher": teacher if method.terms else None,
            "teacher_fingerprint": self.summary.get("teacher_fingerprint") if method.terms else None,
            "student": experiment.student.model_dump(exclude_defaults=True),
            "student_loss_weight": method.student_loss_weight,
            "terms": self._terms(),
            "schedule": experiment.schedule.model_dump(),
            "data": {**experiment.data.model_dump(exclude_none=True), "origin": self.summary.get("data")},
            "accuracy": self._accuracies(),
            "parameters": self.summary["parameters"],
            "multiply_adds": self.summary["multiply_adds"],
            "trained_with": self.environment.get("versions", self.summary.get("versions")),
        }

    def _terms(self) -> list[dict[str, Any]]:
        """The terms with the layers that they compared; the defaults of a run that recorded none are not known."""
        terms = self.experiment.methods[self.method].terms
        compared = (self.summary.get(LAYERS) or {}).values()
        named = [{"teacher": term.teacher or "default", "student": term.student or "default"} for term in terms]
        return [
            {**term.model_dump(exclude_defaults=True), "weight": term.weight, **layers}
            for term, layers in zip(terms, compared or named, strict=True)
        ]

    def _teacher_file(self) -> Path:
        spec = self.experiment.teacher
        if spec is not None and spec.path is not None:
            return Path(spec.path)
        return self.folder.resolve().parent / f"{TEACHER}-seed0" / "student.keras"

    def _accuracies(self) -> dict[str, Any]:
        """Accuracy on the test images of this run, and of the method, the baseline and the teacher over their seeds."""
        methods = {self.method: self.method, "student alone": BASELINE, "teacher": TEACHER}
        return {
            "this_run": 1 - self.summary["test_error"],
            "over_seeds": {
                title: over for title, method in methods.items() if (over := self._over_seeds(method)) is not None
            },
        }

    def _over_seeds(self, method: str) -> dict[str, Any] | None:
        accuracies = {}
        own = self.folder.resolve().parent.glob(f"{method}-seed*")
        for folder in self._teacher_run() if method == TEACHER else own:
            summary = read_record(folder / "summary.json") or {}
            if summary.get("method") == method and (method == TEACHER or self._is_alike(folder, method, summary)):
                accuracies[int(summary["seed"])] = 1 - summary["test_error"]
        if not accuracies:
            return None
        values = list(accuracies.values())
        return {
            "seeds": sorted(accuracies),
            "median": statistics.median(values),
            "lowest": min(values),
            "highest": max(values),
        }

    def _teacher_run(self) -> list[Path]:
        """The folder of the run that trained the teacher, if its summary is of that network and of these images."""
        file = self._teacher_file()
        images = self.environment.get(DATA_DIGEST)
        return [file.parent] if file.name == "student.keras" and images_of(file) in (None, images) else []

    def _is_alike(self, folder: Path, method: str, summary: dict[str, Any]) -> bool:
        """Whether a run is of this one's settings and teacher; the baseline has no terms and asks no teacher."""
        with_terms = method == self.method and bool(self.experiment.methods[method].terms)
        ignored = ("seeds", "teacher.path") if with_terms else ("seeds", "teacher", "methods")
        found = differences(self.experiment, load_experiment(folder / "experiment.yaml"))
        if any(not line.startswith(ignored) for line in found):
            return False
        known = "teacher_fingerprint"
        return not with_terms or summary.get(known) == self.summary.get(known)


def in_batches(images: data.AnyImages, count: int) -> Iterator[np.ndarray]:
    """Yields the pixels of images, `count` at a time, as they are evaluated."""
    for pixels, _ in data.evaluation_batches(images, count):
        yield np.asarray(pixels)


def some(images: data.AnyImages, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels and labels of images that lie evenly over a data set."""
    count = min(count, len(images))
    chosen = images.take(np.linspace(0, len(images) - 1, count).round().astype(int))
    return np.concatenate(list(in_batches(chosen, PICTURES))), chosen.labels


def resize_of(images: data.AnyImages) -> str:
    """Returns how a data set brings its pictures to the size of the input, as in `Metadata`."""
    return "crop" if isinstance(images, data.Photos) else "stretch"
