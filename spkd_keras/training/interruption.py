"""Being told to stop: Ctrl-C, or the SIGTERM of a machine that is taken away."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal ended the runs; what was done is kept. `exit_code` is 128 + the signal's number, as shells have it."""

    def __init__(self, number: int) -> None:
        self.exit_code = 128 + number
        super().__init__(f"Interrupted by {signal.Signals(number).name}.")


class Interruption:
    """Raises `Interrupted` when a signal comes: at once, or where the training asks so that it can write its state.

    Args:
        patient: whether to wait for the state after a second signal too. Otherwise that ends the training without it.
    """

    def __init__(self, patient: bool = False) -> None:
        self.patient = patient
        self.received: int | None = None
        self._deferred = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals over; in another thread than the main one, where Python allows none, it does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._take) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, a signal only sets `received`; whoever sees that writes its state and calls `stop`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.stop()

    def stop(self) -> None:
        """Raises `Interrupted` if a signal came.

        Raises:
            Interrupted: if so.
        """
        if self.received is not None:
            raise Interrupted(self.received)

    def _take(self, number: int, frame: Any) -> None:
        del frame
        again, self.received = self.received is not None, number
        if not self._deferred or (again and not self.patient):
            raise Interrupted(number)
