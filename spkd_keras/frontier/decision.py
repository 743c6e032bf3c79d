"""Which students are worth having, and which is the smallest that is good enough. Plain numbers; no TensorFlow."""

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from spkd_keras.experiment import BASELINE, ExperimentError
from spkd_keras.report import compared

SIZES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
TIMES = {"us": 1e-3, "ms": 1.0, "s": 1e3}  # in milliseconds


class Candidate(NamedTuple):
    """A student with a method, over the seeds.

    Attributes:
        student: its name.
        method: it was trained by.
        seeds: of its runs.
        errors: on the held-out images for each seed, fractions.
        differences: error less the baseline's of the same student and seed; empty for the baseline, or without one.
        parameters: of the network.
        multiply_adds: of the network, for one image.
        bytes: of the exported model for each seed.
        latencies: of the exported model for one image, in milliseconds, median of many, for each seed.
        failed: how many other seeds were not trained and exported.
        baselines_failed: how many seeds of the baseline, to compare with, were not.
    """

    student: str
    method: str
    seeds: list[int]
    errors: list[float]
    differences: list[float]
    parameters: int
    multiply_adds: int
    bytes: list[int]
    latencies: list[float]
    failed: int = 0
    baselines_failed: int = 0

    @property
    def error(self) -> float:
        """The median error."""
        return statistics.median(self.errors)

    @property
    def size(self) -> int:
        """Bytes of the largest export."""
        return max(self.bytes)

    @property
    def latency(self) -> float:
        """The median latency."""
        return statistics.median(self.latencies)

    @property
    def failures(self) -> str:
        """How many of its seeds failed, in words."""
        return f"{self.failed} of {len(self.seeds) + self.failed} seeds failed"

    @property
    def title(self) -> str:
        """Student and method, in words."""
        return titled(self.student, self.method)


def titled(student: str, method: str) -> str:
    """Returns a student and a method, in words."""
    return f"{student}, {'the student alone' if method == BASELINE else method}"


COSTS: dict[str, Callable[[Candidate], float]] = {
    "parameters": lambda candidate: candidate.parameters,
    "multiply-adds": lambda candidate: candidate.multiply_adds,
    "exported bytes": lambda candidate: candidate.size,
    "latency, ms": lambda candidate: candidate.latency,
}


class Constraints(NamedTuple):
    """What is good enough.

    Attributes:
        drop: points of error that a student may be above its teacher.
        size: bytes that its export may have; None for any.
        latency: milliseconds that its export may take for one image; None for any.
    """

    drop: float
    size: int | None = None
    latency: float | None = None

    def worst_error(self, teacher_error: float) -> float:
        """The largest error that will do, a fraction."""
        return teacher_error + self.drop / 100

    def limits(self) -> dict[str, float]:
        """The most that the costs may be, by their names in `COSTS`."""
        limits = {"exported bytes": self.size, "latency, ms": self.latency}
        return {cost: float(limit) for cost, limit in limits.items() if limit is not None}

    def excesses(self, candidate: Candidate, teacher_error: float) -> dict[str, tuple[float, str]]:
        """Returns what a candidate has too much of: as a share of what is allowed, and in words.

        What a seed that failed would have come to is not known: such a candidate is not good enough.
        """
        found = {}
        if candidate.failed:
            found["seeds"] = candidate.failed / (len(candidate.seeds) + candidate.failed), candidate.failures
        # Rounding aside: 0.025 + 1 / 100 is a little below 0.035.
        above = 100 * (candidate.error - teacher_error) - self.drop
        if above > 1e-9:
            found["error"] = above / max(self.drop, 1.0), f"an error that is {above:.2f} points too high"
        if self.size is not None and candidate.size > self.size:
            found["size"] = candidate.size / self.size - 1, f"{candidate.size - self.size:,} bytes too many"
        if self.latency is not None and candidate.latency > self.latency:
            over = candidate.latency - self.latency
            found["latency"] = candidate.latency / self.latency - 1, f"{over:.3g} ms too long"
        return found

    def words(self, teacher_error: float) -> str:
        """Says what is asked for."""
        worst = self.worst_error(teacher_error)
        parts = [
            f"a validation error of at most {100 * worst:.2f}%, {self.drop:g} points above the teacher's "
            f"{100 * teacher_error:.2f}%"
        ]
        parts += [f"at most {self.size:,} bytes"] if self.size is not None else []
        parts += [f"at most {self.latency:g} ms"] if self.latency is not None else []
        return "; ".join(parts)


class Decision(NamedTuple):
    """The answer.

    Attributes:
        met: whether a student is good enough.
        chosen: the smallest that is, or the one that comes nearest; None if there are no students.
        sentences: the answer in words.
    """

    met: bool
    chosen: Candidate | None
    sentences: list[str]


