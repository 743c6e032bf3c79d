"""Keeping a model out of Keras' sight."""

from typing import Any


class UntrackedTeacher:
    """Mixin for a `keras.Model` whose attribute `teacher`, a property, is neither trained nor saved with it.

    Needed by Keras 3.12 to 3.15: Keras tracks every layer that is assigned to an attribute before a property's setter
    runs, and saves every layer that it finds in `dir()`.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "teacher":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if name != "teacher"]
