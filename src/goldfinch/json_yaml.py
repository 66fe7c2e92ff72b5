"""Reading JSON and YAML that may be damaged or made to do harm: either plain values, or one line of what is wrong.

Refused are deep nesting, duplicate keys, NaN and infinite numbers, YAML aliases, which can stand for more than memory
holds, and files that are far larger than what is read from them can be.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from goldfinch.errors import UserError
from goldfinch.files import one_line

MAX_BYTES = 1 << 24
"""Of a file, unless the caller expects larger ones."""


def read_json(path: Path, max_bytes: int = MAX_BYTES) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: it is missing, too large, cannot be read, or is not JSON.
    """
    text = read_text(path, max_bytes)
    try:
        return parse_json(text)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {one_line(error)}") from error


def read_yaml(path: Path, max_bytes: int = MAX_BYTES) -> Any:
    """The content of a YAML file; JSON is YAML.

    Raises:
        UserError: it is missing, too large, cannot be read, or is not YAML.
    """
    text = read_text(path, max_bytes)
    try:
        return yaml.load(text, _PlainLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is not valid YAML: {one_line(error)}") from error
    except RecursionError:
        raise UserError(f"{path} is not valid YAML: it is nested too deeply") from None


def read_text(path: Path, max_bytes: int = MAX_BYTES) -> str:
    """The content of a small text file.

    Raises:
        UserError: it is missing, too large, cannot be read, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > max_bytes:
        raise UserError(f"{path} has more than {max_bytes:,} bytes: it is another kind of file")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text, at byte {error.start}") from error


def parse_json(text: str | bytes) -> Any:
    """Plain values from JSON.

    Raises:
        ValueError: it is not JSON, or nested too deeply, or has a duplicate key or a number that is NaN or infinite.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise _duplicate_key(name for name, _ in pairs)
    return result


def _duplicate_key(names: Iterable[str]) -> ValueError:
    ((name, _),) = Counter(names).most_common(1)
    return ValueError(f"the key {name[:80]!r} occurs twice")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


class _PlainLoader(yaml.SafeLoader):
    """Without aliases and duplicate keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("aliases (*name) are not supported: write the values out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(names)) < len(names):
            raise _duplicate_key(names)
        return super().construct_mapping(node, deep)