def decide(
    candidates: Sequence[Candidate], teacher_error: float, constraints: Constraints, lost: Sequence[str] = ()
) -> Decision:
    """Finds the smallest student that is good enough: the fewest parameters, then multiply-adds, then the least error.

    Where there is none, the nearest is the one whose excesses, as shares of what is allowed, have the smallest sum (of
    the error, in units of the allowed drop, or of a point where that is less; of seeds, those that failed).

    Args:
        candidates: each student with each method.
        teacher_error: on the held-out images, a fraction.
        constraints: what is good enough.
        lost: titles of those of which every seed failed.
    """
    asked = constraints.words(teacher_error)
    if not candidates:
        return Decision(False, None, ["No student was trained and exported."])
    excesses = {index: constraints.excesses(candidate, teacher_error) for index, candidate in enumerate(candidates)}
    good = [candidate for index, candidate in enumerate(candidates) if not excesses[index]]
    if good:
        chosen = min(good, key=lambda c: (c.parameters, c.multiply_adds, c.error))
        head = f"The smallest student with {asked}: {_described(chosen)}."
        return Decision(True, chosen, [head, *_comparisons(chosen, candidates), *_failures(candidates, excesses, lost)])
    shares = {index: sum(share for share, _ in found.values()) for index, found in excesses.items()}
    nearest = min(shares, key=lambda i: (round(shares[i], 9), candidates[i].parameters, candidates[i].error))
    chosen = candidates[nearest]
    lacks = ", ".join(words for _, words in excesses[nearest].values())
    head = f"None of the {len(candidates)} has {asked}. Nearest comes {_described(chosen)}: {lacks}."
    # Of the nearest it is said what it lacks.
    others = {index: found for index, found in excesses.items() if index != nearest}
    return Decision(False, chosen, [head, *_comparisons(chosen, candidates), *_failures(candidates, others, lost)])


def _failures(
    candidates: Sequence[Candidate], excesses: Mapping[int, Mapping[str, Any]], lost: Sequence[str]
) -> list[str]:
    """Says of which students the answer would be another, had their seeds not failed."""
    partly = [candidates[index] for index, found in excesses.items() if set(found) == {"seeds"}]
    lines = [f"{one.title} would do, but {one.failures}: it is not counted as good enough." for one in partly]
    return [*lines, *(f"{title} has no part in this: all its seeds failed." for title in lost)]


def pareto(candidates: Sequence[Candidate], cost: str) -> list[Candidate]:
    """Returns the candidates that no other undercuts in error and cost, the cheapest first.

    One undercuts another that has no less of either, and more of one.
    """
    of = COSTS[cost]

    def undercut(one: Candidate) -> bool:
        return any(
            of(other) <= of(one) and other.error <= one.error and (of(other), other.error) != (of(one), one.error)
            for other in candidates
        )

    return sorted((one for one in candidates if not undercut(one)), key=of)


def _described(candidate: Candidate) -> str:
    count = len(candidate.seeds)
    return (
        f"{candidate.title}, {percent_range(candidate.errors)} over {count} seed{'s' if count > 1 else ''}, "
        f"{candidate.parameters:,} parameters, {candidate.size:,} bytes, {candidate.latency:.3g} ms"
    )


def percent_range(errors: Sequence[float]) -> str:
    """Returns the median of fractions as a percentage, and their range."""
    median, low, high = (f"{100 * value:.2f}" for value in (statistics.median(errors), min(errors), max(errors)))
    return f"{median}%" + (f" ({low} to {high})" if low != high else "")


def _comparisons(chosen: Candidate, candidates: Sequence[Candidate]) -> list[str]:
    """Says of the chosen student's methods whether they beat the student alone, the chosen method first."""
    others = [one for one in candidates if one.student == chosen.student and one.method != BASELINE]
    if not others:
        return [f"No other method was trained for {chosen.student}."]
    failed = max(one.baselines_failed for one in others)
    own = sorted((one for one in others if one.differences), key=lambda one: one.method != chosen.method)
    if not own and not failed:
        return [f"There is no baseline to compare with: add `{BASELINE}: []` to the methods."]
    baseline = f"the same-seed baseline of {chosen.student}"
    lines = [compared(one.differences, one.method, baseline) for one in own]
    if failed:
        of = len(others[0].seeds) + others[0].failed
        rest = "" if own else ": there is no seed to compare by"
        lines.append(f"The student alone failed with {failed} of {of} seeds{rest}.")
    return lines


def read_size(text: str) -> int:
    """Reads a size, `2MB`.

    Raises:
        ExperimentError: if it is none, or less than a byte.
    """
    size = int(_read("--size", text, SIZES, "2MB"))
    if size < 1:
        raise ExperimentError(f"--size must be at least 1B. Received: {text}.")
    return size


def read_latency(text: str) -> float:
    """Reads a time, `5ms`, as milliseconds.

    Raises:
        ExperimentError: if it is none.
    """
    return _read("--latency", text, TIMES, "5ms")


def _read(option: str, text: str, units: Mapping[str, float], example: str) -> float:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z]+)\s*", text)
    if not found or found[2] not in units or not float(found[1]) > 0:
        raise ExperimentError(
            f"{option} takes a number above 0 and a unit of {', '.join(units)}, for example {example}. "
            f"Received: {text}."
        )
    return float(found[1]) * units[found[2]]


def as_plain(candidate: Candidate) -> dict[str, Any]:
    """Returns a candidate as plain data, with its medians."""
    return {**candidate._asdict(), "error": candidate.error, "size": candidate.size, "latency": candidate.latency}
