"""What others reported for an experiment's methods."""

from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Published(BaseModel):
    """Numbers that stand beside the measured ones in a report.

    Attributes:
        source: where they were printed.
        test_error: in percent, by method; the teacher's as `teacher`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    source: str = Field(min_length=1)
    test_error: dict[str, Annotated[float, Field(ge=0, le=100)]] = Field(min_length=1)

    def of(self, methods: Iterable[str]) -> "Published | None":
        """Returns what is about these methods; None if nothing is."""
        errors = {name: error for name, error in self.test_error.items() if name in set(methods)}
        return self.model_copy(update={"test_error": errors}) if errors else None
