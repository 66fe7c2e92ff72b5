"""Tokenizers as GGUF files describe them: llama.cpp turns every text into the same ids as we do."""

import dataclasses
import json
from collections.abc import Mapping

import gguf
from gguf import TokenType

from goldfinch.data.tokenizers import BpeTokenizer, ByteTokenizer, Tokenizer, WorldTokenizer
from goldfinch.data.tokenizers.byte_level import END_OF_TEXT, to_byte_level
from goldfinch.errors import UserError

# llama.cpp's rwkv looks for all tokens in a text, also for those that no text should become: under its usual name, <s>,
# the end of the document would be found in HTML. No UTF-8 has this byte, so no text has such a name.
_NEVER_IN_TEXT = r"\xff"
# llama.cpp insists on merges, and gguf writes no empty lists. No byte is written as this character: nothing is merged.
_NO_MERGES = ["\u2420 \u2420"]

# Settings in a tokenizer.json, of the whole, of its BPE or of added tokens, that llama.cpp's form of GPT-2's BPE lacks.
_UNLIKE_GPT2 = [
    *("normalizer", "dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"),
    *("lstrip", "rstrip", "single_word"),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GgufVocabulary:
    """What a GGUF file says of a tokenizer."""

    model: str
    """llama.cpp's name of the algorithm: rwkv (longest match) or gpt2 (byte-level BPE)."""
    tokens: Mapping[int, tuple[str, TokenType]]
    """Id -> how the file writes it, and its type; without the ids that have no text."""
    merges: list[str]
    """Of gpt2, in their order."""
    end_of_text: int
    """The id that follows every document."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "GgufVocabulary":
        """Describe a tokenizer.

        Raises:
            UserError: llama.cpp has no such tokenizer.
        """
        match tokenizer:
            case WorldTokenizer():
                model, tokens, merges = "rwkv", _world_tokens(tokenizer), []
            case ByteTokenizer():
                model, tokens, merges = "gpt2", _byte_tokens(tokenizer), _NO_MERGES
            case BpeTokenizer():
                model, (tokens, merges) = "gpt2", _bpe_tokens(tokenizer)
            case _:
                raise UserError(f"llama.cpp has no tokenizer like {tokenizer.name}: known are world, bytes and bpe")
        return cls(model=model, tokens=tokens, merges=merges, end_of_text=tokenizer.end_of_text)

    def add_to(self, writer: gguf.GGUFWriter, vocab_size: int) -> None:
        """Add it to a file, with `vocab_size` ids as the model has."""
        unused = {id: (f"{_NEVER_IN_TEXT}[unused {id}]", TokenType.UNUSED) for id in range(vocab_size)}
        names, types = zip(*(unused | dict(self.tokens)).values(), strict=True)
        writer.add_tokenizer_model(self.model)
        if self.model == "gpt2":
            writer.add_tokenizer_pre("gpt-2")
            writer.add_token_merges(self.merges)
        writer.add_token_list(names)
        writer.add_token_types(types)
        # Otherwise llama.cpp takes the ids that GPT-2 has.
        writer.add_bos_token_id(self.end_of_text)
        writer.add_eos_token_id(self.end_of_text)
        writer.add_add_bos_token(False)


def _world_tokens(tokenizer: WorldTokenizer) -> dict[int, tuple[str, TokenType]]:
    """As Python writes bytes: 'caf\\xc3\\xa9'."""
    pieces = {id: tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)}
    tokens = {id: (repr(piece)[2:-1], TokenType.NORMAL) for id, piece in pieces.items() if piece}
    return tokens | {tokenizer.end_of_text: (_NEVER_IN_TEXT + END_OF_TEXT, TokenType.CONTROL)}


def _byte_tokens(tokenizer: ByteTokenizer) -> dict[int, tuple[str, TokenType]]:
    """Those of a byte-level BPE that merges nothing."""
    tokens = {byte: (to_byte_level(bytes([byte])), TokenType.NORMAL) for byte in range(256)}
    return tokens | {tokenizer.end_of_text: (END_OF_TEXT, TokenType.CONTROL)}


def _bpe_tokens(tokenizer: BpeTokenizer) -> tuple[dict[int, tuple[str, TokenType]], list[str]]:
    """Tokens and merges of a BPE that works like GPT-2's.

    Raises:
        UserError: it does not.
    """
    content = json.loads(tokenizer.to_backend().to_str())
    model, words = content["model"], dict(content["pre_tokenizer"] or {})
    words.pop("trim_offsets", None)  # of positions in the text, not of tokens
    if words != {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
        raise UserError(
            "the tokenizer splits text into words in its own way (pre_tokenizer in tokenizer.json): only those that "
            "split like GPT-2's, as `goldfinch data prepare` trains them, can be exported as GGUF"
        )
    special = [token for token in content["added_tokens"] if token["special"]]
    plain = [token for token in content["added_tokens"] if not token["special"]]
    unlike = {name for part in (content, model, *plain) for name in _UNLIKE_GPT2 if part.get(name)}
    if unlike:
        raise UserError(
            f"tokenizer.json sets {', '.join(sorted(unlike))}, which GPT-2's BPE lacks: it cannot be exported as GGUF"
        )
    tokens = {id: (token, TokenType.NORMAL) for token, id in model["vocab"].items()}
    tokens |= {token["id"]: (token["content"], TokenType.USER_DEFINED) for token in plain}
    tokens |= {token["id"]: (token["content"], TokenType.CONTROL) for token in special}
    return tokens, [" ".join(pair) for pair in model["merges"]]
