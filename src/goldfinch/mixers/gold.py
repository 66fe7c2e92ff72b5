"""GOLD, the attention time mix whose keys and values come from the compressed key cache (P17-21)."""

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from goldfinch.config import ModelConfig
from goldfinch.cpu.autotune import Kernel, Work, is_faster
from goldfinch.cpu.pointers import UnfitTensorError
from goldfinch.devices import dtype_name
from goldfinch.layers.initial_values import mixing_vector, output_norm_weight
from goldfinch.layers.low_rank import LowRank
from goldfinch.layers.norm import layer_norm
from goldfinch.layers.rotary import rotate
from goldfinch.layers.token_shift import DataDependentLerp, last_token, token_shift
from goldfinch.mixers import gold_cpu
from goldfinch.mixers.time_mix import TimeMix, product_flops
from goldfinch.ops.attention import KeyValueBlock, blockwise_causal_attention, causal_attention
from goldfinch.ops.elementwise import lerp
from goldfinch.state import GoldState


class KeyValueSource(Protocol):
    """Source of keys and values for GOLD layers: of all tokens so far, at once or block by block."""

    @property
    def query_positions(self) -> Tensor | None:
        """(B, T): positions of the queries in the text; None: they are its last tokens."""

    def __len__(self) -> int:
        """S, tokens so far, the new ones included."""

    def keys_values(self, layer: "Gold") -> Iterable[KeyValueBlock]:
        """The layer's keys, rotated, and values, block by block."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedKeys:
    """The key cache at full width, the same for all GOLD layers (the output of TokenCat)."""

    keys: Tensor
    """kD, (B, S, D), unit rms (P15)."""
    embeddings: Tensor
    """e, the embeddings of the same tokens, (B, S, D), unit rms."""
    document_starts: Tensor | None = None
    """(B, S) bool, the tokens that begin a document, and so have none before them; None for one document."""

    @property
    def query_positions(self) -> None:
        """The queries are the last tokens."""

    def __len__(self) -> int:
        return self.keys.shape[1]

    def keys_values(self, layer: "Gold") -> Iterable[KeyValueBlock]:
        """All tokens in one block."""
        weights, values = layer.mix(self.embeddings, token_shift(self.embeddings, None, self.document_starts))
        keys = layer.keys(self.keys, token_shift(self.keys, None, self.document_starts), weights)
        keys = layer.rotate(keys, 0)
        return (KeyValueBlock(layer.split_heads(keys), layer.split_heads(values)),)


class Gold(TimeMix):
    """The time mix of GOLD. Only its queries see the hidden state."""

    state_type = GoldState
    attends = True
    parameter_roles: ClassVar = {"mu_e": "vector", "mu_k": "vector", "mu_v": "vector"}

    @classmethod
    def state_shapes(cls, config: ModelConfig, num_tokens: int) -> dict[str, tuple[int, ...] | None]:
        """The same at any length: what grows is the key cache of the model."""
        return {"last": (config.width,)}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.rope = config.rope
        self.ddlerp = DataDependentLerp(width, ("q",), config.shift_rank)
        self.query = nn.Linear(width, width, bias=False)
        self.mu_e = nn.Parameter(torch.empty(width))
        """mu, (D,): mixes embeddings before they choose how keys and values are mixed."""
        self.mu_k = nn.Parameter(torch.empty(width))
        self.mu_v = nn.Parameter(torch.empty(width))
        self.shift_low_rank = LowRank(width, config.shift_rank, outputs=2)
        self.key_adapter = LowRank(width, config.adapter_rank)
        self.value_adapter = LowRank(width, config.adapter_rank)
        self.query_norm = layer_norm(width)
        self.key_norm = layer_norm(width)
        self.value_norm = layer_norm(width)
        self.norm = layer_norm(width)
        self.output = nn.Linear(width, width, bias=False)

    def initialize_in_layer(self, layer: int, num_layers: int) -> None:
        """Set the mixing vectors and the norm before W_O; a new layer adds nothing."""
        for mu, use in ((self.mu_e, "e"), (self.mu_k, "k"), (self.mu_v, "v")):
            mu.copy_(mixing_vector(use, layer, num_layers, len(mu)))
        nn.init.constant_(self.norm.weight, output_norm_weight(layer, num_layers))
        nn.init.zeros_(self.output.weight)

    def expansion_flops(self) -> int:
        """The low-rank parts of keys and values."""
        return sum(map(product_flops, (self.shift_low_rank, self.key_adapter, self.value_adapter)))

    def forward(
        self,
        x: Tensor,
        state: GoldState | None,
        cache: KeyValueSource | Sequence[KeyValueSource],
        *,
        document_starts: Tensor | None = None,
    ) -> tuple[Tensor, GoldState]:
        """Attend from T tokens to all tokens of the cache up to each of them; by default they are its newest tokens.

        Args:
            x: (B, T, D).
            state: None at the start of the text.
            cache: of S tokens, the T among them; or one for each of the B sequences, of any lengths.
            document_starts: (B, T) bool, the tokens that begin a document; the cache then holds just these T tokens, in
                one block.
        """
        (x_q,) = self.ddlerp(x, token_shift(x, state.last if state else None, document_starts))
        y = self.attend(self.query_norm(self.query(x_q)), cache, document_starts)
        return self.output(self.norm(y)), GoldState(last=last_token(x))

    def attend(
        self,
        q: Tensor,
        cache: KeyValueSource | Sequence[KeyValueSource],
        document_starts: Tensor | None = None,
    ) -> Tensor:
        """Attention of queries (B, T, D) to the cache, or to their document's part of it: (B, T, D)."""
        if isinstance(cache, Sequence):
            return torch.cat([self.attend(row, each) for row, each in zip(q.split(1), cache, strict=True)])
        q = self.split_heads(q)
        positions = cache.query_positions
        q = rotate(q, len(cache) - q.shape[2] if positions is None else positions, self.rope)
        if document_starts is None:
            y = blockwise_causal_attention(q, cache.keys_values(self), len(cache), positions)
        else:
            ((k, v, _),) = cache.keys_values(self)
            y = causal_attention(q, k, v, document_starts)
        return y.transpose(1, 2).flatten(-2)

    def rotate(self, keys: Tensor, start: int) -> Tensor:
        """Keys of consecutive tokens, (..., S, D), the first at position `start`, after the rotation."""
        if self.rope is None:
            return keys
        heads = self.split_heads(keys.view(-1, *keys.shape[-2:]))
        return rotate(heads, start, self.rope).transpose(1, 2).reshape(keys.shape)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, H, S, N)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def mix(self, embeddings: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """The part of keys and values that depends only on a token and the one before it (P18-21).

        Args:
            embeddings: e of the tokens, (..., D).
            before: e of the tokens before them, zero at the start of the text.

        Returns:
            The weights that mix each token's key with the one before it, and its value, each (..., D).
        """
        adapters = self.shift_low_rank, self.value_adapter
        if gold_cpu.possible(embeddings, *adapters) and is_faster(KERNELS[embeddings.dtype]):
            mu = self.mu_e, self.mu_k, self.mu_v
            with contextlib.suppress(UnfitTensorError):  # weights of several dtypes are PyTorch's to compute or refuse
                return gold_cpu.mix(embeddings, before, mu, *adapters, self.value_norm)
        return self._mix_in_pytorch(embeddings, before)

    def _mix_in_pytorch(self, embeddings: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        difference = before - embeddings
        chosen_by = lerp(embeddings, difference, self.mu_e)
        weights_k, weights_v = self.shift_low_rank(chosen_by, self.mu_k, self.mu_v)
        v = lerp(embeddings, difference, weights_v)
        return weights_k, self.value_norm(*self.value_adapter(v, v))

    def keys(self, keys: Tensor, before: Tensor, weights: Tensor, value_index: Tensor | None = None) -> Tensor:
        """This layer's keys before the rotation (P17, P19).

        Args:
            keys: kD, (..., S, D).
            before: kD of the tokens before, (..., S, D).
            weights: of `mix`, (..., S, D), or fewer where several tokens have the same.
            value_index: (S,) int64, which of the weights are each token's; None if each has its own.
        """
        if gold_cpu.possible(keys, self.key_adapter) and is_faster(KERNELS[keys.dtype]):
            with contextlib.suppress(UnfitTensorError):
                return gold_cpu.keys(keys, before, weights, value_index, self.key_adapter, self.key_norm)
        return self._keys_in_pytorch(keys, before, weights, value_index)

    def _keys_in_pytorch(self, keys: Tensor, before: Tensor, weights: Tensor, value_index: Tensor | None) -> Tensor:
        if value_index is not None:
            weights = weights.index_select(0, value_index)
        k = lerp(keys, before - keys, weights)
        return self.key_norm(*self.key_adapter(k, k))


def _kernel(dtype: torch.dtype) -> Kernel:
    def prepare() -> tuple[Work, Work]:
        gold = Gold(ModelConfig(vocab_size=1, width=512, time_mixes=("gold",)))
        for parameter in gold.parameters():
            nn.init.uniform_(parameter, -0.05, 0.05)
        gold, (e, before) = gold.to(dtype), torch.randn(2, 256, 512).to(dtype).unbind()
        mu, adapters = (gold.mu_e, gold.mu_k, gold.mu_v), (gold.shift_low_rank, gold.value_adapter)

        def ours() -> None:
            with torch.no_grad():
                weights, _ = gold_cpu.mix(e, before, mu, *adapters, gold.value_norm)
                gold_cpu.keys(e, before, weights, None, gold.key_adapter, gold.key_norm)

        def pytorch() -> None:
            with torch.no_grad():
                weights, _ = gold._mix_in_pytorch(e, before)
                gold._keys_in_pytorch(e, before, weights, None)

        return ours, pytorch

    return Kernel(f"keys and values, {dtype_name(dtype)}", gold_cpu.SOURCE, "GOLD", prepare)


KERNELS = {dtype: _kernel(dtype) for dtype in (torch.float32, torch.bfloat16)}
"""What GOLD expands of 256 tokens."""
