"""Tokenizers: bytes, byte-level BPE, and the RWKV World vocabulary."""

from pathlib import Path

import tokenizers

from goldfinch.argument_checks import shortened
from goldfinch.data.tokenizers.base import FORMAT, VERSION, StreamDecoder, Tokenizer
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
]


MAX_TOKENIZER_BYTES = 1 << 28
MAX_ID = 1 << 22
"""Tables have a row for every id; the largest vocabularies have a sixteenth of these."""


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer.json: from `Tokenizer.save`, or any byte-level BPE tokenizer of Hugging Face.

    Raises:
        UserError: the file is missing, corrupt, of a newer version, or not byte-level.
    """
    text = read_text(path, MAX_TOKENIZER_BYTES)
    try:
        content = parse_json(text)
    except ValueError as error:
        raise UserError(f"{path} is not a tokenizer.json file: {one_line(error)}") from error
    if not isinstance(content, dict) or not (content.get("format") == FORMAT or "model" in content):
        raise UserError(f"{path} is not a tokenizer.json file: it has neither a format nor a model")
    if content.get("format") == FORMAT:
        return _load_own(path, content)
    _check_ids(path, content)
    try:
        return BpeTokenizer(tokenizers.Tokenizer.from_str(text))
    # `tokenizers` raises bare Exception for what it cannot read, and panics, which are BaseException, for some damage.
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        reason = shortened(one_line(error))
        raise UserError(f"{path} is not a byte-level BPE tokenizer, the only kind supported: {reason}") from error


def _check_ids(path: Path, content: dict) -> None:
    """Refuse ids for which `tokenizers` would fill the memory; all else is its own to check."""
    model, added = content["model"], content.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    ids += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    for number in ids:
        if isinstance(number, int) and number > MAX_ID:
            raise UserError(f"{path} has a token with the id {shortened(number)}: at most {MAX_ID:,} are supported")


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


def _load_own(path: Path, content: dict) -> Tokenizer:
    kinds: dict[str, type[ByteTokenizer] | type[WorldTokenizer]] = {
        kind.name: kind for kind in (ByteTokenizer, WorldTokenizer)
    }
    if content.get("version") != VERSION or content.get("name") not in list(kinds):
        raise UserError(
            f"{path}: unknown tokenizer {shortened(content.get('name'))}, version "
            f"{shortened(content.get('version'))}; known are "
            f"{', '.join(kinds)}, version {VERSION}; a newer goldfinch may read it"
        )
    tokenizer = kinds[content["name"]]()
    if content.get("hash") != tokenizer.hash:
        raise UserError(f"{path}: its hash is not that of the {tokenizer.name} vocabulary: save it again")
    return tokenizer
