"""Stopping a run between two steps when the user asks for it."""

import contextlib
import signal
import threading
from collections.abc import Iterator

from goldfinch.errors import UserError


class Interrupted(UserError):
    """The user stopped the run (Ctrl-C or SIGTERM); its state is saved."""

    exit_code = 130


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C and SIGTERM set, instead of interrupting a step.

    A second Ctrl-C interrupts immediately. Outside the main thread, where signals cannot be caught, it is never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, _frame: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
