"""WKV6 in chunks: matrix products instead of a step per token, exact for every decay.

The weight that token s has on token t is the product of the decays between them, exp(sum of log_w). The usual
factorisation, exp(cum[t]) * exp(-cum[s]), overflows as soon as decays are strong. Here a chunk is halved again and
again instead: for s in the left half of a block and t in its right half, the sum splits at the middle into a suffix of
the left half and a prefix of the right one. Both are sums of non-positive numbers, so both factors lie in [0, 1]; and
as nothing is ever subtracted, log_w = -inf (a decay of exactly 0) is as safe as log_w = 0.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_LENGTH = 32  # tokens, a power of two; fastest of 16, 32, 64, 128 for a training step on a CPU


def wkv6_chunked(
    r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, u: Tensor | None, state: Tensor, chunk_length: int = CHUNK_LENGTH
) -> tuple[Tensor, Tensor]:
    """Run the recurrence chunk by chunk. Arguments and results as in `goldfinch.ops.wkv6.wkv6`."""
    batch, length, heads, size = r.shape
    padding = -length % chunk_length
    chunks = (length + padding) // chunk_length

    def split(x: Tensor) -> Tensor:
        """(B, T, H, N) -> (B, H, chunks, C, N); zero padding writes nothing (k = 0) and forgets nothing (w = 1)."""
        x = F.pad(x, (0, 0, 0, 0, 0, padding)) if padding else x
        return x.view(batch, chunks, chunk_length, heads, size).permute(0, 3, 1, 2, 4).contiguous()

    r, k, v, log_w = split(r), split(k), split(v), split(log_w)
    scores, prefix, suffix, total = _within_chunks(r, k, log_w)
    if u is not None:
        diagonal = torch.einsum("bhctn,bhctn,hn->bhct", r, k, u)
        scores = scores + torch.diag_embed(diagonal)

    written = (k * suffix.exp()).transpose(-1, -2) @ v  # (B, H, chunks, N, N): what each chunk adds to the state
    decay = total.exp().transpose(-1, -2)  # (B, H, chunks, N, 1): what it leaves of the state before it
    before = []
    for chunk in range(chunks):
        before.append(state)
        state = decay[:, :, chunk] * state + written[:, :, chunk]
    y = scores @ v + (r * prefix.exp()) @ torch.stack(before, dim=2)
    y = y.permute(0, 2, 3, 1, 4).reshape(batch, chunks * chunk_length, heads, size)
    return y[:, :length], state


def _within_chunks(r: Tensor, k: Tensor, log_w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores between the tokens of each chunk, and the log-decays that tie it to its neighbours.

    Args:
        r, k, log_w: (..., C, N), C a power of two.

    Returns:
        scores: (..., C, C), [t, s] = sum_n r[t] k[s] prod(w[s+1 .. t-1]) for s < t, else 0.
        prefix: (..., C, N), sum of log_w from the chunk's start to the token before t.
        suffix: (..., C, N), sum of log_w from the token after s to the chunk's end.
        total: (..., 1, N), sum of log_w over the chunk.
    """
    *lead, length, size = r.shape
    # Blocks of one token: no scores yet, and nothing before or after the token.
    scores = r.new_zeros(*lead, length, 1, 1)
    prefix = suffix = torch.zeros_like(r).view(*lead, length, 1, size)
    total = log_w.view(*lead, length, 1, size)
    block = 1
    while block < length:
        r_right, k_left = _halves(r.unflatten(-2, (-1, block)))[1], _halves(k.unflatten(-2, (-1, block)))[0]
        scores_left, scores_right = _halves(scores)
        prefix_left, prefix_right = _halves(prefix)
        suffix_left, suffix_right = _halves(suffix)
        total_left, total_right = _halves(total)

        across = (r_right * prefix_right.exp()) @ (k_left * suffix_left.exp()).transpose(-1, -2)
        upper = torch.cat([scores_left, torch.zeros_like(across)], dim=-1)
        scores = torch.cat([upper, torch.cat([across, scores_right], dim=-1)], dim=-2)
        prefix = torch.cat([prefix_left, prefix_right + total_left], dim=-2)
        suffix = torch.cat([suffix_left + total_right, suffix_right], dim=-2)
        total = total_left + total_right
        block *= 2
    return scores.squeeze(-3), prefix.squeeze(-3), suffix.squeeze(-3), total.squeeze(-3)


def _halves(x: Tensor) -> tuple[Tensor, ...]:
    """Left and right blocks of each pair: (..., 2 pairs, m, n) -> two of (..., pairs, m, n).

    Unbound rather than indexed: the gradient of an index is a zero tensor to be filled and added, twice.
    """
    return x.unflatten(-3, (-1, 2)).unbind(-3)
