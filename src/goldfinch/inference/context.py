"""A text that a model has read, and what it writes after it."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from goldfinch.cache.budget import AUTO, parse_budget
from goldfinch.cache.key_value_cache import CacheLevel
from goldfinch.cache.latents import latent_format
from goldfinch.data.tokenizers import StreamDecoder, Tokenizer
from goldfinch.errors import UserError
from goldfinch.inference.context_file.format import Document, save_context
from goldfinch.inference.context_file.quantization import QuantizationReport
from goldfinch.inference.sampler import Sampler
from goldfinch.inference.sampling import Sampling
from goldfinch.inference.sequence import TokenSequence
from goldfinch.inference.speculation import PromptLookup, Speculation
from goldfinch.inference.stopping import stop_before
from goldfinch.inference.token_ids import require_tokenizer, token_ids
from goldfinch.model import Decoder


class Context:
    """One text and all that the model remembers of it: grown by `read` and `generate`, made shorter by `trim`.

    Args:
        model: what reads and writes.
        tokenizer: None where texts are given as ids.
        latents: what the compressed keys are stored in: "bfloat16", "float32", "int8", "int4"; None for the model's own
            type, which rounds nothing.
        budget: bytes of rebuilt keys and values to keep between steps at most, as a number or as "2GiB"; "auto" is half
            of the memory that is free now.
        model_folder: where the model was loaded from, to be remembered in files.

    Raises:
        UserError: an unknown format of latents, or no amount of memory.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer | None,
        latents: str | None = None,
        budget: int | str = AUTO,
        model_folder: Path | None = None,
    ) -> None:
        stored = latent_format(latents, model.config.latent_width) if latents else None
        self.model = model
        self.tokenizer = tokenizer
        self.model_folder = model_folder
        self.sequence = TokenSequence(model, stored, parse_budget(budget, model.device))
        """The tokens and states."""
        self.documents: list[Document] = []
        """The named parts, in order."""

    def __len__(self) -> int:
        """Tokens read and written so far."""
        return len(self.sequence)

    @property
    def logits(self) -> Tensor:
        """(V,) float32: what follows the last token. Worked out when it is first asked for.

        Raises:
            ValueError: the context is empty.
            UserError: the context comes from a file that is damaged.
        """
        return self.sequence.logits

    def read(
        self,
        text: str | Sequence[int] | Tensor,
        name: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> "Context":
        """Append a text, or token ids: constant work for each token (see `goldfinch.inference.prefill`).

        Args:
            text: what to read.
            name: remembers it as a document of this name.
            progress: called now and then with the number of tokens read since the last call.

        Returns:
            self.

        Raises:
            UserError: no tokens, ids outside the vocabulary, or a text where the model has no tokenizer.
        """
        ids = token_ids(text, self.tokenizer, self.model.config.vocab_size)
        start = len(self)
        self.sequence.append(ids.to(self.model.device), progress)
        if name is not None:
            self.documents.append(Document(name=name, start=start, stop=len(self)))
        return self

    def ids(self, start: int = 0, stop: int | None = None) -> list[int]:
        """The token ids from `start` up to, not including, `stop`."""
        return self.sequence.key_cache.ids(start, len(self) if stop is None else min(stop, len(self))).tolist()

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes held, measured from the tensors.

        - memory: the key memory, ids and latents;
        - state: what the layers carry on, the same at any length;
        - expanded: what is kept rebuilt, within the budget;
        - snapshots: states at earlier positions;
        - unrounded: latents before rounding to integers, until `measure_quantization`.
        """
        return self.sequence.nbytes

    @property
    def level(self) -> CacheLevel | None:
        """What is kept rebuilt at the present length: "keys_values", "shared_keys" or nothing, "latents".

        None in models without GOLD layers.
        """
        return self.sequence.key_value_cache.level if self.sequence.key_value_cache is not None else None

    @property
    def snapshots(self) -> dict[int, int]:
        """Position -> bytes of each state that `trim` can go on from."""
        return {position: state.nbytes for position, state in sorted(self.sequence.snapshots.items())}

    def snapshot(self) -> None:
        """Keep the state at the present end for as long as the context reaches up to it.

        Besides, snapshots are taken by themselves, dense near the end (`goldfinch.inference.sequence.log_spaced`).
        """
        self.sequence.snapshot()

    def trim(self, length: int, progress: Callable[[int], None] | None = None) -> int:
        """Go back to the first `length` tokens.

        Args:
            length: 0 ... len(self).
            progress: as in `read`, for the tokens that are read again.

        Returns:
            How many tokens were read again, from the nearest snapshot before `length` on.

        Raises:
            UserError: `length` is none of the context's.
        """
        if not 0 <= length <= len(self):
            raise UserError(f"a context of {len(self)} tokens cannot be trimmed to {length}")
        replayed = self.sequence.trim(length, progress)
        kept = [document for document in self.documents if document.start < length]
        self.documents = [dataclasses.replace(document, stop=min(document.stop, length)) for document in kept]
        return replayed

    def fork(self) -> "Context":
        """A second context with the same past, without copying it; the two go on independently."""
        other = copy.copy(self)
        other.sequence, other.documents = self.sequence.fork(), list(self.documents)
        return other

    def measure_quantization(self) -> QuantizationReport | None:
        """What storing latents as integers changes, measured on this text; None where they are not integers.

        It is measured once, on what was read up to then; the unrounded latents, kept so far, are dropped. None, too, in
        a context from a file if this model predicts by other weights or positions than the one it was measured with.
        """
        return self.sequence.measure_quantization()

    def save(self, path: str | Path) -> None:
        """Write everything to one file, which `LanguageModel.open` reads; all or nothing, a file there is replaced.

        Integer latents are certified first.

        Raises:
            UserError: the context is empty, or the file cannot be written.
        """
        save_context(Path(path), self.sequence, self.documents, self.tokenizer, self.model_folder)

    def generate(
        self,
        text: str | Sequence[int] | Tensor | None = None,
        *,
        max_tokens: int = 200,
        seed: int | None = None,
        stop: Sequence[str] = (),
        speculation: Speculation | None = None,
        **sampling: Any,
    ) -> Iterator[str]:
        """Read `text`, if any, and write on, piece by piece, until a stop string, the end of the text or `max_tokens`.

        Tokens are guessed from what was written before and looked at together (`goldfinch.inference.speculation`): that
        changes how long it takes, not what is written.

        Args:
            text: what to read first.
            max_tokens: most tokens to write.
            seed: for the same text again; None for another each time.
            stop: writing ends before the first of these strings.
            speculation: how much to guess, and where to count it; None for the default. With integer latents that are
                not certified yet there are no guesses.
            **sampling: fields of `Sampling`, such as temperature=0.8, top_p=0.9.

        Yields:
            Pieces of text, never half a character. The context then ends where the writing ended.

        Raises:
            UserError: as `read`, or a sampling setting out of range.
        """
        sampler = Sampler(Sampling(**sampling), seed)
        tokenizer = require_tokenizer(self.tokenizer)
        if text is not None:
            self.read(text)
        speculation = Speculation() if speculation is None else speculation
        return stop_before(self._pieces(sampler, tokenizer, max_tokens, speculation), stop)

    def _pieces(
        self, sampler: Sampler, tokenizer: Tokenizer, max_tokens: int, speculation: Speculation
    ) -> Iterator[str]:
        decoder = StreamDecoder(tokenizer)
        for token in self._tokens(sampler, tokenizer, max_tokens, speculation):
            yield decoder.push(token)
        yield decoder.flush()

    def _tokens(
        self, sampler: Sampler, tokenizer: Tokenizer, max_tokens: int, speculation: Speculation
    ) -> Iterator[int]:
        # A model may have more ids than its tokenizer: those stand for nothing that could be written.
        known = tokenizer.vocab_size
        lookup = PromptLookup(self.ids()) if speculation.most and self.sequence.probe is None else None
        token = sampler.draw(self.logits[:known]) if max_tokens > 0 else tokenizer.end_of_text
        while max_tokens > 0 and token != tokenizer.end_of_text:
            if max_tokens == 1 or lookup is None:
                self.read([token])
                speculation.count(0, 0)
                yield token
                max_tokens -= 1
                if max_tokens:
                    token = sampler.draw(self.logits[:known])
                continue
            lookup.add([token])
            guesses = lookup.guess(min(speculation.now(), max_tokens - 1, self.sequence.room_in_block() - 1))
            logits = self.sequence.try_tokens(self._on_device([token, *guesses]))
            # Each guess that the model draws itself is as good as drawn without it; the first other one is next.
            kept = [token]
            for guess, row in zip([*guesses, None], logits, strict=True):
                token = sampler.draw(row[:known])
                if token != guess or token == tokenizer.end_of_text:
                    break
                kept.append(token)
            self.sequence.keep(len(kept))
            speculation.count(len(guesses), len(kept) - 1)
            lookup.add(kept[1:])
            max_tokens -= len(kept)
            for count, one in enumerate(kept, start=1):
                try:
                    yield one
                except GeneratorExit:
                    # Nobody wants the rest: the context ends where the writing did.
                    self.sequence.keep(count)
                    raise

    def _on_device(self, ids: list[int]) -> Tensor:
        return torch.tensor(ids, device=self.model.device)
