"""Complete training settings by name, as plain data for `TrainConfig.from_dict`, without data and output.

`paper/SIZE-KIND`: every row of the paper's tables, both sizes, trained as it trained them (SPEC 8).
`compare/L6-D256-KIND`: the same architectures with 5.0 million parameters outside embedding and head, small enough for
two CPU cores; docs/results.md compares them.
"""

from typing import Any

from goldfinch.config import ModelConfig
from goldfinch.errors import UserError
from goldfinch.presets import KINDS, WORLD_VOCABULARY, model_config
from goldfinch.settings import did_you_mean

MINIPILE_TOKENS = 1_498_226_207
"""Size of minipile in RWKV World tokens: the paper trained on it for one epoch."""

# The tables of SPEC 8, with what each row changes.
KIND_SUMMARIES = {
    "goldfinch": "the last third of the layers GOLD, keys compressed 16:1",
    "goldfinch_half": "the last half of the layers GOLD",
    "goldfinch_sixth": "the last sixth of the layers GOLD",
    "goldfinch_rope": "GoldFinch with rotary positions in its GOLD layers",
    "goldfinch_uncompressed": "GoldFinch with keys as wide as the model, 1:1",
    "finch": "Finch (RWKV-6), as published",
    "finch_c2": "Finch-C2: no gate, keys times 1 - w, a second value",
    "finch_c2_no_one_minus_w": "Finch-C2 without 1 - w",
    "finch_c2_no_v2": "Finch-C2 without the second value",
    "finch_c2_gptalpha": "Finch-C2 with GPTAlpha in the last third of its layers",
    "gptalpha": "GPTAlpha with rotary positions",
    "llama": "the Llama-like baseline",
}
# Size -> sequence length, sequences in a step, learning rate, final learning rate.
_PAPER_SIZES = {"L12-D768": (1024, 64, 6e-4, 2e-4), "L24-D2048": (2048, 64, 3e-4, 1e-4)}
# Channel-mix widths that give every kind 5.0 million parameters outside embedding and head.
_COMPARE_SIZE = "L6-D256"
_COMPARE_WIDTHS = {
    "goldfinch": 776,
    "goldfinch_sixth": 720,
    "goldfinch_rope": 776,
    "goldfinch_uncompressed": 736,
    "finch": 624,
    "finch_c2": 688,
    "finch_c2_gptalpha": 752,
    "gptalpha": 880,
    "llama": 744,
}


def recipe_names() -> list[str]:
    """All recipes, the paper's first."""
    paper = [f"paper/{size}-{kind}" for size in _PAPER_SIZES for kind in KINDS]
    return paper + [f"compare/{_COMPARE_SIZE}-{kind}" for kind in _COMPARE_WIDTHS]


def recipe_summary(name: str) -> str:
    """A recipe in one line."""
    return KIND_SUMMARIES[_split(name)[2]]


def recipe(name: str, vocab_size: int | None = None) -> dict[str, Any]:
    """The settings of a recipe, as `TrainConfig.from_dict` takes them, without data and output.

    Args:
        name: one of `recipe_names()`.
        vocab_size: of the data, for compare/ recipes; the paper's have 65536.

    Raises:
        UserError: an unknown recipe.
    """
    family, size, kind = _split(name)
    if family == "paper":
        return {"model": model_config(f"{kind}-{size}").to_dict(), **_paper(size)}
    model = model_config(f"{kind}-{size}", vocab_size or WORLD_VOCABULARY)
    return {"model": model.to_dict() | {"channel_width": _COMPARE_WIDTHS[kind]}, **_compare()}


def settings_for(model: ModelConfig) -> dict[str, Any]:
    """Default settings for a model without a recipe: the paper's from D = 768 on, smaller batches at a higher learning
    rate below; plain data, as from `recipe`."""
    if model.width >= 768:
        settings = _paper("L24-D2048" if model.width >= 2048 else "L12-D768")
        return {name: settings[name] for name in ("sequence_length", "batch_size", "optimizer")}
    optimizer = {"learning_rate": 3e-3, "final_learning_rate": 3e-4, "warmup_steps": 50}
    return {"sequence_length": 256, "batch_size": 8, "optimizer": optimizer}


def _paper(size: str) -> dict[str, Any]:
    sequence_length, batch_size, rate, final_rate = _PAPER_SIZES[size]
    return {
        "epochs": 1.0,
        "sequence_length": sequence_length,
        "batch_size": batch_size,
        "dtype": "bfloat16",
        "optimizer": {
            "kind": "adamw",
            "learning_rate": rate,
            "final_learning_rate": final_rate,
            "schedule": "quarter_cosine",
            "warmup_steps": 10,
            "warmup_start": 0.2,
            "beta1": 0.9,
            "beta2": 0.99,
            "eps": 1e-8,
            "weight_decay": 0.001,
            "decay_learning_rate_multiplier": 2.0,
            "max_gradient_norm": 1.0,
        },
    }


def _compare() -> dict[str, Any]:
    """4.0 million tokens."""
    return {
        "steps": 980,
        "sequence_length": 512,
        "batch_size": 8,
        "micro_batch_size": 4,
        "dtype": "float32",
        "optimizer": {
            "learning_rate": 3e-3,
            "final_learning_rate": 3e-4,
            "schedule": "quarter_cosine",
            "warmup_steps": 50,
        },
        "validate_every": 245,
        "max_validation_tokens": 65_536,
        "save_every": 70,
        "sample_every": 0,
    }


def _split(name: str) -> tuple[str, str, str]:
    """Family, size and kind of a recipe's name, which must exist."""
    known = recipe_names()
    if name not in known:
        near = did_you_mean(name, known)
        hint = near if near.startswith("did") else "`goldfinch train --recipe list` shows them"
        raise UserError(f"unknown recipe {name!r}; {hint}")
    family, _, rest = name.partition("/")
    layers, width, kind = rest.split("-")
    return family, f"{layers}-{width}", kind
