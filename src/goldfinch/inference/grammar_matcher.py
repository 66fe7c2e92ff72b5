"""Which tokens a grammar allows next."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from torch import Tensor

from goldfinch.data.tokenizers import Tokenizer
from goldfinch.errors import UserError
from goldfinch.inference.grammar import NAMES, Grammar, parser_limits


class GrammarMatcher:
    """The place in a grammar that a text has reached, token by token.

    A token need not be a whole character, or lie within one rule: what counts is its bytes.

    Args:
        grammar: what the whole text must match.
        tokenizer: of the tokens.

    Raises:
        UserError: the grammar does not fit the tokenizer, or is too large.
    """

    def __init__(self, grammar: Grammar, tokenizer: Tokenizer) -> None:
        self._name = NAMES[grammar.kind]
        self._vocab_size = tokenizer.vocab_size
        self._matcher = LLMatcher(
            _llguidance_tokenizer(tokenizer), grammar.to_llguidance(), log_level=0, limits=parser_limits()
        )
        self._check()

    @property
    def may_end(self) -> bool:
        """Whether the text matches as it is."""
        return self._matcher.is_accepting()

    @property
    def is_complete(self) -> bool:
        """Whether the text matches, and no longer one that begins with it does."""
        return self._matcher.is_stopped()

    def allowed_tokens(self) -> Tensor:
        """(V,) bool, on the CPU: tokens with which the text can still match; the end of text where it may end."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        return torch.from_numpy(np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(bool))

    def advance(self, token: int) -> None:
        """Append an allowed token to the text.

        Raises:
            UserError: the grammar is too large to be followed further.
        """
        self._matcher.consume_token(token)
        self._check()

    def forced_tokens(self) -> list[int]:
        """Tokens that must come next, each the only one that is allowed after those before it; often none."""
        return self._matcher.compute_ff_tokens()

    def num_allowed(self, tokens: list[int]) -> int:
        """How many of these may come next, one after another."""
        return self._matcher.validate_tokens(tokens)

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().partition("\n")[0]
            raise UserError(f"the {self._name} cannot be followed here: {reason}; write a simpler one")


class _Tokens:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        special = {**tokenizer.special_token_ids, tokenizer.end_of_text_name: tokenizer.end_of_text}
        self.eos_token_id = tokenizer.end_of_text
        self.special_token_ids = list(special.values())
        self.tokens = [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
        for name, id in special.items():
            self.tokens[id] = name.encode()  # so that Lark grammars can name it; no text matches it

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode())


@lru_cache(maxsize=4)
def _llguidance_tokenizer(tokenizer: Tokenizer) -> Any:
    """The vocabulary as a trie: a third of a second for 65,536 tokens."""
    return LLTokenizer(TokenizerWrapper(_Tokens(tokenizer)))
