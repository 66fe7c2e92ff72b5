"""Everything that a model holds of one sequence of token ids, and how it goes on, and back."""

import copy
import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from goldfinch import malloc
from goldfinch.cache.growing_tensor import GrowingTensor
from goldfinch.cache.key_cache import KeyCache
from goldfinch.cache.key_value_cache import KeyValueCache
from goldfinch.cache.latents import FloatLatents, LatentFormat
from goldfinch.inference.context_file.quantization import QuantizationProbe, QuantizationReport
from goldfinch.inference.cpu_decode import MAX_TOKENS
from goldfinch.inference.prefill import LowerState, chunks, next_token_logits, read_lower, read_upper
from goldfinch.model import Decoder
from goldfinch.state import BlockState, RecurrentState

# Automatic snapshots lie at multiples of BLOCK, of SPACING blocks, of SPACING^2 blocks ...; of each the last two stay.
SPACING = 4
# Releasing memory makes the next chunks fault it in again: at every block that takes a twentieth of the time.
BLOCKS_PER_RELEASE = 2


@dataclasses.dataclass(frozen=True)
class _Predicted:
    """What the GOLD layers and the head made of the end of the text."""

    length: int
    """Of that text, in tokens."""
    upper: list[BlockState]
    """States of the GOLD layers after it."""
    logits: Tensor
    """(V,) float32."""


@dataclasses.dataclass(frozen=True)
class _Trial:
    """Tokens that may not stay: where the sequence was before them, and what they made of it."""

    before: int
    """Tokens before the trial."""
    behind: int
    """How many of those the state had not seen."""
    state: LowerState
    """The state at that time."""
    predicted: _Predicted | None
    """The prediction at that time."""
    after: LowerState
    """The state after all tokens of the trial."""
    upper: list[BlockState]
    """The same of the GOLD layers."""
    logits: Tensor
    """(tokens of the trial, V)."""


