"""The radix tree against the plain definition of what it finds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goldfinch.inference.token_ids import num_common_ids
from goldfinch.serving.radix_tree import RadixTree

SEQUENCES = st.lists(st.integers(0, 2), max_size=8).map(tuple)


def array(ids):
    return np.array(ids, np.int64)


@given(st.lists(st.tuples(SEQUENCES, st.booleans()), max_size=20), SEQUENCES)
def test_it_finds_what_comparing_with_every_sequence_finds(steps, wanted):
    tree, expected = RadixTree(), {}
    for ids, is_added in steps:
        if is_added:
            tree.insert(array(ids), ids)
            expected[ids] = ids
        elif ids in expected:
            tree.remove(array(ids))
            del expected[ids]
        else:
            with pytest.raises(KeyError):
                tree.remove(array(ids))
    common = {ids: num_common_ids(array(ids), array(wanted)) for ids in expected}
    best = max(common.values(), default=0)
    num_common, values = tree.find(array(wanted))
    assert num_common == best
    assert sorted(values) == sorted(ids for ids, count in common.items() if count == best)
    begins = [(len(ids), ids) for ids in expected if ids == wanted[: len(ids)] and ids]
    assert tree.prefixes(array(wanted)) == sorted(begins)
