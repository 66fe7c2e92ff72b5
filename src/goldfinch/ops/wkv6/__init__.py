"""The WKV6 recurrence behind one function; a faster implementation joins by a line in `IMPLEMENTATIONS`."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from goldfinch.cpu.autotune import Kernel, Work, is_faster
from goldfinch.ops.wkv6 import cpu, fla
from goldfinch.ops.wkv6.chunked import wkv6_chunked
from goldfinch.ops.wkv6.recurrent import wkv6_recurrent

__all__ = ["IMPLEMENTATIONS", "Implementation", "wkv6"]

Implementation = Literal["auto", "recurrent", "chunked", "cpu", "fla"]
IMPLEMENTATIONS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "recurrent": wkv6_recurrent,
    "chunked": wkv6_chunked,
    "cpu": cpu.wkv6_cpu,
    "fla": fla.wkv6_fla,
}
# Below this many tokens a step per token is faster than a padded chunk.
SHORTEST_CHUNKED = 4


def wkv6(
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_w: Tensor,
    u: Tensor | None = None,
    state: Tensor | None = None,
    implementation: Implementation = "auto",
    document_starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The matrix-valued recurrence of Finch (F14-22) and Finch-C2 (P4-13), per head:

        y[t] = r[t] (S[t-1] + diag(u) k[t]^T v[t]);    S[t] = diag(w[t]) S[t-1] + k[t]^T v[t]

    Differentiable in every argument, the state included. Computed in fp32, in fp64 where an argument is fp64.

    Args:
        r, k, v: (B, T, H, N), T >= 1, any float dtype.
        log_w: (B, T, H, N), natural logarithm of the decay, in [-inf, 0].
        u: (H, N), Finch's bonus for the token itself; None for 0 (Finch-C2).
        state: (B, H, N, N) as key x value, fp32 or fp64; None for zeros.
        implementation: "recurrent" (the definition), "chunked", "cpu" (on CPUs), "fla" (on GPUs, fp32), or "auto"
            for the fastest here.
        document_starts: (B, T) bool, the tokens that begin a document: S[t-1] counts as zero there, exactly. None for
            none.

    Returns:
        y of (B, T, H, N) in r's dtype, and the state after the last token.

    Raises:
        UserError: if "fla" is asked for where it cannot run.
    """
    batch, _, heads, size = r.shape
    dtype = torch.float64 if torch.float64 in (r.dtype, log_w.dtype) else torch.float32
    if state is None:
        state = torch.zeros(batch, heads, size, size, dtype=dtype, device=r.device)
    if implementation == "auto":
        implementation = _fastest(r, dtype)
    compute = IMPLEMENTATIONS[implementation]
    bonus = None if u is None else u.to(dtype)
    r_wide, k, v, log_w, state = (x.to(dtype) for x in (r, k, v, log_w, state))
    # Autocast would run the products in bf16; the recurrence needs fp32. (The meta device knows no autocast.)
    with torch.autocast("cpu" if r.is_meta else r.device.type, enabled=False):
        if document_starts is None:
            y, state = compute(r_wide, k, v, log_w, bonus, state)
        else:
            y, state = _with_resets(compute, r_wide, k, v, log_w, bonus, state, document_starts[..., None, None])
    return y.to(r.dtype), state


def _with_resets(
    compute: Callable[..., tuple[Tensor, Tensor]],
    r: Tensor,
    k: Tensor,
    v: Tensor,
    log_w: Tensor,
    u: Tensor | None,
    state: Tensor,
    document_starts: Tensor,
) -> tuple[Tensor, Tensor]:
    """Any implementation, with the state wiped where `document_starts`, (B, T, 1, 1), says so.

    A decay of 0 keeps S[t-1] from S[t]. What y[t] itself reads of S[t-1] goes with the rest of y[t], of which only the
    token's own r[t] diag(u) k[t]^T v[t] is put back: the kernels need not know of documents.
    """
    y, state = compute(r, k, v, log_w.masked_fill(document_starts, -torch.inf), u, state)
    own = 0.0 if u is None else (r * u * k).sum(-1, keepdim=True) * v
    return torch.where(document_starts, own, y), state


def _fastest(r: Tensor, dtype: torch.dtype) -> Implementation:
    if torch.compiler.is_exporting():  # a graph for other programs has PyTorch's own operators only
        return "recurrent" if r.shape[1] < SHORTEST_CHUNKED else "chunked"
    on_gpu = r.device.type == "cuda" and dtype == torch.float32 and r.shape[-1] >= fla.SMALLEST_HEAD
    if on_gpu and fla.library() is not None:
        return "fla"
    if r.device.type == "cpu" and r.shape[-1] <= cpu.MAX_HEAD_SIZE and cpu_is_fastest(torch.is_grad_enabled()):
        return "cpu"
    return "recurrent" if r.shape[1] < SHORTEST_CHUNKED else "chunked"


def make_traceable() -> None:
    """Let torch.compile take for constants what depends on the machine: looking for a compiler cannot be traced."""
    torch.compiler.assume_constant_result(cpu_is_fastest)
    torch.compiler.assume_constant_result(cpu.vector_bytes)


def cpu_is_fastest(with_gradients: bool) -> bool:
    """Whether "cpu" is faster than "chunked" on this machine. torch.compile takes it as a constant."""
    return is_faster(KERNELS[with_gradients])


def _kernel(with_gradients: bool) -> Kernel:
    def prepare() -> tuple[Work, Work]:
        inputs = [*torch.randn(3, 1, 256, 4, 64).unbind(), -torch.rand(1, 256, 4, 64), None, torch.randn(1, 4, 64, 64)]

        def run(compute: Callable[..., tuple[Tensor, Tensor]]) -> None:
            leaves = [None if x is None else x.detach().requires_grad_(with_gradients) for x in inputs]
            with torch.set_grad_enabled(with_gradients):
                y, state = compute(*leaves)
                if with_gradients:
                    (y.sum() + state.sum()).backward()

        return partial(run, cpu.wkv6_cpu), partial(run, wkv6_chunked)

    return Kernel("WKV6, with gradients" if with_gradients else "WKV6", cpu.SOURCE, "WKV6", prepare)


KERNELS = {with_gradients: _kernel(with_gradients) for with_gradients in (False, True)}
"""The recurrence over 256 tokens, by whether gradients are wanted."""
