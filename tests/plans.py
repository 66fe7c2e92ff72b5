"""Small models of every kind that reading treats differently, and contexts in small pieces."""

from goldfinch.config import RopeConfig
from goldfinch.inference.context import Context
from goldfinch.inference.sequence import TokenSequence

PLANS = {
    "one GOLD layer": (("finch_c2", "gold"), {}),
    "two GOLD layers": (("finch_c2", "finch_c2", "gold", "gold"), {}),
    "three GOLD layers": (("finch_c2", "gold", "gold", "gold"), {}),
    "nothing but GOLD": (("gold", "gold"), {}),
    "RoPE": (("finch_c2", "gold", "gold"), {"rope": RopeConfig(rescale=2.0)}),
    "no GOLD": (("finch", "gptalpha", "llama"), {}),
}
WITH_GOLD = [name for name in PLANS if name != "no GOLD"]


SMALL = {"chunk_size": 4, "block_size": 4}
"""Pieces so small that short texts have several."""


def small_context(model, tokenizer=None, latents=None, budget="auto", **sizes):
    """A context in small pieces."""
    return Context(model, tokenizer, latents, budget, **SMALL | sizes)


def small_sequence(model, latents=None, budget=0, **sizes):
    """A sequence in small pieces."""
    return TokenSequence(model, latents, budget, **SMALL | sizes)
