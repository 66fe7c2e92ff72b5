"""Parsing arguments with tyro, whose errors become one line."""

import contextlib
import dataclasses
import io
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tyro
from tyro.constructors import PrimitiveConstructorSpec, PrimitiveTypeInfo

from goldfinch.cli import usage
from goldfinch.errors import UserError
from goldfinch.file_kinds import hint, require_model_folder
from goldfinch.inference.grammar import Grammar
from goldfinch.pretrained import find_model, pretrained_names
from goldfinch.settings import nearest

if TYPE_CHECKING:
    from goldfinch.config import ModelConfig

T = TypeVar("T")


def parse(command: type[T], name: str, args: list[str], **options: Any) -> T:
    """Parse the arguments of `goldfinch NAME` into its dataclass; `options` go to `tyro.cli`.

    Raises:
        UserError: an argument is missing, unknown or invalid.
        SystemExit: help was asked for and printed.
    """
    options.setdefault("registry", plain_metavars())
    return _run_tyro(command, name, args, options)


def parse_known(command: type[T], name: str, args: list[str]) -> tuple[T, list[str]]:
    """As `parse`, but unknown arguments are returned instead of refused."""
    return _run_tyro(command, name, args, {"registry": plain_metavars(), "return_unknown_args": True})


def _run_tyro(command: Any, name: str, args: list[str], options: dict[str, Any]) -> Any:
    """`tyro.cli`, with help and errors as `usage` writes them."""
    outcome = _captured(command, name, args, options)
    if not isinstance(outcome, _Refused):
        return outcome.value
    if not outcome.code:
        print(usage.format_help(outcome.output, shutil.get_terminal_size().columns))
        raise SystemExit(0)
    subcommand = _subcommand(command, name, args, options)
    prog = " ".join(["goldfinch", name, *subcommand])
    shown = _captured(command, name, [*subcommand, "--help"], options)
    plain_help = shown.output if isinstance(shown, _Refused) else ""
    own = [] if options.get("return_unknown_args") else args
    raise UserError(usage.explain(outcome.errors, prog, own, plain_help))


@dataclasses.dataclass(frozen=True)
class _Parsed:
    value: Any


@dataclasses.dataclass(frozen=True)
class _Refused:
    """What tyro printed before it exited."""

    code: int
    output: str
    errors: str


def _captured(command: Any, name: str, args: list[str], options: dict[str, Any]) -> _Parsed | _Refused:
    """`tyro.cli`, with what it prints."""
    output, errors = io.StringIO(), io.StringIO()
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(usage.COLUMNS)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            value = tyro.cli(command, prog=f"goldfinch {name}", args=args, **options)
    except SystemExit as exit_:
        return _Refused(int(exit_.code or 0), output.getvalue(), errors.getvalue())
    finally:
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns
    sys.stderr.write(errors.getvalue())
    return _Parsed(value)


def _subcommand(command: Any, name: str, args: list[str], options: dict[str, Any]) -> list[str]:
    """The first argument, if it is a subcommand."""
    shown = _captured(command, name, ["--help"], options)
    return args[:1] if isinstance(shown, _Refused) and args[:1] and args[0] in usage.subcommands(shown.output) else []


