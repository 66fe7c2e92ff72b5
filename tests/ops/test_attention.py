"""Causal attention, its mask aligned to the end of the keys."""

import pytest
import torch

from goldfinch.cpu import build
from goldfinch.ops import attention
from goldfinch.ops.attention import KeyValueBlock, blockwise_causal_attention, causal_attention


@pytest.mark.parametrize(("length", "total"), [(1, 1), (1, 7), (2, 7), (5, 6), (7, 7), (33, 70)])
def test_each_query_sees_the_keys_up_to_its_own_position(length, total):
    torch.manual_seed(0)
    q = torch.randn(2, 3, length, 8, dtype=torch.float64)
    k, v = torch.randn(2, 2, 3, total, 8, dtype=torch.float64)
    expected = torch.empty_like(q)
    for t in range(length):
        visible = total - length + t + 1
        scores = (k[:, :, :visible] @ q[:, :, t, :, None]).squeeze(-1) / 8**0.5
        expected[:, :, t] = (scores.softmax(-1)[:, :, None] @ v[:, :, :visible]).squeeze(-2)
    torch.testing.assert_close(causal_attention(q, k, v), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("length", "total"), [(7, 7), (3, 7), (1, 7), (1, 1)])
def test_queries_see_their_own_document_only(length, total):
    torch.manual_seed(0)
    q = torch.randn(2, 3, length, 8, dtype=torch.float64)
    k, v = torch.randn(2, 2, 3, total, 8, dtype=torch.float64)
    document_starts = torch.zeros(2, total, dtype=torch.bool)
    document_starts[0, total // 3 : total // 3 + 2] = document_starts[1, -1] = True
    expected = torch.empty_like(q)
    for row in range(2):
        for t in range(length):
            end = total - length + t + 1
            first = max([0, *(place for place in document_starts[row].nonzero()[:, 0].tolist() if place < end)])
            alone = (part[row : row + 1, :, first:end] for part in (k, v))
            expected[row : row + 1, :, t : t + 1] = causal_attention(q[row : row + 1, :, t : t + 1], *alone)
    torch.testing.assert_close(causal_attention(q, k, v, document_starts), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("length", "blocks"), [(1, [7]), (1, [3, 4]), (5, [4, 4, 1]), (9, [1, 2, 3, 2, 1]), (4, [9])])
def test_attention_over_blocks_is_attention_over_all(length, blocks):
    torch.manual_seed(0)
    total = sum(blocks)
    q = 5 * torch.randn(2, 3, length, 8, dtype=torch.float64)
    k, v = 5 * torch.randn(2, 2, 3, total, 8, dtype=torch.float64)
    pieces = map(KeyValueBlock, k.split(blocks, dim=2), v.split(blocks, dim=2))
    expected = causal_attention(q, k, v)
    torch.testing.assert_close(blockwise_causal_attention(q, pieces, total), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("blocks", [[9], [4, 5], [2, 2, 2, 3]])
def test_keys_that_share_values_are_as_keys_with_values_of_their_own(blocks):
    torch.manual_seed(0)
    q, k = torch.randn(1, 3, 2, 8, dtype=torch.float64), torch.randn(1, 3, 9, 8, dtype=torch.float64)
    values, rows = torch.randn(1, 3, 4, 8, dtype=torch.float64), torch.tensor([3, 0, 0, 1, 2, 3, 3, 1, 0])
    pieces = map(KeyValueBlock, k.split(blocks, 2), [values] * len(blocks), rows.split(blocks))
    expected = causal_attention(q, k, values[:, :, rows])
    torch.testing.assert_close(blockwise_causal_attention(q, pieces, 9), expected, rtol=0, atol=1e-12)


def test_queries_from_inside_the_text_see_what_lies_before_them_and_share_the_keys():
    torch.manual_seed(0)
    q = torch.randn(3, 2, 2, 8, dtype=torch.float64)
    k, v = torch.randn(2, 1, 2, 10, 8, dtype=torch.float64)
    ends = [2, 5, 9]
    positions = torch.tensor([[end - 1, end] for end in ends])
    pieces = map(KeyValueBlock, k.split(4, dim=2), v.split(4, dim=2))
    actual = blockwise_causal_attention(q, pieces, 10, positions)
    for row, end in enumerate(ends):
        expected = causal_attention(q[row : row + 1], k[:, :, : end + 1], v[:, :, : end + 1])
        torch.testing.assert_close(actual[row : row + 1], expected, rtol=0, atol=1e-12)


@pytest.mark.skipif(build.compiled(attention.SOURCE, "attention") is None, reason="no C++ compiler")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("length", "blocks"), [(1, [300]), (1, [130, 1]), (3, [64, 64, 2, 1]), (16, [9, 90, 1, 33])])
def test_cpu_attention_of_few_queries_is_attention(length, blocks, threads, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    total, distinct = sum(blocks), 40
    q = (5 * torch.randn(1, 3, length, 32)).to(dtype)
    # As kept keys and values lie: all heads of a token side by side.
    k, values = (torch.randn(1, count, 3, 32).to(dtype).transpose(1, 2) for count in (total, distinct))
    rows = torch.randint(distinct, (total,))
    shared = map(KeyValueBlock, k.split(blocks, 2), [values] * len(blocks), rows.split(blocks))
    own = map(KeyValueBlock, k.contiguous().split(blocks, 2), values[:, :, rows].split(blocks, 2))
    expected = causal_attention(q.double(), k.double(), values[:, :, rows].double())
    with torch.no_grad():
        for pieces in (shared, own):
            actual = blockwise_causal_attention(q, pieces, total)
            assert actual.dtype == dtype
            torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("asked", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("which", ["keys", "values", "both"])
def test_queries_may_have_another_dtype_than_keys_and_values(which, asked, kept):
    torch.manual_seed(0)
    q = torch.randn(1, 2, 3, 16).to(asked)
    k, v = torch.randn(2, 1, 2, 9, 16).unbind()
    k = k.to(kept if which != "values" else asked)
    v = v.to(kept if which != "keys" else asked)
    with torch.no_grad():
        actual = blockwise_causal_attention(q, map(KeyValueBlock, k.split(5, 2), v.split(5, 2)), 9)
    expected = causal_attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=2e-2)


@pytest.mark.parametrize(
    ("k", "v", "index"),
    [
        (torch.ones(1, 2, 5, 16), torch.ones(1, 2, 4, 16), None),
        (torch.ones(1, 2, 5, 16), torch.ones(1, 2, 5, 8), None),
        (torch.ones(1, 3, 5, 16), torch.ones(1, 2, 5, 16), None),
        (torch.ones(1, 2, 5, 16), torch.ones(1, 2, 4, 16), torch.zeros(4, dtype=torch.int64)),
        (torch.ones(1, 2, 5, 16), torch.ones(1, 2, 5, 16, device="meta"), None),
    ],
)
def test_blocks_that_do_not_fit_the_queries_never_reach_the_kernel(k, v, index):
    with torch.no_grad(), pytest.raises((ValueError, RuntimeError)):
        blockwise_causal_attention(torch.ones(1, 2, 1, 16), [KeyValueBlock(k, v, index)], 5)


def test_attention_that_is_differentiated_has_gradients():
    q, k = torch.randn(1, 2, 1, 16, requires_grad=True), torch.randn(1, 2, 5, 16, requires_grad=True)
    pieces = map(KeyValueBlock, k.split(3, 2), k.split(3, 2))
    grown = torch.autograd.grad(blockwise_causal_attention(q, pieces, 5).sum(), (q, k))
    expected = torch.autograd.grad(causal_attention(q, k, k).sum(), (q, k))
    torch.testing.assert_close(grown, expected)
