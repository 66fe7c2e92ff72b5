"""Small models of every kind that reading treats differently."""

from goldfinch.config import RopeConfig

PLANS = {
    "one GOLD layer": (("finch_c2", "gold"), {}),
    "two GOLD layers": (("finch_c2", "finch_c2", "gold", "gold"), {}),
    "three GOLD layers": (("finch_c2", "gold", "gold", "gold"), {}),
    "nothing but GOLD": (("gold", "gold"), {}),
    "RoPE": (("finch_c2", "gold", "gold"), {"rope": RopeConfig(rescale=2.0)}),
    "no GOLD": (("finch", "gptalpha", "llama"), {}),
}
WITH_GOLD = [name for name in PLANS if name != "no GOLD"]
