"""Arguments to settings, and tyro's framed complaints to one line."""

import contextlib
import io
import re
from typing import Any, TypeVar

import tyro

from goldfinch.errors import UserError

T = TypeVar("T")


def parse(command: type[T], name: str, args: list[str], **options: Any) -> T:
    """Parse the arguments of `goldfinch NAME` into its dataclass; `options` go to `tyro.cli`.

    Raises:
        UserError: an argument is missing, unknown or does not fit.
        SystemExit: help was asked for and printed.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(command, prog=f"goldfinch {name}", args=args, **options)
    except SystemExit as exit_:
        if not exit_.code:
            raise
        raise UserError(_one_line(complaint.getvalue())) from None


def _one_line(framed: str) -> str:
    """The text in a frame of box-drawing characters; its rules become semicolons."""
    lines = [line.strip("│╭╮╰╯─ ") for line in framed.splitlines()[1:]]  # the first line is the frame's title
    parts = [" ".join(part.split()) for part in re.split(r"\n\n", "\n".join(lines))]
    return "; ".join(part for part in parts if part)
