"""What all commands share: where they print, how TensorFlow starts, and how they end."""

import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from typing import Any

import typer
from rich.console import Console

from spkd_keras.cli.first_moments import INTERRUPTED
from spkd_keras.experiment import ClearError, ExperimentError
from spkd_keras.messages import named

DONE, FAILED, WRONG_USE = 0, 1, 2

answers = Console()
notices = Console(stderr=True)
show_tracebacks = False


def say(line: str) -> None:
    """Prints a line of the answer as it is: names in it may look like markup, and a terminal breaks long ones."""
    answers.print(line, markup=False, highlight=False, soft_wrap=True)


def notice(line: str) -> None:
    """Prints a line beside the answer, as it is."""
    notices.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def starting_tensorflow() -> Iterator[None]:
    """Imports TensorFlow without what it prints meanwhile, which is for its developers, and says that it starts.

    Raises:
        ExperimentError: if Keras is told to use another backend.
    """
    _choose_backend()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what TensorFlow's C++ code logs; its exceptions stay
    for name in ("tensorflow", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with notices.status("Starting TensorFlow"):
        with quiet_standard_error():
            import tensorflow  # noqa: F401
        yield


def _choose_backend() -> None:
    """Has Keras use TensorFlow, whatever the user's keras.json says for other programs."""
    backend = os.environ.get("KERAS_BACKEND") or "tensorflow"  # Keras ignores an empty one too
    if backend != "tensorflow":
        raise ExperimentError(
            f"spkd needs Keras' TensorFlow backend. Received: KERAS_BACKEND={backend}. Unset it, or set "
            "KERAS_BACKEND=tensorflow."
        )
    os.environ["KERAS_BACKEND"] = backend


def keras_prints_to_stderr() -> AbstractContextManager[Any]:
    """Keeps what Keras prints, such as the progress of a download, out of the answer on standard output."""
    return redirect_stdout(sys.stderr)


@contextmanager
def quiet_standard_error() -> Iterator[None]:
    """Holds back what is written to file descriptor 2, by C++ code too.

    It is shown if there is an error that it may explain: not if the error's own line is clear, or after Ctrl-C.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception as error:
            if not isinstance(error, ExperimentError | ClearError | FloatingPointError):
                held.seek(0)
                os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Ends with one line and an exit code instead of a traceback."""
    try:
        yield
    except ExperimentError as error:
        _fail(str(error), WRONG_USE, error)
    except KeyboardInterrupt as error:
        # `Interrupted` of a run knows which signal it was and keeps its state; a plain Ctrl-C keeps nothing.
        code = getattr(error, "exit_code", None)
        goes_on = "" if code is None else " The same command continues where it stopped."
        _fail(f"{str(error) or 'Interrupted.'}{goes_on}", code or INTERRUPTED, error)
    except (typer.Exit, typer.Abort):
        raise
    except (ClearError, FloatingPointError) as error:
        _fail(str(error), FAILED, error)
    except Exception as error:
        _fail(f"{named(error)} (`spkd --traceback ...` shows where)", FAILED, error)


def _fail(message: str, code: int, error: BaseException) -> None:
    if show_tracebacks:
        traceback.print_exception(error)
    for line in message.splitlines():
        print(f"spkd: {line}", file=sys.stderr)
    raise typer.Exit(code)
