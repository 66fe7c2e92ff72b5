"""Mixtures: exact shares at every place, each source with its own order and epochs, the same for any world size."""

from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from goldfinch.data.mixture import Mixture, Source, parse_sources
from goldfinch.data.shard_writer import write_dataset
from goldfinch.data.tokenizers import ByteTokenizer, Tokenizer, WorldTokenizer
from goldfinch.data.training_data import TrainingData
from goldfinch.errors import UserError


def test_sources_are_read_as_they_are_written() -> None:
    assert Source.parse("data/books") == Source("data/books")
    assert Source.parse("data/books=0.7") == Source("data/books", Fraction(7, 10))
    assert Source.parse("runs/lr=fast") == Source("runs/lr=fast")
    assert Source.parse("runs/lr=0.1=2e-3") == Source("runs/lr=0.1", Fraction(2, 1000))


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["a=0"], "weight of a must be above 0, not 0"),
        (["a=1", "b=-2"], "weight of b must be above 0, not -2"),
        (["a=1", "b"], "b has no weight, but others do"),
        (["a=1", "a=2"], "names a twice"),
        ([], "at least one folder"),
    ],
)
def test_sources_that_make_no_sense_are_refused(texts: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_sources(texts)


@settings(max_examples=50)
@given(weights=st.lists(st.integers(1, 1000), min_size=1, max_size=5), start=st.integers(0, 10**12))
def test_shares_are_exact_everywhere_and_known_without_counting(weights: list[int], start: int) -> None:
    mixture, total = Mixture(weights), sum(weights)
    seen = mixture.counts(start)
    for place in range(start, start + 40):
        source, window = mixture.window_ref(place)
        assert window == seen[source]
        seen[source] += 1
        assert seen == mixture.counts(place + 1)
        for count, weight in zip(seen, weights, strict=True):
            assert abs(count - Fraction((place + 1) * weight, total)) <= Fraction(len(weights), 2)
    assert mixture.counts(7 * total) == [7 * weight for weight in weights]


def test_weights_of_seven_to_three_fill_every_ten_places_so() -> None:
    turns = [Mixture([Fraction("0.7"), Fraction("0.3")]).window_ref(place).source for place in range(1000)]
    assert all(Counter(turns[i : i + 10]) == {0: 7, 1: 3} for i in range(0, 1000, 10))


def write(directory: Path, first: int, tokens: int, tokenizer: Tokenizer | None = None) -> str:
    """Tokens first, first + 1, ... for training, 200 and 256 for validation."""
    with write_dataset(directory, tokenizer or ByteTokenizer()) as writers:
        writers["train"].append(range(first, first + tokens - 1), tokens - 1)
        writers["validation"].append([200], 1)
    return str(directory)


def starts(data: TrainingData, steps: range, batch_size: int = 5, **share: int) -> torch.Tensor:
    """The first token of each window: (steps, rows)."""
    batches = data.batches(10, batch_size, 3, **share)
    return torch.stack([batches.batch(step)[:, 0] for step in steps])


def test_without_weights_every_window_of_every_source_comes_once_an_epoch(tmp_path: Path) -> None:
    data = TrainingData.open([write(tmp_path / "a", 0, 62), write(tmp_path / "b", 100, 43)])
    assert data.batches(10, 5, 3).num_windows == 10
    for epoch in range(3):
        seen = starts(data, range(2 * epoch, 2 * epoch + 2)).flatten()
        assert sorted(seen.tolist()) == [0, 10, 20, 30, 40, 50, 100, 110, 120, 130]
    assert not torch.equal(starts(data, range(0, 2)), starts(data, range(2, 4)))


def test_weights_are_shares_of_windows_and_each_source_keeps_its_own_epochs(tmp_path: Path) -> None:
    data = TrainingData.open([write(tmp_path / "a", 0, 62) + "=0.2", write(tmp_path / "b", 100, 43) + "=0.8"])
    rows = starts(data, range(16))
    assert ((rows < 100).sum(dim=1) == 1).all()
    from_b = rows[rows >= 100].tolist()
    for epoch in range(16):
        assert sorted(from_b[4 * epoch : 4 * epoch + 4]) == [100, 110, 120, 130]
    from_a = rows[rows < 100].tolist()
    assert sorted(from_a[:6]) == [0, 10, 20, 30, 40, 50]


def test_batches_are_functions_of_the_step_and_shared_out_among_processes(tmp_path: Path) -> None:
    data = TrainingData.open([write(tmp_path / "a", 0, 62) + "=1", write(tmp_path / "b", 100, 43) + "=2"])
    whole = starts(data, range(9), batch_size=6)
    again = data.batches(10, 6, 3)
    for step in (8, 0, 5, 5, 2):
        assert torch.equal(again.batch(step)[:, 0], whole[step])
    for world_size in (2, 3, 6):
        shares = [starts(data, range(9), batch_size=6, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert torch.equal(torch.cat(shares, dim=1), whole)


def test_sources_of_one_size_have_different_orders(tmp_path: Path) -> None:
    data = TrainingData.open([write(tmp_path / "a", 0, 92), write(tmp_path / "b", 100, 92)])
    rows = starts(data, range(3), batch_size=6)
    assert (rows[rows < 100] + 100).tolist() != rows[rows >= 100].tolist()


def test_two_tokenizers_are_refused_by_name(tmp_path: Path) -> None:
    folders = [write(tmp_path / "a", 0, 62), write(tmp_path / "b", 1, 62, WorldTokenizer())]
    with pytest.raises(UserError, match=r"/b has another tokenizer \(world, 65,536 ids\) than .*/a \(bytes, 257 ids\)"):
        TrainingData.open(folders)


def test_a_source_shorter_than_a_window_is_named(tmp_path: Path) -> None:
    data = TrainingData.open([write(tmp_path / "a", 0, 62), write(tmp_path / "b", 100, 10)])
    with pytest.raises(UserError, match=r"/b has 10 tokens, but one window needs 11"):
        data.batches(10, 5, 3)


def test_validation_goes_by_the_shortest_names_that_differ(tmp_path: Path) -> None:
    a, b, c = (write(tmp_path / name, 0, 62) for name in ("a/x", "b", "c/x"))
    assert list(TrainingData.open([a, b]).validation) == ["x", "b"]
    assert list(TrainingData.open([a, c]).validation) == [a, c]
