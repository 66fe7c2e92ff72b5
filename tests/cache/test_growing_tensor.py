"""A tensor that grows in blocks: what is in it, what is copied, what forks share."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from goldfinch.cache.growing_tensor import GrowingTensor


@pytest.fixture
def grow():
    """grow(rows) -> a tensor of pairs (0, 0), (1, 1), ..., in blocks of four whose capacity grows by two rows."""

    def make(count):
        tensor = GrowingTensor((2,), torch.int64, torch.device("cpu"), block_size=4, granularity=2)
        tensor.append(pairs(range(count)))
        return tensor

    return make


def pairs(numbers):
    return torch.tensor([[number, number] for number in numbers], dtype=torch.int64).reshape(-1, 2)


def content(tensor):
    return tensor.rows(0, len(tensor))[:, 0].tolist()


def test_it_holds_what_was_appended_whatever_the_pieces(grow):
    @given(lengths=st.lists(st.integers(0, 9), max_size=6), start=st.integers(0, 20), stop=st.integers(0, 20))
    def check(lengths, start, stop):
        tensor = grow(0)
        for piece in torch.arange(sum(lengths)).split(lengths):
            tensor.append(pairs(piece.tolist()))
        expected = list(range(sum(lengths)))
        assert content(tensor) == expected
        stop = min(stop, len(tensor))
        assert tensor.rows(start, stop)[:, 0].tolist() == expected[start:stop]
        assert [row for index in range(tensor.num_blocks) for row in tensor.block(index)[:, 0].tolist()] == expected

    check()


def test_whole_blocks_never_move_and_the_last_has_little_room_to_spare(grow):
    tensor = grow(6)
    first = tensor.block(0).data_ptr()
    tensor.append(pairs(range(6, 11)))
    assert tensor.block(0).data_ptr() == first
    assert tensor.nbytes == 12 * 16
    assert content(tensor) == list(range(11))


def test_forks_share_blocks_and_nobody_sees_what_the_other_writes(grow):
    tensor = grow(10)
    fork = tensor.fork()
    assert fork.block(0).data_ptr() == tensor.block(0).data_ptr()
    fork.truncate(3)
    fork.append(pairs([70, 71, 72]))
    tensor.append(pairs([10]))
    assert content(fork) == [0, 1, 2, 70, 71, 72]
    assert content(tensor) == list(range(11))


def test_truncated_rows_are_gone(grow):
    tensor = grow(9)
    tensor.truncate(8)
    assert (content(tensor), tensor.num_blocks) == (list(range(8)), 2)
    tensor.truncate(0)
    tensor.append(pairs([5]))
    assert content(tensor) == [5]


def test_tensors_that_it_is_made_of_are_never_written_to(grow):
    mapped = [pairs(range(4)), pairs([4, 5])]
    tensor = GrowingTensor.from_blocks(mapped, 4)
    tensor.append(pairs([6]))
    tensor.truncate(2)
    tensor.append(pairs([9]))
    assert content(tensor) == [0, 1, 9]
    assert mapped[0][:, 0].tolist() == [0, 1, 2, 3]
    assert mapped[1][:, 0].tolist() == [4, 5]
