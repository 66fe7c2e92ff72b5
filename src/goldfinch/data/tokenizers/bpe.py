"""Byte-level byte-pair encoding, trained here or loaded from a Hugging Face tokenizer.json."""

import re
from collections.abc import Iterable, Iterator, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from goldfinch.data.tokenizers.base import Tokenizer
from goldfinch.data.tokenizers.byte_level import END_OF_TEXT, from_byte_level
from goldfinch.errors import UserError

# Names in other byte-level vocabularies; the first one present is used.
END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")

# Long texts are encoded in slices of about this many characters: in parallel, and several times faster than whole.
SLICE = 16_384
# Before a space or line end between two words, or before Chinese punctuation after one, every pre-tokenizer that
# splits words splits too: slices that begin there have the same tokens as the whole.
SLICE_BORDER = re.compile(r"(?<=[^\W\d_])(?=[ \n][^\W\d_]|[\u3001\u3002\uff0c])")

# Text that a tokenizer does not reproduce if it is not byte-level or changes text.
PROBE = "word  Word\r\n\t e\u0301 \ufb01 \u4f60\u597d \U0001f44b\u200d\n " + "".join(map(chr, range(0x250))) + " "


def _slices(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        border = SLICE_BORDER.search(text, start + SLICE)
        end = border.start() if border else len(text)
        yield text[start:end]
        start = end


class BpeTokenizer(Tokenizer):
    """Wraps a byte-level `tokenizers.Tokenizer`. Special tokens have no bytes and are never read from plain text.

    Raises:
        ValueError: `backend` is not byte-level, changes the text, or has no token that ends a document.
    """

    name = "bpe"

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_truncation()
        backend.no_padding()
        if backend.num_special_tokens_to_add(is_pair=False):
            # Models see texts as `encode` gives them, without the special tokens that some put around each.
            backend.post_processor = processors.ByteLevel(trim_offsets=False)
        # Otherwise text that merely mentions "<|endoftext|>" would end the document.
        backend.encode_special_tokens = True
        self._backend = backend
        # A second one for chat templates: the setting belongs to the backend, which threads share.
        self._with_special_tokens = tokenizers.Tokenizer.from_str(backend.to_str())
        self._with_special_tokens.encode_special_tokens = False

        added = backend.get_added_tokens_decoder()
        special = {token.content: id for id, token in added.items() if token.special}
        names = [name for name in END_OF_TEXT_NAMES if name in special]
        if not names:
            raise ValueError(f"no special token ends a document (one of {', '.join(END_OF_TEXT_NAMES)})")
        self.end_of_text_name = names[0]
        self.end_of_text = special[self.end_of_text_name]
        self._special_token_ids = special

        table = [b""] * (1 + max(backend.get_vocab(with_added_tokens=True).values()))
        for token, id in backend.get_vocab(with_added_tokens=False).items():
            if id not in added:
                try:
                    table[id] = from_byte_level(token)
                except KeyError:
                    raise ValueError(f"token {id} is not written in bytes: not a byte-level vocabulary") from None
        for id, added_token in added.items():
            table[id] = b"" if added_token.special else added_token.content.encode()
        super().__init__(table)

        pre_tokenizer = backend.pre_tokenizer
        words = pre_tokenizer.pre_tokenize_str("two words") if pre_tokenizer else []
        self._splits_words = [span for _, span in words] == [(0, 3), (3, 9)]
        probe = PROBE + " ".join(token.content for token in added.values())
        if self.decode(self.encode(probe)) != probe:
            raise ValueError("it changes the text (no byte-level pre-tokenizer, a normalizer, a prefix space ...)")

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "BpeTokenizer":
        """Learn a vocabulary: id 0 ends a document, 1..256 are the bytes, the rest are merges.

        The same texts in the same order give the same tokenizer. Few texts may give fewer ids than `vocab_size`.

        Raises:
            UserError: `vocab_size` does not hold the bytes.
        """
        if vocab_size < 257:
            raise UserError(f"--vocab-size must be at least 257 (256 bytes and the end of text), not {vocab_size}")
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls(backend)

    @property
    def special_token_ids(self) -> dict[str, int]:
        """Name -> id of the special tokens."""
        return dict(self._special_token_ids)

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Words by the pre-tokenizer, then merges in the order they were learned."""
        if special_tokens:
            text.encode()  # raises UnicodeEncodeError, where `tokenizers` would say TypeError
            return self._with_special_tokens.encode(text, add_special_tokens=False).ids
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, in parallel."""
        slices: list[str] = []
        owners: list[int] = []
        for owner, text in enumerate(texts):
            text.encode()  # raises UnicodeEncodeError, where `tokenizers` would say TypeError
            parts = list(_slices(text)) if self._splits_words else [text]
            slices += parts
            owners += [owner] * len(parts)
        encoded: list[list[int]] = [[] for _ in texts]
        encodings = self._backend.encode_batch_fast(slices, add_special_tokens=False)
        for owner, encoding in zip(owners, encodings, strict=True):
            encoded[owner] += encoding.ids
        return encoded

    def to_backend(self) -> tokenizers.Tokenizer:
        """A copy of the wrapped one."""
        return tokenizers.Tokenizer.from_str(self._backend.to_str())
