"""One layer: a time mix and a channel mix, each behind a norm and around a residual."""

from collections.abc import Sequence

from torch import Tensor, nn

from goldfinch.config import ModelConfig
from goldfinch.layers.channel_mix import RwkvChannelMix, SwiGlu
from goldfinch.layers.norm import layer_norm
from goldfinch.mixers import TIME_MIXES, KeyValueSource
from goldfinch.state import BlockState

CHANNEL_MIXES = {"rwkv": RwkvChannelMix, "swiglu": SwiGlu}


class Block(nn.Module):
    """x += time_mix(ln1(x)); x += channel_mix(ln2(x))."""

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__()
        self.time_mix_norm = layer_norm(config.width)
        self.time_mix = TIME_MIXES[kind].build(config)
        self.channel_mix_norm = layer_norm(config.width)
        self.channel_mix = CHANNEL_MIXES[config.channel_mix](config.width, config.channel_mix_width)

    def forward(
        self,
        x: Tensor,
        state: BlockState | None = None,
        cache: KeyValueSource | Sequence[KeyValueSource] | None = None,
        document_starts: Tensor | None = None,
    ) -> tuple[Tensor, BlockState]:
        """(B, T, D) -> (B, T, D).

        Args:
            x: the residual stream.
            state: None at the start of the text.
            cache: for GOLD layers only.
            document_starts: (B, T) bool, the tokens that begin a document; None for one document.
        """
        shared = () if cache is None else (cache,)
        y, time_mix = self.time_mix(
            self.time_mix_norm(x), state.time_mix if state else None, *shared, document_starts=document_starts
        )
        x = x + y
        last = state.channel_mix if state else None
        y, channel_mix = self.channel_mix(self.channel_mix_norm(x), last, document_starts=document_starts)
        return x + y, BlockState(time_mix=time_mix, channel_mix=channel_mix)
