"""Noticing that two threads use one sequence at the same time, which would leave it inconsistent."""

import functools
import threading
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from goldfinch.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")


class OneThread:
    """A guard that one thread at a time may be inside of; another is refused rather than kept waiting."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise UserError("two threads use one context at the same time: give each its own, for example a fork")

    def __exit__(self, *error: object) -> None:
        self._lock.release()


class Guarded(Protocol):
    """Has a guard."""

    guard: OneThread


G = TypeVar("G", bound=Guarded)


def one_thread(method: Callable[Concatenate[G, P], R]) -> Callable[Concatenate[G, P], R]:
    """A method that only one thread at a time may be in, together with all others of its object that have this."""

    @functools.wraps(method)
    def guarded(self: G, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.guard:
            return method(self, *args, **kwargs)

    return guarded
