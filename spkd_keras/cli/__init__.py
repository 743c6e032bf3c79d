"""The command line `spkd`. Imports what is heavy inside the commands."""

from spkd_keras.cli.first_moments import interruptible

with interruptible():
    from spkd_keras.cli import (  # noqa: F401  (their commands are part of the app)
        cache,
        check,
        datasets,
        exports,
        frontiers,
        methods,
        networks,
        predictions,
        runs,
        searches,
    )
    from spkd_keras.cli.app import app

__all__ = ["app", "main"]


def main() -> None:
    """Runs the command line."""
    app(prog_name="spkd")
