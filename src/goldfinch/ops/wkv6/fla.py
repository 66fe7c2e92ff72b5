"""WKV6 on GPUs: the Triton kernels of flash-linear-attention (the package `fla-core`), in our convention.

Theirs is ours in layout (B, T, H, N), in the logarithm of the decay and in the state as key x value; their scale is
1 / sqrt(N) unless it is given, their u is never None, and the state after is returned only on request. Three things
this file keeps away from:

- `fused_recurrent_rwkv6` loses the gradient that comes in through the state after. It runs only where nothing is
  differentiated; `chunk_rwkv6`, which has all gradients, wherever something is.
- `chunk_rwkv6` subtracts sums of log-decays over a chunk from each other. -inf gives NaN, and large numbers lose their
  digits, so decays are bounded from below (`SMALLEST_LOG_DECAY`), but a decay of 0 stays one
  (`LOG_OF_ZERO`).
- Triton multiplies fp32 matrices in TF32 (10 bits of mantissa) where the GPU can.
"""

import functools
import logging
import os
from types import ModuleType

import torch
from torch import Tensor

from goldfinch.errors import UserError

_LOGGER = logging.getLogger("goldfinch")
REMEDY = "pip install 'goldfinch[cuda]'"
# e^-20 = 2e-9 of the state is less than fp32 rounds away (6e-8), and a sum over a chunk of 64 of them is exact to 1e-4;
# of -88, where e^x leaves fp32, only to 5e-4. docs/numerics.md has what each bound costs.
SMALLEST_LOG_DECAY = -20.0
# e^-110 is exactly 0 in fp32 (from -104 on), whatever rounding the sums add: where a document begins nothing is left of
# the state. Starts are few, so that this costs no digits elsewhere.
LOG_OF_ZERO = -110.0
# Tokens in a chunk of theirs: within one there is nothing to run side by side.
CHUNK_LENGTH = 64
# Triton's matrix products have no smaller blocks.
SMALLEST_HEAD = 16


@functools.cache
def library() -> ModuleType | None:
    """`fla.ops.rwkv6`, imported on first use; None, and a warning, if it is not installed.

    Where PyTorch multiplies fp32 matrices exactly (`torch.get_float32_matmul_precision()` is "highest", its default),
    Triton is asked to do the same, unless TRITON_F32_DEFAULT is set already.
    """
    try:
        from fla.ops import rwkv6
    except ImportError as error:
        _LOGGER.warning("WKV6 runs in PyTorch on this GPU, which is slower (%s); to fix it: %s", error, REMEDY)
        return None
    if torch.get_float32_matmul_precision() == "highest":
        os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
    return rwkv6


def wkv6_fla(r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, u: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """Run the recurrence in flash-linear-attention's kernels. Arguments and results as in `goldfinch.ops.wkv6.wkv6`.

    Args:
        r, k, v: (B, T, H, N), fp32, bf16 or fp16, all of one type: that of the matrix products.
        log_w: (B, T, H, N); read as fp32. Where something is differentiated or T > 64, a decay
            below -20 counts as -20, but -inf as a decay of 0; the gradient of both is 0.
        u: (H, N); read as fp32. None for 0.
        state: (B, H, N, N) as key x value; read as fp32.

    Returns:
        y of (B, T, H, N) in r's dtype, and the state after the last token, (B, H, N, N) in fp32.

    Raises:
        UserError: on CPU tensors (unless Triton interprets, TRITON_INTERPRET=1), in fp64, or without the package.
    """
    if r.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise UserError("the WKV6 implementation 'fla' is for GPUs and these tensors are on the CPU: use 'auto'")
    if r.dtype == torch.float64:
        raise UserError("the WKV6 implementation 'fla' has no fp64: use 'auto', or 'chunked'")
    kernels = library()
    if kernels is None:
        raise UserError(f"the WKV6 implementation 'fla' needs flash-linear-attention: {REMEDY}")
    log_w, state = log_w.float(), state.float()
    bonus = torch.zeros(r.shape[2:], device=r.device) if u is None else u.float()
    inputs = (r, k, v, log_w, bonus, state)
    differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    if differentiated or r.shape[1] > CHUNK_LENGTH:
        run = kernels.chunk_rwkv6
        log_w = torch.where(log_w.isneginf(), LOG_OF_ZERO, log_w.clamp(min=SMALLEST_LOG_DECAY))
    else:
        run = kernels.fused_recurrent_rwkv6
    y, after = run(r, k, v, log_w, bonus, scale=1.0, initial_state=state, output_final_state=True)
    return y.to(r.dtype), after
