"""What a generated text must match: a JSON schema, a regular expression or a grammar, as values that need no torch."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from goldfinch.argument_checks import shortened, string
from goldfinch.errors import UserError
from goldfinch.files import one_line
from goldfinch.json_yaml import parse_json, read_text

if TYPE_CHECKING:
    from llguidance import LLParserLimits

Kind = Literal["json_schema", "regex", "lark"]
NAMES: dict[Kind, str] = {"json_schema": "JSON schema", "regex": "regular expression", "lark": "Lark grammar"}
SUFFIXES: dict[str, Kind] = {".json": "json_schema", ".lark": "lark"}
WHITESPACE = r"( |\n{1,2}[ \t]{0,20})"
"""Between the tokens of JSON: one line or indented. Bounded, or a weak model would write nothing else for ever."""
# llguidance compiles by recursion: chains of references that are half again as long overflow a thread's stack of 8 MiB.
MAX_SCHEMA_DEPTH = 1000
MAX_RULES = 1000
MAX_PLACES = 200
"""Parts of a schema that are tried to find the one with the mistake."""


@dataclasses.dataclass(frozen=True)
class Grammar:
    """What a generated text must match from its first character to its last; `Sampling.grammar`.

    Only tokens with which the text can still become a match are sampled, the end of text only where it is one, and
    generation stops where nothing can follow. Needs the package llguidance.

    >>> Grammar.regex("(yes|no)")
    Grammar(kind='regex', source='(yes|no)')
    >>> ages = Grammar.json_schema({"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]})
    >>> digits = Grammar.lark('start: DIGIT+\\nDIGIT: "0".."9"')

    Args:
        kind: "json_schema"; "regex", in the syntax of Rust's crate regex; or "lark", llguidance's form of Lark.
        source: its text.

    Raises:
        UserError: `source` has a mistake, which is named with its place; or llguidance is not installed.
    """

    kind: Kind
    source: str

    def __post_init__(self) -> None:
        if self.kind not in NAMES:
            raise UserError(f"the kind of a grammar must be one of {', '.join(NAMES)}, not {shortened(self.kind)}")
        string(f"a {NAMES[self.kind]}", self.source)
        if self.kind == "json_schema":
            _check_json(self.source)
        elif self.kind == "lark" and self.source.count(":") > MAX_RULES:
            raise UserError(
                f"the Lark grammar has more than {MAX_RULES:,} colons, so perhaps as many rules: shorten it"
            )
        try:
            error = _error(self.to_llguidance())
        except ValueError as refused:
            error = str(refused)
        if error:
            raise UserError(self._explain(error))

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> "Grammar":
        """JSON that is valid under a schema, given as plain values or as JSON text. Keys come in the schema's order.

        Keywords that cannot be enforced while a text is being written, such as "not" and "uniqueItems", are refused.

        Raises:
            UserError: as the class, or `schema` is not JSON.
        """
        if isinstance(schema, str):
            return cls("json_schema", schema)
        if not isinstance(schema, Mapping):
            raise UserError(f"a JSON schema must be a dict or a JSON text, not {shortened(schema)}")
        try:
            source = json.dumps(dict(schema), ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"the JSON schema cannot be written as JSON: {one_line(error)}") from error
        return cls("json_schema", source)

    @classmethod
    def json_object(cls) -> "Grammar":
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> "Grammar":
        """What a regular expression matches as a whole."""
        return cls("regex", pattern)

    @classmethod
    def lark(cls, rules: str) -> "Grammar":
        """What the rule `start` of a grammar matches."""
        return cls("lark", rules)

    @classmethod
    def read(cls, path: Path) -> "Grammar":
        """The grammar in a file: a JSON schema (.json) or a Lark grammar (.lark).

        Raises:
            UserError: as the class, the file cannot be read, or it has another ending.
        """
        if path.suffix not in SUFFIXES:
            known = " or ".join(f"{NAMES[kind]} ({suffix})" for suffix, kind in SUFFIXES.items())
            raise UserError(f"{path} must be a {known}: rename it")
        source = read_text(path)
        try:
            return cls(SUFFIXES[path.suffix], source)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def to_llguidance(self) -> str:
        """The same as JSON of llguidance."""
        matcher = _llguidance().LLMatcher
        if self.kind == "regex":
            return matcher.grammar_from_regex(self.source)
        if self.kind == "lark":
            return matcher.grammar_from_lark(self.source)
        return matcher.grammar_from_json_schema(self.source, overrides={"whitespace_pattern": WHITESPACE})

    def _explain(self, error: str) -> str:
        """llguidance's message in one line, with the place of the mistake."""
        name = NAMES[self.kind]
        # Regular expressions are shown with carets under the mistake, wherever they stand.
        shown = re.search(r"^    (.*)\n    ( *)\^+\nerror: (.*)", error, re.MULTILINE)
        reason = shown[3] if shown else error.partition("\n")[0]
        rest = f" at {shortened(shown[1][len(shown[2]) :])}" if shown else ""
        if self.kind == "regex":
            return f"the {name} is invalid{rest}: {reason}; correct it there (the syntax is that of Rust's crate regex)"
        if self.kind == "json_schema":
            place = "".join(f"/{key}" for key in _place(parse_json(self.source), error)) or "the top"
            return f"the {name} cannot be followed, at {place}: {reason}{rest}; correct or remove what is there"
        position = re.match(r"(?:at )?(\d+)\((\d+)\): (.*)", error)
        if position:
            reason = f"{reason}{rest}" if shown else position[3]
            return f"the {name} is invalid at line {position[1]}, column {position[2]}: {reason}; correct it there"
        return f'the {name} is invalid: {reason}; it needs a rule such as start: "yes" | "no"'


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise UserError(f"grammars need the package llguidance ({error}): pip install 'goldfinch[serve]'") from error
    return llguidance


def parser_limits() -> "LLParserLimits":
    """llguidance's defaults, with errors that are about the grammar and not about the parser's state."""
    return _llguidance().LLParserLimits(verbose_errors=False)


def _error(grammar: str) -> str:
    """What is wrong with a grammar of llguidance; "" for nothing."""
    error = _llguidance().LLMatcher.validate_grammar(grammar, limits=parser_limits())
    return error.partition("\n  while processing")[0]  # what follows is a reference, of which `_place` knows more


def _check_json(source: str) -> None:
    try:
        schema = parse_json(source)
    except ValueError as error:
        raise UserError(f"the JSON schema is not valid JSON: {one_line(error)}") from error
    if not isinstance(schema, dict):
        raise UserError(f"a JSON schema must be an object, such as {{}} for any JSON, not {shortened(schema)}")
    try:
        depth = _depth(schema) + sum(_depth(_target(schema, ref)) for ref in set(_refs(schema)))
    except RecursionError:
        depth = MAX_SCHEMA_DEPTH + 1
    if depth > MAX_SCHEMA_DEPTH:
        raise UserError(
            f"the JSON schema may be nested more than {MAX_SCHEMA_DEPTH:,} levels deep where its references are "
            "followed: write it flatter"
        )


def _depth(value: Any) -> int:
    """How many dicts and lists are within each other."""
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(_depth, _children(value).values()), default=0)


def _children(value: Any) -> dict[str, Any]:
    """The values of a dict, or of a list by its numbers."""
    if isinstance(value, dict):
        return value
    return {str(index): each for index, each in enumerate(value)} if isinstance(value, list) else {}


def _refs(schema: Any) -> Iterator[str]:
    for key, value in _children(schema).items():
        if key == "$ref" and isinstance(value, str):
            yield value
        yield from _refs(value)


def _target(schema: Any, ref: str) -> Any:
    """What a reference names; the whole schema, which is deeper than any part, if that is not a path."""
    found = schema
    for key in ref.partition("#")[2].split("/")[1:]:
        name, children = key.replace("~1", "/").replace("~0", "~"), _children(found)
        if name not in children:
            return schema
        found = children[name]
    return found


def _place(schema: dict[str, Any], error: str) -> list[str]:
    """Keys to the innermost part of a schema that has this error by itself."""
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    path, tried = list[str](), 0
    while True:
        parts = [([key], value) for key, value in schema.items()]
        # A keyword's value is a schema, or holds schemas by name or by number.
        parts += [([*keys, key], part) for keys, child in parts for key, part in _children(child).items()]
        # First the definitions: whatever refers to one has its error too.
        parts.sort(key=lambda part: part[0][0] not in definitions)
        for keys, part in parts:
            if isinstance(part, dict):
                tried += 1
                grammar = json.dumps({**definitions, **part})
                if _error(_llguidance().LLMatcher.grammar_from_json_schema(grammar)) == error:
                    path, schema = path + keys, part
                    break
            if tried >= MAX_PLACES:
                return path
        else:
            return path
