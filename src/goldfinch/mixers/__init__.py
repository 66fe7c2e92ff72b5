"""Time mixes behind one protocol: forward(x, state, *, document_starts) -> (y, state). GOLD takes a key cache as well.

document_starts: (B, T) bool, the tokens that begin a document: nothing from an earlier document reaches them. None for
one document.
"""

from collections.abc import Callable

from torch import nn

from goldfinch.config import ModelConfig, TimeMixKind
from goldfinch.mixers.attention import GptAlpha, LlamaAttention
from goldfinch.mixers.finch import Finch, FinchC2
from goldfinch.mixers.gold import Gold, KeyValueSource, SharedKeys

__all__ = ["TIME_MIXES", "Finch", "FinchC2", "Gold", "GptAlpha", "KeyValueSource", "LlamaAttention", "SharedKeys"]

TIME_MIXES: dict[TimeMixKind, Callable[[ModelConfig], nn.Module]] = {
    "finch": Finch,
    "finch_c2": FinchC2,
    "finch_c2_no_one_minus_w": lambda config: FinchC2(config, one_minus_w=False),
    "finch_c2_no_v2": lambda config: FinchC2(config, second_value=False),
    "gold": Gold,
    "gptalpha": GptAlpha,
    "llama": LlamaAttention,
}
