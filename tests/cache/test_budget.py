"""Amounts of memory as people write them."""

import pytest

from goldfinch.cache.budget import parse_budget
from goldfinch.errors import UserError


@pytest.mark.parametrize(
    ("written", "expected"),
    [(0, 0), (12345, 12345), ("0", 0), ("2GiB", 2 << 30), ("500 MB", 500 * 10**6), ("1.5k", 1536), ("3tb", 3 * 10**12)],
)
def test_amounts_are_bytes(written, expected):
    assert parse_budget(written) == expected


def test_auto_is_half_of_what_is_free(monkeypatch):
    class Memory:
        available = 1000

    monkeypatch.setattr("psutil.virtual_memory", Memory)
    assert parse_budget("auto") == 500


@pytest.mark.parametrize("written", ["", "much", "-1", "2 GiB please", "GiB"])
def test_an_invalid_size_is_refused_with_an_example(written):
    with pytest.raises(UserError, match="such as 500MB"):
        parse_budget(written)