class TokenSequence:
    """One sequence: the key memory, the states, what is kept rebuilt, and snapshots to go back to.

    The layers below GOLD run when tokens are appended; GOLD layers and head only when logits are asked for.

    Args:
        model: any plan.
        latents: how they are stored; None for the model's own type, which rounds nothing.
        budget: bytes of rebuilt keys and values to keep at most.
    """

    def __init__(self, model: Decoder, latents: LatentFormat | None, budget: int) -> None:
        weight = model.head.weight
        has_gold = model.config.num_gold_layers > 0
        self.model = model
        self.key_cache = KeyCache(
            model.config, (latents or FloatLatents(weight.dtype)) if has_gold else None, weight.device
        )
        self.key_value_cache = KeyValueCache(model, self.key_cache, budget) if has_gold else None
        self._state: LowerState | None = None
        self._behind = 0  # tokens at the end that the state has not seen
        self._trial: _Trial | None = None
        self.snapshots: dict[int, LowerState] = {}
        """Position -> the state there."""
        self.chosen: set[int] = set()
        """Positions of snapshots that were asked for and are never dropped."""
        self.quantization: QuantizationReport | None = None
        self.probe: QuantizationProbe | None = None
        """What to measure the certificate from; None once it is made, or where latents are not rounded to integers."""
        if self.key_cache.format is not None and not self.key_cache.format.exact:
            self.probe = QuantizationProbe(model)
        self._predicted: _Predicted | None = None

    def __len__(self) -> int:
        """Tokens."""
        return len(self.key_cache)

    @property
    def state(self) -> LowerState | None:
        """After the last token; None while there is none."""
        if self._behind:
            ids, self._behind = self.key_cache.ids(len(self) - self._behind, len(self)), 0
            with torch.inference_mode():
                _, self._state = read_lower(self.model, ids, self._state)
        return self._state

    @state.setter
    def state(self, state: LowerState | None) -> None:
        self._state, self._behind = state, 0

    @torch.inference_mode()
    def append(self, ids: Tensor, progress: Callable[[int], None] | None = None) -> None:
        """Read (T,) int64 ids. When the reading is broken off, the sequence is as it was.

        Args:
            ids: T >= 1 of them, in the vocabulary.
            progress: called after each chunk with the number of its tokens.
        """
        before, state, snapshots = len(self), self.state, self.snapshots
        try:
            for start, stop in chunks(before, before + len(ids)):
                self._read(ids[start - before : stop - before])
                if progress is not None:
                    progress(stop - start)
        except BaseException:
            self._forget(before)
            self.state, self.snapshots = state, snapshots
            raise

    def _read(self, ids: Tensor) -> None:
        x, state = read_lower(self.model, ids, self.state)
        latents = self.model.token_cat.compress(x)[0] if self.model.token_cat is not None else None
        self.key_cache.append(ids, latents)
        if self.probe is not None and latents is not None:
            self.probe.observe(ids, latents, x, self.state)
        self.state = state
        if len(self) % GrowingTensor.BLOCK == 0:
            self._snapshot_if_small(state)
        if len(self) % (BLOCKS_PER_RELEASE * GrowingTensor.BLOCK) == 0:
            malloc.trim()

    def _snapshot_if_small(self, state: LowerState) -> None:
        """Keep the state, and drop older ones, if it is of fixed size."""
        if all(isinstance(block.time_mix, RecurrentState) for block in state.blocks):
            keep = self.chosen | log_spaced(len(self))
            self.snapshots = {place: kept for place, kept in self.snapshots.items() if place in keep}
            self.snapshots[len(self)] = state

    def snapshot(self) -> None:
        """Keep the present state, so that going back here costs nothing."""
        if self.state is not None:
            self.snapshots[len(self)] = self.state
            self.chosen.add(len(self))

    @property
    def logits(self) -> Tensor:
        """(V,) float32: what follows the last token.

        Raises:
            ValueError: there is no token yet.
            UserError: the memory comes from a file that is damaged.
        """
        if self.state is None:
            raise ValueError("the context is empty: read a text first")
        if self._predicted is None or self._predicted.length != len(self):
            self._predicted = self._predict(self.state.recent)
        return self._predicted.logits

    @torch.inference_mode()
    def try_tokens(self, ids: Tensor) -> Tensor:
        """Append (T,) tokens of which `keep` then says how many stay; all of them go through the model in one step.

        The tokens that the last trial kept, when it did not keep all, go through the lower layers once more together
        with these: few tokens take hardly longer than one.

        Args:
            ids: T >= 1; none but the last may end a block, where a snapshot is due.

        Returns:
            (T, V) float32: what follows each of them.
        """
        assert self._state is not None
        assert self.probe is None
        if self._behind + len(ids) > MAX_TOKENS:
            assert self.state is not None  # asking for it brings it up to date
        before, behind, state, predicted = len(self), self._behind, self._state, self._predicted
        fed = torch.cat([self.key_cache.ids(before - behind, before), ids])
        x, after = read_lower(self.model, fed, state)
        latents = self.model.token_cat.compress(x[:, behind:])[0] if self.model.token_cat is not None else None
        self.key_cache.append(ids, latents)
        hidden, upper = self._upper(torch.cat([state.recent, x], dim=1), len(ids))
        logits = next_token_logits(self.model, hidden)
        self._trial = _Trial(before, behind, state, predicted, after, upper, logits)
        self.keep(len(ids))
        return logits

    def room_in_block(self) -> int:
        """How many tokens can be appended up to the end of a block, where a snapshot is due."""
        return GrowingTensor.BLOCK - len(self) % GrowingTensor.BLOCK

    def keep(self, count: int) -> None:
        """Let the first `count` tokens of the trial stay, 1 or more. May be called again with fewer."""
        trial = self._trial
        assert trial is not None
        length = trial.before + count
        if count == len(trial.logits):
            self.state, self._predicted = trial.after, _Predicted(length, trial.upper, trial.logits[-1])
            if length % GrowingTensor.BLOCK == 0:
                self._snapshot_if_small(trial.after)
            return
        self._forget(length)
        self._state, self._behind, self._predicted = trial.state, trial.behind + count, trial.predicted
        self._trial = trial

    def _predict(self, recent: Tensor) -> _Predicted:
        with torch.inference_mode():
            hidden, upper = self._upper(recent, 1)
            return _Predicted(len(self), upper, next_token_logits(self.model, hidden)[0])

    def _upper(self, recent: Tensor, wanted: int) -> tuple[Tensor, list[BlockState]]:
        """(wanted, D), normalised hidden states of the last tokens, and the GOLD layers' states after them."""
        if self.key_value_cache is None:
            return self.model.output_norm(recent[0, -wanted:]), []
        past = self._predicted
        new, states = (len(self) - past.length, past.upper) if past is not None else (len(self), None)
        hidden, upper = read_upper(self.model, recent, new, states, self.key_value_cache, wanted)
        return hidden[0], upper

    @torch.inference_mode()
    def trim(self, length: int, progress: Callable[[int], None] | None = None) -> int:
        """Go back to the first `length` tokens; returns how many were read again, from the nearest snapshot on.

        Their latents are not computed anew: only the state of the layers below GOLD is.
        """
        if length == len(self):
            return 0
        usable = [position for position in self.snapshots if position <= length]
        start = max(usable, default=0)
        state = self.snapshots.get(start)
        for first, last in chunks(start, length):
            _, state = read_lower(self.model, self.key_cache.ids(first, last), state)
            if progress is not None:
                progress(last - first)
        self._forget(length)
        self.state = state
        return length - start

    def resume(
        self,
        memory: KeyCache,
        state: LowerState,
        snapshots: dict[int, LowerState],
        chosen: set[int],
        certificate: QuantizationReport | None,
    ) -> None:
        """Become the sequence that was saved with these parts."""
        self.key_cache, self.state, self.snapshots, self.chosen = memory, state, snapshots, chosen
        self.quantization, self.probe, self._predicted = certificate, None, None
        if self.key_value_cache is not None:
            self.key_value_cache = KeyValueCache(self.model, memory, self.key_value_cache.budget)

    def _forget(self, length: int) -> None:
        self._trial = None
        self.key_cache.truncate(length)
        if self.key_value_cache is not None:
            self.key_value_cache.truncate(length)
        if self.probe is not None:
            self.probe.truncate(length)
        self.snapshots = {position: state for position, state in self.snapshots.items() if position <= length}
        self.chosen &= self.snapshots.keys()
        if self._predicted is not None and self._predicted.length > length:
            self._predicted = None

    def fork(self) -> "TokenSequence":
        """A second sequence with the same past. No call changes a state in place, so that both may hold the same."""
        other = copy.copy(self)
        other.key_cache = self.key_cache.fork()
        other.key_value_cache = self.key_value_cache.fork(other.key_cache) if self.key_value_cache is not None else None
        other.probe = self.probe.fork() if self.probe is not None else None
        other.snapshots, other.chosen = dict(self.snapshots), set(self.chosen)
        return other

    @torch.inference_mode()
    def measure_quantization(self) -> QuantizationReport | None:
        """Measure what integer latents change, once; the unrounded ones are dropped then. None without integers."""
        if self.probe is not None:
            self.quantization = self.probe.measure_quantization(self.key_cache) or self.quantization
            self.probe = None
        return self.quantization

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes held, measured from the tensors."""
        upper = self._predicted.upper if self._predicted is not None else []
        return {
            "memory": self.key_cache.nbytes,
            "state": sum(tensor.nbytes for state in upper for tensor in state.tensors())
            + (self.state.nbytes if self.state is not None else 0),
            "expanded": self.key_value_cache.nbytes if self.key_value_cache is not None else 0,
            # One at the very end is the state itself.
            "snapshots": sum(kept.nbytes for kept in self.snapshots.values() if kept is not self.state),
            "unrounded": self.probe.nbytes if self.probe is not None else 0,
        }


def log_spaced(length: int) -> set[int]:
    """Where snapshots of a text of `length` tokens stay: dense near its end, so that going back d tokens reads fewer
    than max(2 BLOCK, 7 d) again.
    """
    levels = range(math.ceil(math.log(max(length, 1), SPACING)) + 1)
    spacings = [GrowingTensor.BLOCK * SPACING**level for level in levels]
    last = {length // spacing * spacing - back for spacing in spacings for back in (0, spacing)}
    return {position for position in last if position > 0}
