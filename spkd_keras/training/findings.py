"""What a check says: a finding has a severity, a place, what was found, and what to do."""

from typing import Literal, NamedTuple

Severity = Literal["stop", "warning", "note"]
ORDER: tuple[Severity, ...] = ("stop", "warning", "note")


class Finding(NamedTuple):
    """Something that a user should know before the hours are spent.

    Attributes:
        severity: "stop" for what cannot work, "warning" for what probably is not meant, "note" for the rest.
        place: in the experiment, such as `teacher` or `methods.sp`.
        found: what was found, with its numbers.
        advice: what to do.
    """

    severity: Severity
    place: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.found}{f' {self.advice}' if self.advice else ''}"


def worst_first(findings: list[Finding]) -> list[Finding]:
    """Returns the findings ordered by severity, and by their place among equals."""
    return sorted(findings, key=lambda finding: ORDER.index(finding.severity))