def plain_metavars() -> tyro.constructors.ConstructorRegistry:
    """How values are given and shown in help: INT for an optional number, STR ... for several, ID=BIAS ... for biases,
    FILE for a grammar.

    tyro by itself shows {None}|INT, [STR [STR ...]] and [INT FLOAT [INT FLOAT ...]].
    """
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        kind = next((kind for kind in _KINDS if info.type == kind | None), None)
        if kind is None:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=_KINDS[kind],
            instance_from_str=lambda words: None if words[0] == "None" else _convert(kind, words[0]),
            is_instance=lambda value: value is None or isinstance(value, kind),
            str_from_instance=lambda value: ["none" if value is None else str(value)],
        )

    @registry.primitive_rule
    def several(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        # mypy takes tuple[kind, ...] for a type, in which no variable may stand; here it is a value to compare with.
        kind = next((kind for kind in _KINDS if info.type == tuple[kind, ...]), None)  # type: ignore[valid-type]
        if info.type == tuple[str | int, ...]:  # stop strings; token ids are for Python
            kind = str
        if kind is None or tyro.conf.UseAppendAction in info.markers:
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar=f"{_KINDS[kind]} ...",
            instance_from_str=lambda words: tuple(_convert(kind, word) for word in words),
            is_instance=lambda value: isinstance(value, tuple),
            str_from_instance=lambda value: [str(each) for each in value] or ["none"],
        )

    @registry.primitive_rule
    def grammar(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        if info.type != Grammar | None:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="FILE",
            instance_from_str=lambda words: Grammar.read(Path(words[0])),
            is_instance=lambda value: isinstance(value, Grammar | None),
            str_from_instance=lambda value: ["none" if value is None else value.source],
        )

    @registry.primitive_rule
    def biases(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        if info.type != Mapping[int, float]:
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="ID=BIAS ...",
            instance_from_str=lambda words: dict(map(_bias, words)),
            is_instance=lambda value: isinstance(value, Mapping),
            str_from_instance=lambda value: [f"{token}={bias:g}" for token, bias in value.items()] or ["none"],
        )

    return registry


_KINDS: dict[type, str] = {str: "STR", int: "INT", float: "FLOAT", Path: "PATH"}


def _convert(kind: type, word: str) -> Any:
    try:
        return kind(word)
    except ValueError:
        wanted = "an integer" if kind is int else "a number"
        raise ValueError(f"{word!r} is not {wanted}") from None


def _bias(word: str) -> tuple[int, float]:
    token, _, bias = word.partition("=")
    return _convert(int, token), _convert(float, bias)


def require_path(path: Path, names: Sequence[str] = ()) -> None:
    """Check that a file or folder exists, before anything slow is imported to read it.

    Args:
        path: the file or folder.
        names: what could be meant besides files and folders.

    Raises:
        UserError: it does not; names the one with the nearest name.
    """
    if path.exists():
        return
    folder = path.parent
    found = [each.name for each in folder.iterdir()] if folder.is_dir() else []
    near = nearest(path.name, [*names, *found])
    raise UserError(f"{path} does not exist" + (f"; did you mean {folder / near}?" if near else ""))


def require_source(path: Path) -> Path:
    """Find a model folder or a .pth file, and check that it exists, likewise.

    Args:
        path: it, or a name that `find_model` knows.

    Raises:
        UserError: there is no such model.
    """
    source = find_model(path)
    require_path(source, pretrained_names())
    return source


def require_model(path: Path) -> Path:
    """Find the folder of a model, and check that it has a config, likewise.

    Args:
        path: the folder, or a name that `find_model` knows.

    Raises:
        UserError: there is no such model.
    """
    folder = require_source(path)
    require_model_folder(folder)
    return folder


def named_config(name: str, vocab_size: int | None = None) -> "ModelConfig":
    """The model config of a preset, or of what `find_model` finds.

    Args:
        name: the preset, the folder, or the name of the pretrained model.
        vocab_size: for a preset; None for 65536.

    Raises:
        UserError: it is none of them, or a vocabulary size is given for something else than a preset.
    """
    from goldfinch.presets import WORLD_VOCABULARY, model_config

    folder = find_model(Path(name), config_only=True)
    if not folder.is_dir():
        try:
            return model_config(name, WORLD_VOCABULARY if vocab_size is None else vocab_size)
        except UserError as error:
            if "/" in name or hint(folder):
                require_path(folder)
                raise UserError(f"{name} is not a model folder{hint(folder)}") from error
            raise UserError(f"{error} (nor is there a folder of this name)") from error
    if vocab_size is not None:
        raise UserError(f"--vocab-size is for presets: the model in {name} has its own vocabulary")
    from goldfinch.checkpoint.model_folder import read_config

    return read_config(folder)
