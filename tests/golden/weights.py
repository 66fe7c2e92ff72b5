"""Weights by formula: the same numbers on every machine, so that no weights need to be stored."""

import zlib

import numpy as np


def uniform(name: str, count: int, seed: int) -> np.ndarray:
    """`count` float32 numbers in [-1, 1), fixed by (name, seed): Philox4x64 raw words, top 24 bits."""
    raw = np.random.Philox(key=zlib.crc32(name.encode()) + (seed << 32)).random_raw(count)
    return ((raw >> np.uint64(40)).astype(np.float64) / 2.0**23 - 1.0).astype(np.float32)


def weight(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The value of parameter `name` (the reference implementation's name for it) of `shape`."""
    u = uniform(name, int(np.prod(shape)), seed).reshape(shape)
    if name.endswith("time_decay"):  # (1, 1, d): from slow to fast, as trained models have it
        return np.linspace(-6.0, 0.0, shape[-1], dtype=np.float32).reshape(shape) + 0.3 * u
    if "ln" in name.split(".")[-2] and name.endswith(".weight"):
        return 1.0 + 0.3 * u
    if ".time_maa_" in name and shape[:2] == (1, 1):
        return 0.5 + 0.5 * u
    if name == "emb.weight":
        return u
    if len(shape) == 1 or name.endswith("time_faaaa"):
        return 0.3 * u
    fan_in = shape[-1] if name.endswith(".weight") else shape[-2]
    return u * np.float32((3.0 / fan_in) ** 0.5)
