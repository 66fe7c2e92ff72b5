"""Hashes of what a saved context depends on, and of what may change without making it invalid."""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from goldfinch.cache.key_cache import crc32
from goldfinch.mixers import TIME_MIXES
from goldfinch.model import Decoder


def context_hash(model: Decoder) -> str:
    """SHA-256 over the weights that write contexts (their names, dtypes, shapes and CRC-32s) and their config.

    These are the embedding, the layers below GOLD and W_KD: what they compute is in the file; what the others compute
    is not.
    """
    config = model.config.to_dict() | {"time_mixes": model.config.time_mixes[: model.config.first_gold_layer]}
    if not rotates_below_gold(model):
        del config["rope"]  # only GOLD layers rotate anything, and they may be given other positions
    return _hash(config, {name: tensor for name, tensor in model.state_dict().items() if _is_lower(model, name)})


def prediction_hash(model: Decoder) -> str:
    """SHA-256 over all other weights (W_KU, GOLD layers, last norm, head) and their config: what predicts."""
    weights = {name: tensor for name, tensor in model.state_dict().items() if not _is_lower(model, name)}
    return _hash(model.config.to_dict(), weights)


def rotates_below_gold(model: Decoder) -> bool:
    """Whether rotary positions are in what a context keeps: in the keys of attention layers other than GOLD."""
    lower = model.config.time_mixes[: model.config.first_gold_layer]
    return any(TIME_MIXES[kind].rotates for kind in lower)


def _is_lower(model: Decoder, name: str) -> bool:
    lower = range(model.config.first_gold_layer)
    return name.startswith(
        ("embedding.", "embedding_norm.", "token_cat.down.", *(f"blocks.{layer}." for layer in lower))
    )


def _hash(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    parts = dict(sorted(weights.items()))
    # In threads: with gigabytes of weights this is most of the time that opening a file takes.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        checksums = pool.map(crc32, parts.values())
    lines = [
        f"{name} {tensor.dtype} {tuple(tensor.shape)} {checksum}"
        for (name, tensor), checksum in zip(parts.items(), checksums, strict=True)
    ]
    return hashlib.sha256("\n".join([json.dumps(config, sort_keys=True), *lines]).encode()).hexdigest()
