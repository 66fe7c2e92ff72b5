"""A text that a model has read, and what it generates after it."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from goldfinch.argument_checks import boolean, file_path, integer, string
from goldfinch.cache.budget import AUTO, parse_budget
from goldfinch.cache.growing_tensor import DEFAULT_BLOCK_SIZE
from goldfinch.cache.key_value_cache import CacheLevel
from goldfinch.cache.latents import latent_format
from goldfinch.data.tokenizers import Tokenizer
from goldfinch.errors import UserError
from goldfinch.files import FileVersion, Replaced, resolved
from goldfinch.inference.context_file.description import Document, check_document_name
from goldfinch.inference.context_file.format import save_context
from goldfinch.inference.context_file.quantization import QuantizationReport
from goldfinch.inference.generation import DEFAULT_MAX_TOKENS, Generation, GenerationState, GenerationStream
from goldfinch.inference.memory_usage import MemoryUsage
from goldfinch.inference.prefill import CHUNK_SIZE
from goldfinch.inference.sampling import Sampling, sampling_settings
from goldfinch.inference.score import Score, append_and_score
from goldfinch.inference.sequence import TokenSequence
from goldfinch.inference.speculation import DEFAULT_MAX_DRAFT_TOKENS, DraftPolicy
from goldfinch.inference.token_ids import token_ids
from goldfinch.model import Decoder


class Context:
    """A text and all that the model keeps of it: `read`, `generate` and `stream` append to it, `truncate` goes back.

    Usually made by `LanguageModel.read` or `LanguageModel.open`. One context belongs to one thread; different contexts
    of a model may be used from different threads at the same time.

    >>> context = lm.read("Call me Ishmael.")
    >>> answer = context.fork().generate(max_tokens=5, seed=0)       # the context itself stays as it is
    >>> context.save("ishmael.gfc")                                  # a small file, opened at once
    >>> len(lm.open("ishmael.gfc")) == len(context)
    True

    Args:
        model: what reads and generates.
        tokenizer: None where texts are given as token ids.
        latents: how compressed keys are stored: "bfloat16", "float32", "int8", "int4"; None for the model's own dtype,
            which rounds nothing.
        budget: maximum bytes of expanded keys and values to keep between steps, as a number or as "2GiB"; "auto" is
            half of the free memory.
        model_folder: where the model was loaded from, to be remembered in files.
        chunk_size: tokens that are read at once.
        block_size: tokens of a block of the key cache and of the file; a multiple of `chunk_size`.

    Raises:
        UserError: an unknown latent format, or an invalid size.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer | None,
        latents: str | None = None,
        budget: int | str = AUTO,
        model_folder: Path | None = None,
        *,
        chunk_size: int = CHUNK_SIZE,
        block_size: int = DEFAULT_BLOCK_SIZE,
    ) -> None:
        stored = latent_format(latents, model.config.latent_width) if latents else None
        self.model = model
        self.tokenizer = tokenizer
        self.model_folder = model_folder
        self.sequence = TokenSequence(
            model, stored, parse_budget(budget, model.device), chunk_size=chunk_size, block_size=block_size
        )
        """Tokens, states and caches."""
        self.documents: list[Document] = []
        """The named parts, in order."""
        self.opened: tuple[Path, FileVersion | None] | None = None
        """The file that it was opened from, as it was then or when this context was last saved to it."""

    def __len__(self) -> int:
        """Number of tokens, read and generated."""
        return len(self.sequence)

    def __repr__(self) -> str:
        documents = f", {len(self.documents)} documents" if self.documents else ""
        level = f", cache level {self.level}" if self.level is not None else ""
        return f"<Context: {len(self):,} tokens{documents}{level}, {self.nbytes:,} bytes>"

    @property
    def logits(self) -> Tensor:
        """(V,) float32: what follows the last token. Computed when it is first asked for.

        Raises:
            ValueError: the context is empty.
            UserError: the context comes from a file that is corrupt.
        """
        return self.sequence.compute_logits()

    def read(
        self,
        text: str | Sequence[int] | Tensor,
        name: str | None = None,
        progress: Callable[[int], None] | None = None,
        *,
        special_tokens: bool = False,
    ) -> "Context":
        """Append a text, or token ids: constant work per token (see `goldfinch.inference.prefill`).

        Args:
            text: what to read.
            name: remembers it as a document of this name.
            progress: called now and then with the number of tokens read since the last call.
            special_tokens: whether the names of special tokens in a text are encoded as these tokens.

        Returns:
            self.

        Raises:
            UserError: no tokens, ids outside the vocabulary, or a text where the model has no tokenizer.
        """
        ids = token_ids(text, self.tokenizer, self.model.config.vocab_size, boolean("special_tokens", special_tokens))
        if name is not None:
            check_document_name(string("name", name))
        start = len(self)
        self.sequence.append(ids.to(self.model.device), progress)
        if name is not None:
            self.documents.append(Document(name=name, start=start, stop=len(self)))
        return self

    def ids(self, start: int = 0, stop: int | None = None) -> list[int]:
        """The token ids from `start` up to, not including, `stop`, or to the end.

        Raises:
            UserError: a position is negative or not a whole number.
        """
        start = min(integer("start", start), len(self))
        stop = len(self) if stop is None else min(integer("stop", stop), len(self))
        return self.sequence.key_cache.ids(start, max(start, stop)).tolist()

    def stream(
        self,
        text: str | Sequence[int] | Tensor | None = None,
        *,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        sampling: Sampling | None = None,
        logprobs: int | None = None,
        max_draft_tokens: int = DEFAULT_MAX_DRAFT_TOKENS,
        **options: Any,
    ) -> GenerationStream:
        """Read `text`, if any, and generate, piece by piece.

        Draft tokens (`goldfinch.inference.speculation`) change how long it takes, not what is generated.

        >>> stream = lm.read("Call me").stream(max_tokens=5, seed=0)
        >>> text = "".join(stream)
        >>> stream.generation.finish_reason
        'length'

        Args:
            text: what to read first.
            max_tokens: maximum number of tokens to generate.
            sampling: settings; None for the defaults of `Sampling`.
            logprobs: 0 for the log-probability of each token, more for as many alternatives as well; None for neither.
            max_draft_tokens: maximum number of draft tokens in a step; 0 disables speculative decoding. Contexts with
                integer latents draft none until their quantization is measured.
            **options: fields of `Sampling` that take precedence, such as temperature=0.8, stop="END", seed=0.

        Returns:
            An iterator over pieces of text, never half a character, whose `generation` has the rest. The context then
            ends where the text does.

        Raises:
            UserError: as `read`, or a setting is out of range.
        """
        sampling = sampling_settings(sampling, options)
        drafts = DraftPolicy(max_draft_tokens)
        if text is not None:
            self.read(text)
        return GenerationStream(self.generation_state(sampling, max_tokens, logprobs), drafts)

    def generate(self, text: str | Sequence[int] | Tensor | None = None, **options: Any) -> Generation:
        """Read `text`, if any, and generate: `stream` to its end, with the same arguments.

        >>> lm.read("Call me").generate(max_tokens=5, temperature=0).finish_reason
        'length'
        """
        return self.stream(text, **options).run()

    def generation_state(
        self, sampling: Sampling, max_tokens: int = DEFAULT_MAX_TOKENS, logprobs: int | None = None
    ) -> GenerationState:
        """A generation that continues this context, for `goldfinch.inference.batch.Batch`.

        Raises:
            UserError: the context is empty, or a number is negative.
        """
        if not len(self):
            raise UserError("the context is empty: read a text before generating")
        return GenerationState(self.sequence, self.tokenizer, sampling, max_tokens, logprobs)

    def score(self, text: str | Sequence[int] | Tensor) -> Score:
        """Log-probabilities of a text after this context, which stays as it is.

        >>> lm.read("Call me").score(" Ishmael.").perplexity > 1
        True

        Raises:
            UserError: as `read`, or the context is empty.
        """
        if not len(self):
            raise UserError("the context is empty: read a text before scoring what follows it")
        ids = token_ids(text, self.tokenizer, self.model.config.vocab_size)
        self.sequence.compute_logits()  # kept, for the next text to be scored
        logprobs, is_greedy = append_and_score(self.sequence.fork(), ids.to(self.model.device))
        num_bytes = None
        if isinstance(text, str):
            num_bytes = len(text.encode())
        elif self.tokenizer is not None:
            num_bytes = sum(len(self.tokenizer.token_bytes(id)) for id in ids.tolist())
        return Score(token_ids=tuple(ids.tolist()), logprobs=tuple(logprobs), is_greedy=is_greedy, num_bytes=num_bytes)

    def memory_usage(self) -> MemoryUsage:
        """Bytes held, by purpose; its `total` is `nbytes`. Runs no layer."""
        return self.sequence.memory_usage()

    @property
    def nbytes(self) -> int:
        """Bytes held in total."""
        return self.sequence.nbytes

    @property
    def level(self) -> CacheLevel | None:
        """What is kept expanded at the present length: "keys_values", "shared_keys", or "latents" for nothing.

        None in models without GOLD layers.
        """
        return self.sequence.key_value_cache.level if self.sequence.key_value_cache is not None else None

    @property
    def snapshots(self) -> dict[int, int]:
        """Position -> bytes of each state that `truncate` can start from."""
        return {position: state.nbytes for position, state in sorted(self.sequence.snapshots.states.items())}

    def snapshot(self) -> None:
        """Keep the state at the present end for as long as the context reaches up to it.

        Automatic snapshots are kept as well, dense near the end (`goldfinch.inference.snapshots.log_spaced`).
        """
        self.sequence.snapshot()

    def truncate(self, length: int, progress: Callable[[int], None] | None = None) -> int:
        """Go back to the first `length` tokens.

        Args:
            length: 0 ... len(self).
            progress: as in `read`, for the tokens that are read again.

        Returns:
            How many tokens were read again, starting from the nearest snapshot before `length`.

        Raises:
            UserError: `length` is out of range.
        """
        length = integer("length", length, maximum=len(self))
        replayed = self.sequence.truncate(length, progress)
        self._cut_documents(length)
        return replayed

    def truncate_lazily(self, length: int) -> int:
        """Go back to the first `length` tokens, and leave it to `TokenSequence.replay` to read some of them again.

        Returns:
            How many tokens that will be.
        """
        length = integer("length", length, maximum=len(self))
        num_pending = self.sequence.truncate_lazily(length)
        self._cut_documents(length)
        return num_pending

    def _cut_documents(self, length: int) -> None:
        kept = [document for document in self.documents if document.start < length]
        self.documents = [dataclasses.replace(document, stop=min(document.stop, length)) for document in kept]

    def fork(self) -> "Context":
        """A second context with the same past, without copying it; the two grow independently."""
        other = copy.copy(self)
        other.sequence, other.documents = self.sequence.fork(), list(self.documents)
        return other

    def measure_quantization(self) -> QuantizationReport | None:
        """What storing latents as integers changes, measured on this text; None where they are not integers.

        It is measured once, on what was read up to then, and the unquantized latents that were kept for it are dropped.
        None, too, in a context from a file if this model predicts with other weights or positions than the one that it
        was measured with.
        """
        return self.sequence.measure_quantization()

    def save(self, path: str | Path, *, overwrite: bool = True) -> None:
        """Write everything to one file, atomically; `LanguageModel.open` reads it.

        An existing file is replaced. But the file that this context was opened from is replaced only if it is still
        the same: what another process has written to it since then is not lost.

        The quantization of integer latents is measured first.

        Args:
            path: the file.
            overwrite: False refuses an existing file.

        Raises:
            UserError: the context is empty, the file cannot be written, or it has changed since it was opened.
        """
        path = file_path("path", path)
        boolean("overwrite", overwrite)
        replaced: Replaced = "any" if overwrite else None
        is_own_file = self.opened is not None and self.opened[0] == resolved(path)
        if self.opened is not None and is_own_file:
            replaced = self.opened[1]
        written = save_context(path, self.sequence, self.documents, self.tokenizer, self.model_folder, replaced)
        if is_own_file:
            self.opened = resolved(path), written
