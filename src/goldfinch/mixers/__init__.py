"""Time mixes, each with the facts about itself (`TimeMix`), and the names that layer plans use (`TIME_MIXES`)."""

from goldfinch.mixers.attention import GptAlpha, LlamaAttention
from goldfinch.mixers.finch import Finch, FinchC2
from goldfinch.mixers.gold import Gold, KeyValueSource, SharedKeys
from goldfinch.mixers.time_mix import TIME_MIXES, TimeMix, register_time_mix

__all__ = [
    "TIME_MIXES",
    "Finch",
    "FinchC2",
    "Gold",
    "GptAlpha",
    "KeyValueSource",
    "LlamaAttention",
    "SharedKeys",
    "TimeMix",
    "register_time_mix",
]

register_time_mix("finch", Finch)
register_time_mix("finch_c2", FinchC2)
register_time_mix("finch_c2_no_one_minus_w", FinchC2, one_minus_w=False)
register_time_mix("finch_c2_no_v2", FinchC2, second_value=False)
register_time_mix("gold", Gold)
register_time_mix("gptalpha", GptAlpha)
register_time_mix("llama", LlamaAttention)
