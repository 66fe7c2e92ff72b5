"""The recurrent time mixes: Finch (F14-22) and Finch-C2 (P4-13)."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from goldfinch.config import ModelConfig
from goldfinch.layers.initial_values import bonus, decay_base, orthogonal_, output_norm_weight
from goldfinch.layers.low_rank import LowRank
from goldfinch.layers.norm import layer_norm
from goldfinch.layers.token_shift import DataDependentLerp, last_token, token_shift
from goldfinch.mixers.time_mix import TimeMix, product_flops
from goldfinch.ops.wkv6 import wkv6
from goldfinch.state import RecurrentState

HEAD_NORM_EPS = 64e-5


class Decay(nn.Module):
    """The data-dependent decay w = exp(-exp(d)), d = lambda_d + tanh(x A_d) B_d (P4-13, F14-22)."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.empty(width))
        """lambda_d, (D,)."""
        self.low_rank = LowRank(width, rank)

    parameter_roles: ClassVar = {"base": "decay"}

    def initialize_in_layer(self, layer: int, num_layers: int) -> None:
        """Set lambda_d."""
        self.base.copy_(decay_base(layer, num_layers, len(self.base)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> log w = -exp(d), (B, T, D) in fp32 or better: in bf16 slow decays would all round to 1."""
        (change,) = self.low_rank(x)
        if change.itemsize < 4:
            change = change.float()
        return -torch.exp(self.base + change)


class RecurrentTimeMix(TimeMix):
    """Base of Finch and Finch-C2: their state, and the cost of the WKV6 recurrence."""

    state_type = RecurrentState
    is_recurrent = True
    parameter_roles: ClassVar = {"bonus": "vector"}

    num_heads: int
    key: nn.Linear
    output: nn.Linear
    norm: nn.GroupNorm | nn.LayerNorm
    bonus: nn.Parameter | None

    @classmethod
    def state_shapes(cls, config: ModelConfig, num_tokens: int) -> dict[str, tuple[int, ...] | None]:
        """The same at any length."""
        return {"last": (config.width,), "wkv": (config.num_heads, config.head_size, config.head_size)}

    def initialize_in_layer(self, layer: int, num_layers: int) -> None:
        """Start small keys, the bonus, the norm before W_O, and no output."""
        orthogonal_(self.key, 0.1)
        if self.bonus is not None:
            self.bonus.copy_(bonus(layer, num_layers, *self.bonus.shape))
        nn.init.constant_(self.norm.weight, output_norm_weight(layer, num_layers))
        nn.init.zeros_(self.output.weight)

    def extra_flops(self) -> int:
        """The recurrence."""
        return self.recurrence_flops()

    def recurrence_flops(self) -> int:
        """Per entry of S: a multiply-add for y = r S, a multiplication and a multiply-add for S = diag(w) S + k^T v."""
        width = self.key.weight.shape[0]
        return (2 + 1 + 2) * width * (width // self.num_heads)


class Finch(RecurrentTimeMix):
    """The time mix of Finch (RWKV-6)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.ddlerp = DataDependentLerp(width, ("w", "k", "v", "r", "g"), config.shift_rank)
        self.decay = Decay(width, config.decay_rank)
        self.bonus = nn.Parameter(torch.empty(self.num_heads, config.head_size))
        """u, (H, N)."""
        self.receptance = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, width, bias=False)
        self.norm = nn.GroupNorm(self.num_heads, width, eps=HEAD_NORM_EPS)
        self.output = nn.Linear(width, width, bias=False)

    def initialize_in_layer(self, layer: int, num_layers: int) -> None:
        """As Finch-C2, and a small gate."""
        super().initialize_in_layer(layer, num_layers)
        orthogonal_(self.gate, 0.1)

    def forward(
        self, x: Tensor, state: RecurrentState | None = None, *, document_starts: Tensor | None = None
    ) -> tuple[Tensor, RecurrentState]:
        """(B, T, D) -> (B, T, D); document_starts: (B, T) bool, the tokens that begin a document."""
        x_w, x_k, x_v, x_r, x_g = self.ddlerp(x, token_shift(x, state.last if state else None, document_starts))
        r, k, v, log_w = (
            part.unflatten(-1, (self.num_heads, -1))
            for part in (self.receptance(x_r), self.key(x_k), self.value(x_v), self.decay(x_w))
        )
        y, wkv = wkv6(r, k, v, log_w, self.bonus, state.wkv if state else None, document_starts=document_starts)
        y = self.norm(y.flatten(0, 1).flatten(-2)).view(x.shape)
        return self.output(y * F.silu(self.gate(x_g))), RecurrentState(last=last_token(x), wkv=wkv)


class FinchC2(RecurrentTimeMix):
    """The time mix of Finch-C2: no gate, keys scaled by 1 - w, and a second value instead of the bonus.

    Args:
        config: sizes.
        one_minus_w: False for the paper's ablation that leaves the keys unscaled.
        second_value: False for the ablation that goes back to Finch's bonus u. As in the reference, it keeps the
            second value's weights without using them, so that its checkpoints convert bit for bit.
    """

    def __init__(self, config: ModelConfig, one_minus_w: bool = True, second_value: bool = True) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.one_minus_w = one_minus_w
        self.ddlerp = DataDependentLerp(width, ("r", "k", "v", "w", "v2"), config.shift_rank)
        self.decay = Decay(width, config.decay_rank)
        self.second_value = LowRank(width, config.value_rank)
        self.bonus = None if second_value else nn.Parameter(torch.empty(self.num_heads, config.head_size))
        """u, (H, N)."""
        self.receptance = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.norm = layer_norm(width)
        self.output = nn.Linear(width, width, bias=False)

    def extra_flops(self) -> int:
        """The recurrence; v and v2 share W_V, and the ablation without v2 keeps unused low-rank weights."""
        second_value = product_flops(self.value) if self.bonus is None else -product_flops(self.second_value)
        return self.recurrence_flops() + second_value

    def forward(
        self, x: Tensor, state: RecurrentState | None = None, *, document_starts: Tensor | None = None
    ) -> tuple[Tensor, RecurrentState]:
        """(B, T, D) -> (B, T, D); document_starts: (B, T) bool, the tokens that begin a document."""
        x_r, x_k, x_v, x_w, x_v2 = self.ddlerp(x, token_shift(x, state.last if state else None, document_starts))
        log_w = self.decay(x_w)
        k = self.key(x_k)
        if self.one_minus_w:
            k = (k * torch.expm1(log_w)).neg_()  # times 1 - w, exact also where w is near 1
        r, k, v, log_w = (
            part.unflatten(-1, (self.num_heads, -1)) for part in (self.receptance(x_r), k, self.value(x_v), log_w)
        )
        y, wkv = wkv6(r, k, v, log_w, self.bonus, state.wkv if state else None, document_starts=document_starts)
        y = y.flatten(-2)
        if self.bonus is None:
            y = y + self.second_value(x_v2, self.value(x_v2))[0]
        return self.output(self.norm(y)), RecurrentState(last=last_token(x), wkv=wkv)
