"""Batches: every token is a target once an epoch, and a step's batch depends on nothing but the step."""

from collections import Counter

import pytest
import torch

from goldfinch.data.batches import Batches, ShuffledWindows, sequential_windows
from goldfinch.data.mixture import Mixture
from goldfinch.data.shard_writer import write_dataset
from goldfinch.data.shards import TokenDataset
from goldfinch.data.tokenizers import WorldTokenizer
from goldfinch.errors import UserError

TOKENS = 103


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    """Token i is i + 1, but the last, which ends the text."""
    directory = tmp_path_factory.mktemp("batches") / "d"
    with write_dataset(directory, WorldTokenizer(), shard_tokens=17) as writers:
        writers["train"].append(range(1, TOKENS), TOKENS - 1)
    return TokenDataset.open(directory, "train")


def shuffled(dataset: TokenDataset, length: int, batch_size: int, seed: int, **share: int) -> Batches:
    return Batches([ShuffledWindows(dataset, length, seed)], Mixture([1]), batch_size, **share)


def targets(batches: Batches, steps: range) -> Counter[int]:
    return Counter(torch.cat([batches.batch(step)[:, 1:].flatten() for step in steps]).tolist())


@pytest.mark.parametrize("batch_size", [1, 3, 10, 25])
def test_every_token_is_a_target_once_per_epoch(dataset: TokenDataset, batch_size: int) -> None:
    batches = shuffled(dataset, 10, batch_size, seed=1)
    assert batches.num_windows == 10
    # After `batch_size` epochs of ten windows, ten batches of any size end where an epoch ends.
    assert targets(batches, range(10)) == dict.fromkeys(range(2, 102), batch_size)
    if batch_size < 10:
        first = targets(batches, range(10 // batch_size))
        assert set(first.values()) == {1}


def test_windows_are_consecutive_and_overlap_by_one(dataset: TokenDataset) -> None:
    batch = shuffled(dataset, 10, 10, seed=0).batch(0)
    assert (batch.dtype, batch.shape) == (torch.int64, (10, 11))
    assert (batch[:, 1:] - batch[:, :-1] == 1).all()
    assert sorted(batch[:, 0].tolist()) == list(range(1, 101, 10))


def test_batch_is_a_function_of_seed_and_step(dataset: TokenDataset) -> None:
    forward = [shuffled(dataset, 7, 4, seed=5).batch(step) for step in range(12)]
    batches = shuffled(dataset, 7, 4, seed=5)
    for step in (11, 3, 3, 7, 0, 11, 4):
        assert torch.equal(batches.batch(step), forward[step])
    assert not torch.equal(shuffled(dataset, 7, 4, seed=6).batch(0), forward[0])


def test_order_never_changes_between_versions(dataset: TokenDataset) -> None:
    batches = shuffled(dataset, 10, 10, seed=3)
    orders = [(batches.batch(epoch)[:, 0] // 10).tolist() for epoch in range(2)]
    assert orders == [[6, 1, 8, 5, 2, 7, 9, 4, 3, 0], [9, 7, 8, 3, 5, 6, 4, 0, 2, 1]]


def test_processes_share_out_each_batch(dataset: TokenDataset) -> None:
    whole = shuffled(dataset, 10, 6, seed=2)
    shares = [shuffled(dataset, 10, 6, seed=2, rank=rank, world_size=3) for rank in range(3)]
    for step in range(5):
        assert torch.equal(torch.cat([share.batch(step) for share in shares]), whole.batch(step))
    with pytest.raises(ValueError, match="a batch of 6 sequences cannot be shared by 4"):
        shuffled(dataset, 10, 6, seed=2, world_size=4)


def test_too_short_data_says_what_to_do(dataset: TokenDataset) -> None:
    assert shuffled(dataset, TOKENS - 1, 2, seed=0).batch(0).shape == (2, TOKENS)
    needs = r"/d has 103 tokens, but one window needs 104: give a shorter --sequence-length or more text"
    with pytest.raises(UserError, match=needs):
        shuffled(dataset, TOKENS, 2, seed=0)


@pytest.mark.parametrize("max_tokens", [None, 1, 10, 35, 1000])
@pytest.mark.parametrize("length", [1, 10, 34, 102, 500])
def test_sequential_windows_cover_every_target_once_in_order(
    dataset: TokenDataset, length: int, max_tokens: int | None
) -> None:
    windows = list(sequential_windows(dataset, length, 3, max_tokens))
    expected = dataset.tokens(0, min(TOKENS, (max_tokens or TOKENS) + 1)).tolist()
    assert torch.cat([batch[:, 1:].flatten() for batch in windows]).tolist() == expected[1:]
    assert torch.cat([batch[:, :-1].flatten() for batch in windows]).tolist() == expected[:-1]
    assert all(len(batch) <= 3 and batch.shape[1] <= length + 1 for batch in windows)
    assert all(batch.shape[1] == length + 1 for batch in windows[:-1])
    assert all(batch.dtype == torch.int64 for batch in windows)
