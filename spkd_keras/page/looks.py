"""How methods look: the same in every figure of a section."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from spkd_keras.experiment import BASELINE, TEACHER
from spkd_keras.page.svg import INK, SERIES, SOFT
from spkd_keras.report import WeightCurve, figure_name
from spkd_keras.run_files import Run

# Of the methods: none is the student's, so that lines differ where colours cannot be seen.
MARKERS = ("s", "^", "D", "v", "P", "X", "<")
ON_AND_OFF = ((5, 1.5), (1, 1), (5, 1, 1, 1), (3, 1, 1, 1, 1, 1), (8, 2), (2, 2), (8, 1, 3, 1))
DASHES = tuple((0, lengths) for lengths in ON_AND_OFF)


class Look(NamedTuple):
    """Colour, marker and dash of what is drawn of a method, as Matplotlib takes them."""

    colour: str
    marker: str
    dash: Any


STUDENT_ALONE = Look(INK, "o", "solid")
OTHER = Look(SOFT, "p", "solid")  # the teacher, and runs that are of no method of a section


def looks_of(methods: Iterable[str]) -> dict[str, Look]:
    """Returns the look of each method, by its name as figures have it.

    Args:
        methods: in the order of their colours; the student alone and the teacher take none.
    """
    looks = {figure_name(BASELINE): STUDENT_ALONE, figure_name(TEACHER): OTHER}
    for index, method in enumerate(name for name in dict.fromkeys(methods) if name not in (BASELINE, TEACHER)):
        # Where the colours begin anew, they meet other markers and dashes.
        turned = (index + index // len(SERIES)) % len(MARKERS)
        looks[figure_name(method)] = Look(SERIES[index % len(SERIES)], MARKERS[turned], DASHES[turned])
    return looks


def methods_by_weight(curve: WeightCurve, runs: Sequence[Run]) -> dict[float, str]:
    """Returns the method that went with each weight of a curve; trials of a search may have weights of no method.

    Args:
        curve: over the weight of a term.
        runs: of the section.
    """
    if len(curve.methods) == 1:
        return dict.fromkeys(curve.errors, curve.methods[0])
    return {
        term.weight: run.method
        for run in runs
        if run.method in curve.methods
        for term in run.spec.methods[run.method].terms
        if term.loss == curve.term and term.weight in curve.errors
    }
