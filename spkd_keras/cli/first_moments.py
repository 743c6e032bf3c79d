"""Ctrl-C while Python imports the commands, before any of them can answer it. Imports nothing that takes time."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 130  # as shells have it: 128 + the number of SIGINT


@contextmanager
def interruptible() -> Iterator[None]:
    """Has Ctrl-C end the program `spkd` with its line and exit code instead of a traceback of imports.

    Another program that imports the commands keeps its own handling, and a Ctrl-C that is ignored stays so.
    """
    if not _is_program() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_program() -> bool:
    program = os.path.realpath(sys.argv[0])
    package = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    return os.path.basename(program) == "spkd" or program == os.path.join(package, "__main__.py")


def _end(number: int, frame: Any) -> None:
    os.write(2, b"spkd: Interrupted.\n")
    os._exit(INTERRUPTED)  # an exception could be taken for one of the import that it falls into
