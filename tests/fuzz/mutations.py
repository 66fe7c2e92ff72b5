"""Damage to files: each mutation is a function of the file's bytes and of a seeded generator, so it can be repeated."""

import json
import random
from collections.abc import Callable
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]


def flip_bit(content: bytes, choose: random.Random) -> bytes:
    at = choose.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << choose.randrange(8)]) + content[at + 1 :]


def truncate(content: bytes, choose: random.Random) -> bytes:
    return content[: choose.randrange(len(content))]


def insert(content: bytes, choose: random.Random) -> bytes:
    at = choose.randrange(len(content) + 1)
    return content[:at] + choose.randbytes(choose.randint(1, 16)) + content[at:]


def zero_range(content: bytes, choose: random.Random) -> bytes:
    start, stop = _range(content, choose)
    return content[:start] + bytes(stop - start) + content[stop:]


def duplicate_range(content: bytes, choose: random.Random) -> bytes:
    start, stop = _range(content, choose)
    return content[:stop] + content[start:]


def swap_ranges(content: bytes, choose: random.Random) -> bytes:
    a, b, c, d = sorted(choose.randint(0, len(content)) for _ in range(4))
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def change_json(content: bytes, choose: random.Random) -> bytes:
    """Replace, delete or duplicate one value anywhere in it."""
    value = json.loads(content)
    places = list(_places(value))
    if not places:
        return b"null"
    parent, key = choose.choice(places)
    if choose.random() < 0.2:
        del parent[key]
    elif choose.random() < 0.1 and isinstance(parent, dict):
        # JSON has no way to write a key twice but by hand.
        marker = "twice: 7b0e"
        parent[marker] = parent[key]
        return json.dumps(value).replace(json.dumps(marker), json.dumps(key)).encode()
    else:
        parent[key] = choose.choice(_OTHERS)
    return json.dumps(value).replace(f'"{_DEEP}"', "[" * 100_000 + "]" * 100_000).encode()


BYTES: tuple[Mutation, ...] = (flip_bit, truncate, insert, zero_range, duplicate_range, swap_ranges)
JSON: tuple[Mutation, ...] = (*BYTES, *(change_json,) * len(BYTES))
_DEEP = "deep: 7b0e"
_OTHERS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 1.5, 10**9, 2**63, 10**30, 10**400, float("nan"), float("inf")),
    *("", "text", "text " * 1000, "\0", "\ud800", [], {}, [[]], {"a": 1}, [1, "a", None], _DEEP),
)


def _range(content: bytes, choose: random.Random) -> tuple[int, int]:
    start = choose.randrange(len(content))
    return start, min(len(content), start + choose.choice((1, 4, 16, 256)))


def _places(value: Any) -> Any:
    """Every (container, key) in nested lists and dictionaries."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])
