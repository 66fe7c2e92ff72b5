"""The paper's results, to compare with ours (arXiv 2407.12077; SPEC 8)."""

from goldfinch.config import ModelConfig
from goldfinch.presets import KINDS

ABLATION_LOSS = {
    "finch_c2_no_one_minus_w": 2.7293,
    "finch": 2.7191,
    "llama": 2.7125,
    "finch_c2_no_v2": 2.7105,
    "finch_c2": 2.7082,
    "gptalpha": 2.6684,
    "goldfinch_half": 2.6637,
    "goldfinch_rope": 2.6590,
    "finch_c2_gptalpha": 2.6586,
    "goldfinch": 2.6582,
    "goldfinch_sixth": 2.6578,
}
"""Kind -> nats per token: L12 D768, context 1024, one pass over minipile (1.5 billion tokens)."""

LARGE_LOSS = {"llama": 2.3905, "finch": 2.3856, "goldfinch": 2.2762, "goldfinch_uncompressed": 2.2762}
"""Kind -> nats per token: L24 D2048, context 2048, the same data."""


def kind_of(config: ModelConfig) -> str | None:
    """Which of the paper's kinds a model is, whatever its sizes; None for others.

    With few layers two kinds may be the same plan; then it is the one that stands first in `KINDS`.
    """
    for kind, build in KINDS.items():
        same = build(config.num_layers, config.width, config.vocab_size)
        if (same.time_mixes, same.channel_mix) != (config.time_mixes, config.channel_mix):
            continue
        if same.rope == config.rope and (not config.num_gold_layers or same.latent_ratio == config.latent_ratio):
            return kind
    return None
