"""A text that a model has read, and what it writes after it."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from goldfinch.data.tokenizers import StreamDecoder, Tokenizer
from goldfinch.inference.key_memory import DEFAULT_BUDGET, BlockedKeyMemory
from goldfinch.inference.prefill import LayerStates, prefill
from goldfinch.inference.sampling import Sampler, Sampling
from goldfinch.inference.token_ids import require_tokenizer, token_ids
from goldfinch.model import Decoder


class Context:
    """The state of one sequence: made by `LanguageModel.read`, grown by `read` and `generate`.

    Args:
        model: what reads and writes.
        tokenizer: None where texts are given as ids.
        latent_dtype: what the compressed keys are stored in; None for the model's own type, which rounds nothing.
        budget: bytes of rebuilt keys and values to keep between steps at most; the rest is rebuilt at every step.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer | None,
        latent_dtype: torch.dtype | None = None,
        budget: int = DEFAULT_BUDGET,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._states: LayerStates | None = None
        self._memory: BlockedKeyMemory | None = None
        if model.config.gold_layers:
            self._memory = BlockedKeyMemory(model, latent_dtype or model.head.weight.dtype, budget)
        self._length = 0
        self._logits: Tensor | None = None

    def __len__(self) -> int:
        """Tokens read and written so far."""
        return self._length

    @property
    def logits(self) -> Tensor:
        """(V,) float32: what follows the last token."""
        if self._logits is None:
            raise ValueError("the context is empty: read a text first")
        return self._logits

    @torch.inference_mode()
    def read(self, text: str | Sequence[int] | Tensor) -> "Context":
        """Append a text, or token ids: constant work for each token (see `goldfinch.inference.prefill`).

        Returns:
            self.

        Raises:
            UserError: no tokens, ids outside the vocabulary, or a text where the model has no tokenizer.
        """
        ids = token_ids(text, self._tokenizer, self._model.config.vocab_size).to(self._model.head.weight.device)
        hidden, states = prefill(self._model, ids, self._states, self._memory)
        self._states, self._length, self._logits = states, self._length + len(ids), self._model.head(hidden).float()
        return self

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes held, measured from the tensors: the key memory, the states of all layers, keys and values kept."""
        states = (*self._states.lower, *self._states.upper) if self._states else ()
        return {
            "memory": self._memory.nbytes if self._memory is not None else 0,
            "state": sum(tensor.nbytes for state in states for tensor in state.tensors()),
            "expanded": self._memory.nbytes_expanded if self._memory is not None else 0,
        }

    def fork(self) -> "Context":
        """A second context with the same past; the two go on independently."""
        other = Context(self._model, self._tokenizer)
        # No call changes a state in place, so that both may hold the same ones.
        other._states, other._length, other._logits = self._states, self._length, self._logits
        other._memory = self._memory.fork() if self._memory is not None else None
        return other

    def generate(
        self,
        text: str | Sequence[int] | Tensor | None = None,
        *,
        max_tokens: int = 200,
        seed: int | None = None,
        stop: Sequence[str] = (),
        **sampling: Any,
    ) -> Iterator[str]:
        """Read `text`, if any, and write on, piece by piece, until a stop string, the end of the text or `max_tokens`.

        Args:
            text: what to read first.
            max_tokens: most tokens to write.
            seed: for the same text again; None for another each time.
            stop: writing ends before the first of these strings.
            **sampling: fields of `Sampling`, such as temperature=0.8, top_p=0.9.

        Yields:
            Pieces of text, never half a character. The context then ends where the writing ended.

        Raises:
            UserError: as `read`, or a sampling setting out of range.
        """
        sampler = Sampler(Sampling(**sampling), seed)
        tokenizer = require_tokenizer(self._tokenizer)
        if text is not None:
            self.read(text)
        return stop_before(self._pieces(sampler, tokenizer, max_tokens), stop)

    def _pieces(self, sampler: Sampler, tokenizer: Tokenizer, max_tokens: int) -> Iterator[str]:
        decoder = StreamDecoder(tokenizer)
        for _ in range(max_tokens):
            # A model may have more ids than its tokenizer: those stand for nothing that could be written.
            token = sampler.draw(self.logits[: tokenizer.vocab_size])
            if token == tokenizer.end_of_text:
                break
            self.read([token])
            yield decoder.push(token)
        yield decoder.flush()


def stop_before(pieces: Iterator[str], stop: Sequence[str]) -> Iterator[str]:
    """Pass pieces on until one of the stop strings, also when it is spread over several pieces.

    What could be the beginning of a stop string is held back until it is decided. Empty pieces are left out.
    """
    stop = [string for string in stop if string]
    held = ""
    for piece in pieces:
        held += piece
        found = [position for string in stop if (position := held.find(string)) >= 0]
        if found:
            if min(found):
                yield held[: min(found)]
            return
        beginnings = (
            length
            for string in stop
            for length in range(min(len(string) - 1, len(held)), 0, -1)
            if held.endswith(string[:length])
        )
        keep = max(beginnings, default=0)
        ready, held = held[: len(held) - keep], held[len(held) - keep :]
        if ready:
            yield ready
    if held:
        yield held
