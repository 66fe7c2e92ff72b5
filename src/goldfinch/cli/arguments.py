"""Parsing arguments with tyro, whose errors become one line."""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

from goldfinch.errors import UserError

if TYPE_CHECKING:
    from goldfinch.config import ModelConfig

T = TypeVar("T")


def parse(command: type[T], name: str, args: list[str], **options: Any) -> T:
    """Parse the arguments of `goldfinch NAME` into its dataclass; `options` go to `tyro.cli`.

    Raises:
        UserError: an argument is missing, unknown or invalid.
        SystemExit: help was asked for and printed.
    """
    with _one_line_errors():
        return tyro.cli(command, prog=f"goldfinch {name}", args=args, **options)


def parse_known(command: type[T], name: str, args: list[str]) -> tuple[T, list[str]]:
    """As `parse`, but unknown arguments are returned instead of refused."""
    with _one_line_errors():
        return tyro.cli(command, prog=f"goldfinch {name}", args=args, return_unknown_args=True)


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn tyro's framed messages into UserErrors."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            yield
    except SystemExit as exit_:
        if not exit_.code:
            raise
        raise UserError(_one_line(complaint.getvalue())) from None


def _one_line(framed: str) -> str:
    """The text in a frame of box-drawing characters; its rules become semicolons."""
    lines = [line.strip("│╭╮╰╯─ ") for line in framed.splitlines()[1:]]  # the first line is the frame's title
    parts = [" ".join(part.split()) for part in re.split(r"\n\n", "\n".join(lines))]
    return "; ".join(part for part in parts if part)


def named_config(name: str, vocab_size: int | None = None) -> "ModelConfig":
    """The model config of a preset or of a folder.

    Args:
        name: the preset or the folder.
        vocab_size: for a preset; None for 65536.

    Raises:
        UserError: it is neither, or a folder that is given a vocabulary size.
    """
    from goldfinch.presets import WORLD_VOCABULARY, model_config

    if not Path(name).is_dir():
        try:
            return model_config(name, WORLD_VOCABULARY if vocab_size is None else vocab_size)
        except UserError as error:
            raise UserError(f"no preset or folder named {name!r}; {error}") from error
    if vocab_size is not None:
        raise UserError(f"--vocab-size is for presets: the model in {name} has its own vocabulary")
    from goldfinch.checkpoint.model_folder import read_config

    return read_config(Path(name))
