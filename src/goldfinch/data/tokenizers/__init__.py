"""Tokenizers: bytes, byte-level BPE, and the RWKV World vocabulary."""

from pathlib import Path

import tokenizers

from goldfinch.argument_checks import shortened
from goldfinch.data.tokenizers.base import StreamDecoder, Tokenizer
from goldfinch.data.tokenizers.bpe import BpeTokenizer
from goldfinch.data.tokenizers.byte import ByteTokenizer
from goldfinch.data.tokenizers.world import WorldTokenizer
from goldfinch.errors import UserError
from goldfinch.files import one_line
from goldfinch.json_yaml import parse_json, read_text

__all__ = [
    "BpeTokenizer",
    "ByteTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "WorldTokenizer",
    "load_tokenizer",
    "named_tokenizer",
    "parse_tokenizer",
]


MAX_TOKENIZER_BYTES = 1 << 28
MAX_ID = 1 << 22
"""Tables have a row for every id; the largest vocabularies have a sixteenth of these."""
# Files of bytes and World, as they were written before they became files of the library `tokenizers`.
OWN_FORMAT, OWN_VERSION = "goldfinch-tokenizer", 1


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer.json: from `Tokenizer.save`, or any byte-level BPE tokenizer of Hugging Face.

    Raises:
        UserError: the file is missing, corrupt, of a newer version, or not byte-level.
    """
    return parse_tokenizer(read_text(path, MAX_TOKENIZER_BYTES), str(path))


def parse_tokenizer(text: str, name: str) -> Tokenizer:
    """The tokenizer that the text of a tokenizer.json describes, as `load_tokenizer`; `name` is for errors."""
    try:
        content = parse_json(text)
    except ValueError as error:
        raise UserError(f"{name} is not a tokenizer.json file: {one_line(error)}") from error
    if not isinstance(content, dict) or not (content.get("format") == OWN_FORMAT or "model" in content):
        raise UserError(f"{name} is not a tokenizer.json file: it has neither a format nor a model")
    if content.get("format") == OWN_FORMAT:
        return _parse_own(name, content)
    _check_ids(name, content)
    known = _known_tokenizer(name, content)
    if known is not None:
        return known
    try:
        return BpeTokenizer(tokenizers.Tokenizer.from_str(text))
    # `tokenizers` raises bare Exception for what it cannot read, and panics, which are BaseException, for some damage.
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        reason = shortened(one_line(error))
        raise UserError(f"{name} is not a byte-level BPE tokenizer, the only kind supported: {reason}") from error


def _known_tokenizer(name: str, content: dict) -> ByteTokenizer | WorldTokenizer | None:
    """Bytes or World, if a file of the library `tokenizers` has exactly the tokens of one of them.

    How the text is split is not looked at: it can only make the library find the same tokens as our own encoders.

    Raises:
        UserError: it has nearly these tokens, so it is damaged.
    """
    tokenizer: ByteTokenizer | WorldTokenizer
    match content:
        case {"model": {"type": "BPE", "merges": [], "vocab": dict() as vocabulary}, "normalizer": None}:
            tokenizer = ByteTokenizer()
        case {
            "model": {"type": "WordPiece", "continuing_subword_prefix": "", "vocab": dict() as vocabulary},
            "normalizer": None,
        }:
            tokenizer = WorldTokenizer()
        case _:
            return None
    expected = tokenizer.byte_level_vocabulary()
    num_wrong = sum(vocabulary.get(token) != id for token, id in expected.items())
    if 0 < num_wrong < len(expected) // 2:
        raise UserError(
            f"{name} is damaged: it has the vocabulary of {tokenizer.name}, but {num_wrong:,} wrong ids; save it again"
        )
    match content.get("added_tokens"):
        case [{"content": tokenizer.end_of_text_name, "special": True}] if vocabulary == expected:
            return tokenizer
    return None


def _check_ids(name: str, content: dict) -> None:
    """Refuse ids for which `tokenizers` would fill the memory; all else is its own to check."""
    model, added = content["model"], content.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    ids += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    for number in ids:
        if isinstance(number, int) and number > MAX_ID:
            raise UserError(f"{name} has a token with the id {shortened(number)}: at most {MAX_ID:,} are supported")


def named_tokenizer(name: str) -> Tokenizer:
    """The tokenizer called "bytes" or "world", or that of a tokenizer.json file.

    Raises:
        UserError: as `load_tokenizer`.
    """
    match name:
        case "bytes":
            return ByteTokenizer()
        case "world":
            return WorldTokenizer()
        case path:
            return load_tokenizer(Path(path))


def _parse_own(name: str, content: dict) -> Tokenizer:
    kinds: dict[str, type[ByteTokenizer] | type[WorldTokenizer]] = {
        kind.name: kind for kind in (ByteTokenizer, WorldTokenizer)
    }
    if content.get("version") != OWN_VERSION or content.get("name") not in list(kinds):
        raise UserError(
            f"{name}: unknown tokenizer {shortened(content.get('name'))}, version "
            f"{shortened(content.get('version'))}; known are "
            f"{', '.join(kinds)}, version {OWN_VERSION}; a newer goldfinch may read it"
        )
    tokenizer = kinds[content["name"]]()
    if content.get("hash") != tokenizer.hash:
        raise UserError(f"{name}: its hash is not that of the {tokenizer.name} vocabulary: save it again")
    return tokenizer
