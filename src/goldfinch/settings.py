"""Reading settings: dataclasses from plain JSON or YAML types, merging, and hints for misspelt names."""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from goldfinch.argument_checks import shortened
from goldfinch.errors import UserError

T = TypeVar("T")


def from_plain(cls: type[T], values: object, prefix: str = "") -> T:
    """Build a dataclass, and the dataclasses inside it, from plain JSON or YAML types.

    Numbers may be written as text, as YAML makes of 3e-4.

    Args:
        cls: a dataclass whose fields are numbers, booleans, text, paths, literals, tuples of text and dataclasses.
            A single text is accepted for a tuple of texts.
        values: field name -> value.
        prefix: of the field names in messages.

    Raises:
        UserError: a field is unknown, missing or of another type, or the dataclass refuses the values.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{prefix.rstrip('.') or 'the config'} must be a mapping of fields, not {shortened(values)}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # `type[T]` cannot say: a dataclass
    for name in values:
        if name not in fields:
            raise UserError(f"unknown field {prefix}{name}; {did_you_mean(str(name), list(fields))}")
    missing = [name for name, f in fields.items() if f.default is dataclasses.MISSING and name not in values]
    if missing:
        raise UserError(f"the config lacks {', '.join(prefix + name for name in missing)}")
    hints = get_type_hints(cls)
    return cls(**{name: _convert(hints[name], value, prefix + name) for name, value in values.items()})


def convert_fields(settings: Any, prefix: str = "") -> None:
    """Give each field of a frozen dataclass its type, for `__post_init__`: as `from_plain` does, whoever builds it.

    Raises:
        UserError: a value is of another type.
    """
    for name, hint in get_type_hints(type(settings)).items():
        object.__setattr__(settings, name, _convert(hint, getattr(settings, name), prefix + name))


def _convert(hint: Any, value: Any, name: str) -> Any:
    """`value` as the type of a field, or a UserError that names the field."""
    origin = get_origin(hint)
    if origin is UnionType:  # of one type and None
        return None if value is None else _convert(get_args(hint)[0], value, name)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_plain(hint, value, name + ".")  # type: ignore[arg-type]  # a class here, never an instance
    if hint == tuple[str, ...] and isinstance(value, (str, Path)):
        value = [value]
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(get_args(hint)[0], item, name) for item in value)
    if origin is Literal:
        if value not in get_args(hint):
            raise UserError(f"unknown {name} {shortened(value)}; {did_you_mean(str(value), list(get_args(hint)))}")
        return value
    if hint in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if (hint is float and not math.isnan(number)) or number.is_integer():
            return value if type(value) is hint else hint(number)  # a large int is not exact as a float
    elif (hint in (str, Path) and isinstance(value, (str, Path))) or (hint is bool and isinstance(value, bool)):
        return hint(value)
    kinds = {int: "a whole number", float: "a number", bool: "true or false"}
    wanted = kinds.get(hint, "a list" if origin is tuple else "text")
    raise UserError(f"{name} must be {wanted}, not {shortened(value)}")


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Settings over settings: `above` wins, mappings inside are merged likewise."""
    both = {
        name: merge(below[name], value)
        if isinstance(value, Mapping) and isinstance(below.get(name), Mapping)
        else value
        for name, value in above.items()
    }
    return {**below, **both}


def did_you_mean(word: str, known: list[str]) -> str:
    """A hint: the nearest known word, or all of them."""
    near = nearest(word, known)
    return f"did you mean {near}?" if near else f"known: {', '.join(known)}"


def nearest(word: str, known: list[str]) -> str | None:
    """The known word that is spelt most like `word`; None if none is close."""
    return next(iter(difflib.get_close_matches(word, known, n=1)), None)
