"""Checks of what users pass to the public interface: a value of the wrong type or out of range is a UserError."""

import math
import operator
import os
import re
from numbers import Real
from pathlib import Path
from typing import Any

from goldfinch.errors import UserError

_UNITS = {"": 1, "b": 1} | {
    letter + ending: base**power
    for power, letter in enumerate("kmgt", start=1)
    for ending, base in (("", 1024), ("ib", 1024), ("b", 1000))
}


def integer(name: str, value: Any, minimum: int = 0, maximum: int | None = None) -> int:
    """A whole number of any integer type, NumPy's and 0-dimensional tensors included, as an int.

    Raises:
        UserError: it is something else, or out of range.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < minimum or (maximum is not None and number > maximum):
        bounds = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        raise UserError(f"{name} must be a whole number {bounds}, not {shortened(value)}")
    return number


def real(name: str, value: Any) -> float:
    """A number of any real type, as a float; infinite ones are numbers, NaN is not.

    Raises:
        UserError: it is something else.
    """
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.nan
    if math.isnan(number):
        raise UserError(f"{name} must be a number, not {shortened(value)}")
    return number


def num_bytes(name: str, text: str, or_else: str = "") -> int:
    """The size that a text such as "2GiB" or "500 MB" says, in bytes; "k", "m", "g" and "t" alone are binary.

    Args:
        name: what it is the size of.
        text: a number and a unit.
        or_else: what else would be allowed, for the error: "auto or ".

    Raises:
        UserError: it is something else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([a-z]*)\s*", text.lower())
    if not match or match[2] not in _UNITS:
        raise UserError(f"{name} must be {or_else}a size such as 500MB or 2GiB, not {shortened(text)}")
    return int(float(match[1]) * _UNITS[match[2]])


def boolean(name: str, value: Any) -> bool:
    """True or False.

    Raises:
        UserError: it is something else, such as a text.
    """
    if not isinstance(value, bool):
        raise UserError(f"{name} must be True or False, not {shortened(value)}")
    return value


def string(name: str, value: Any) -> str:
    """A str.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(value, str):
        raise UserError(f"{name} must be a text, not {shortened(value)}")
    return value


def file_path(name: str, value: Any) -> Path:
    """A path given as a text or a path-like object.

    Raises:
        UserError: it is something else, or empty.
    """
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise UserError(f"{name} must be a path, not {shortened(value)}")
    return Path(value)


def shortened(value: object) -> str:
    """How a value is shown in an error: its `repr`, on one line and of a length that can be read."""
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
