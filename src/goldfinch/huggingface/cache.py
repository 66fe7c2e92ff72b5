"""The cache of transformers on the sequences of our engine."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import Cache

from goldfinch.cache.budget import AUTO, parse_budget
from goldfinch.cache.latents import latent_format
from goldfinch.checkpoint.config_json import ATTENTION
from goldfinch.huggingface.configuration import GoldFinchConfig
from goldfinch.huggingface.padding import Rows
from goldfinch.inference.batch import advance_together
from goldfinch.inference.context_file.format import open_context
from goldfinch.inference.points import Mark
from goldfinch.inference.sequence import TokenSequence
from goldfinch.model import Decoder


class GoldFinchCache(Cache):
    """All that a model keeps of each row of a batch: states of fixed size, token ids and compressed keys.

    Made by a forward pass with `use_cache`, or here to choose how it is stored; `open` reads a context file, so that
    `generate` continues after a book:

        cache = GoldFinchCache.open("book.gfc", model)
        model.generate(**tokenizer("Who is Ahab?", return_tensors="pt"), cache=cache)

    Rows are independent sequences: padding takes no room in them.

    Args:
        config: of the model.
        latents: how compressed keys are stored: "bfloat16", "float32", "int8", "int4"; None for the model's own dtype.
        budget: maximum bytes of expanded keys and values of each row; "auto" is half of the free memory, for all.
    """

    def __init__(self, config: GoldFinchConfig, latents: str | None = None, budget: int | str = AUTO) -> None:
        super().__init__(layers=[])
        self._config = config
        self._latents, self._budget = latents, budget
        self.sequences: list[TokenSequence] = []
        """One of each row."""
        self._is_token = torch.empty(0, 0, dtype=torch.bool)  # (B, columns seen)
        self._marks: list[Mark] = []  # of each row, before the last forward pass
        self._unread: list[tuple[Decoder, Rows]] = []

    @classmethod
    def open(cls, path: str | Path, model: Any, budget: int | str = AUTO) -> Self:
        """The context in a file that `Context.save` or `goldfinch read` has written.

        Args:
            path: the file.
            model: a `GoldFinchForCausalLM`, with the weights and the dtype that have written it.
            budget: maximum bytes of expanded keys and values.

        Raises:
            UserError: the file is missing, corrupt, or of another model.
        """
        decoder = model.model.decoder(model.lm_head)
        cache = cls(model.config, budget=budget)
        sequence = cache._new_sequences(decoder, 1)[0]
        open_context(Path(path), sequence, None)
        cache.sequences = [sequence]
        cache._is_token = torch.ones(1, len(sequence), dtype=torch.bool)
        return cache

    def _new_sequences(self, decoder: Decoder, count: int) -> list[TokenSequence]:
        latents = latent_format(self._latents, decoder.config.latent_width) if self._latents else None
        budget = parse_budget(self._budget, decoder.device)
        budget = budget // count if self._budget == AUTO else budget
        return [TokenSequence(decoder, latents, budget) for _ in range(count)]

    def read(self, decoder: Decoder, rows: Rows, wanted: int, after_row: Callable[[int], None] | None = None) -> Tensor:
        """Continue each row with its new tokens.

        Args:
            decoder: the model.
            rows: as many as before, unless this is the first call.
            wanted: W, columns at the end that have outputs.
            after_row: called after each row; then rows are read one after another.

        Returns:
            (B, W, D), normalised hidden states; padding behind a token has those of the token, and before it zero.
        """
        self._catch_up()
        self._begin(decoder, rows)
        hidden = torch.zeros(
            len(self.sequences), wanted, decoder.config.width, dtype=decoder.dtype, device=decoder.device
        )
        if (
            rows.shape[1] == wanted == 1
            and rows.is_token is None
            and after_row is None
            and all(map(len, self.sequences))
        ):
            hidden[:, 0] = advance_together(self.sequences, rows.ids[:, 0])
            return hidden
        for row, sequence in enumerate(self.sequences):
            tokens, count = rows.tokens(row), rows.num_wanted(row, wanted)
            if (before := rows.num_before(row, wanted)) and len(sequence):
                hidden[row, :before] = sequence.predict().hidden
            if len(tokens) and count:
                rows.place(row, sequence.advance(tokens, count), wanted, hidden)
            elif len(tokens):
                sequence.append(tokens)
            if after_row is not None:
                after_row(row)
        return hidden

    def read_later(self, decoder: Decoder, rows: Rows) -> None:
        """Continue each row when the cache is next used, if ever: in training it is not."""
        self._unread.append((decoder, rows))

    def _catch_up(self) -> None:
        while self._unread:
            decoder, rows = self._unread.pop(0)
            self._begin(decoder, rows)
            for row, sequence in enumerate(self.sequences):
                if len(tokens := rows.tokens(row)):
                    sequence.append(tokens)

    def _begin(self, decoder: Decoder, rows: Rows) -> None:
        """Check that the rows continue those of before, and remember the point to go back to."""
        if not self.sequences:
            self.sequences = self._new_sequences(decoder, len(rows.ids))
            self._is_token = torch.empty(len(rows.ids), 0, dtype=torch.bool)
        if len(self.sequences) != len(rows.ids):
            raise ValueError(f"the cache has {len(self.sequences)} rows, and {len(rows.ids)} are to continue them")
        if self.sequences[0].model.blocks is not decoder.blocks:
            raise ValueError("the cache is of another model")
        is_token = torch.ones(rows.shape, dtype=torch.bool) if rows.is_token is None else rows.is_token.cpu()
        self._is_token = torch.cat([self._is_token, is_token], dim=1)
        self._marks = [sequence.mark() for sequence in self.sequences]

    def ids(self) -> tuple[Tensor, Tensor]:
        """All that was read: (B, S) ids, 0 where there was padding, and (B, S) bool, where there was none."""
        self._catch_up()
        ids = torch.zeros(self._is_token.shape, dtype=torch.int64)
        for row, sequence in enumerate(self.sequences):
            ids[row, self._is_token[row]] = sequence.key_cache.ids(0, len(sequence)).cpu()
        return ids, self._is_token

    # What transformers asks a cache for.

    def __len__(self) -> int:
        return self._config.num_hidden_layers

    def __repr__(self) -> str:
        tokens = ", ".join(f"{len(sequence):,}" for sequence in self.sequences[:4])
        more = ", ..." if len(self.sequences) > 4 else ""
        return f"<GoldFinchCache: {len(self.sequences)} rows of {tokens}{more} tokens>"

    def __deepcopy__(self, memo: dict[int, Any]) -> "GoldFinchCache":
        """The same rows once more; what has been read is shared, and the model of course."""
        self._catch_up()
        other = GoldFinchCache(self._config, self._latents, self._budget)
        other.sequences = [sequence.fork() for sequence in self.sequences]
        other._is_token = self._is_token
        return other

    @property
    def batch_size(self) -> int:
        """Number of rows; -1 before the first is read."""
        return len(self.sequences) or (len(self._unread[0][1].ids) if self._unread else -1)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns that have been read, with padding."""
        return self._is_token.shape[1] + sum(rows.shape[1] for _, rows in self._unread)

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: there is no limit."""
        return -1

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """As `get_seq_length`."""
        return self.get_seq_length()

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Columns that the next `query_length` tokens see, and the first of these."""
        return self.get_seq_length() + query_length, 0

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """Whether anything has been read."""
        return self.get_seq_length() > 0

    @property
    def is_initialized(self) -> bool:
        """Whether anything has been read."""
        return self.has_previous_state()

    @property
    def is_compileable(self) -> bool:
        """It grows, so the forward pass that continues it is not compiled."""
        return False

    @property
    def is_croppable(self) -> bool:
        """`crop` puts rows back as they were."""
        return True

    @property
    def is_sliding(self) -> list[bool]:
        """No layer forgets."""
        return [False] * len(self)

    @property
    def is_linear(self) -> list[bool]:
        """Which layers have a recurrent state alone."""
        return [kind != ATTENTION for kind in self._config.layer_types or ()]

    @property
    def is_dummy(self) -> list[bool]:
        """None."""
        return [False] * len(self)

    def activate_past_recording(self) -> None:
        """Nothing to do: it can always go back."""

    def is_recording_past(self, layer_idx: int) -> bool:
        """It can always go back."""
        return True

    def prefetch(self, layer_idx: int, only_non_sliding: bool = True) -> None:
        """Nothing to do: nothing is offloaded."""

    def offload(self, layer_idx: int, only_non_sliding: bool = True) -> None:
        """Nothing to do: what is worth offloading is not kept, but rebuilt (`budget`)."""

    def early_initialization(self, *_: Any, **__: Any) -> None:
        """Nothing to do: rows are made when they are read."""

    def update(self, *_: Any, **__: Any) -> Any:
        """Refused: no layer stores keys and values of its own."""
        raise NotImplementedError(
            "a GoldFinchCache holds compressed keys for all layers: only its own models continue it"
        )

    def reset(self) -> None:
        """Forget all rows."""
        self.sequences, self._marks, self._unread = [], [], []
        self._is_token = torch.empty(0, 0, dtype=torch.bool)

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last columns: -n for n of them.

        Back to the last forward pass this costs nothing; further back, the recurrent layers read again from the nearest
        snapshot.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes the number of columns to drop as a negative number, not {tokens_to_remove}")
        if not tokens_to_remove:
            return
        self._catch_up()
        kept = max(0, self._is_token.shape[1] + tokens_to_remove)
        lengths = self._is_token[:, :kept].sum(1).tolist()
        for row, (sequence, length) in enumerate(zip(self.sequences, lengths, strict=True)):
            mark = self._marks[row] if self._marks else None
            if mark is not None and mark.state is not None and mark.length <= length < len(sequence):
                sequence.rewind(length, mark)
            else:
                sequence.truncate(length)
        self._is_token = self._is_token[:, :kept]

    def _select(self, rows: Sequence[int]) -> None:
        self._catch_up()
        if self.sequences:
            taken: set[int] = set()
            chosen = []
            for row in rows:
                chosen.append(self.sequences[row].fork() if row in taken else self.sequences[row])
                taken.add(row)
            self._marks = [self._marks[row] for row in rows] if self._marks else []
            self.sequences, self._is_token = chosen, self._is_token[list(rows)]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes row `beam_idx[i]`; what several have in common is shared."""
        self._select(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times, one behind the other."""
        self._select([row for row in range(max(self.batch_size, 0)) for _ in range(repeats)])

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only these rows."""
        self._select(torch.arange(max(self.batch_size, 0))[indices.cpu()].tolist())

    def begins(self, input_ids: Tensor) -> bool:
        """Whether (B, T) ids begin with what has been read, of which `generate` then takes the rest only."""
        ids, is_token = self.ids()
        start = input_ids[:, : ids.shape[1]].cpu()
        return start.shape == ids.shape and bool((start == ids)[is_token].all())
