"""Devices and dtypes by the names that users give."""

import logging
import re
from typing import TYPE_CHECKING

from goldfinch.errors import UserError
from goldfinch.processor import instruction_sets

if TYPE_CHECKING:
    import torch  # commands look at names before they load it

_LOGGER = logging.getLogger(__name__)
COMPUTE_DTYPES = ("float32", "bfloat16", "float16", "float64")
_SHORT_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}
# What multiplies these natively on CPUs, x86 and ARM. PyTorch's own `_is_mkldnn_bf16_supported` asks less: AVX-512
# alone, with which oneDNN only emulates bfloat16.
_NATIVE_INSTRUCTIONS = {
    "bfloat16": ("amx_bf16", "avx512_bf16", "bf16"),
    "float16": ("amx_fp16", "avx512_fp16", "asimdhp", "fp16_arith"),
}
_reported_slow: set[str] = set()
"""Dtypes that this process has been warned of."""


def check_device_name(name: str) -> None:
    """Refuse what no device is called, without loading PyTorch; whether it exists, `resolve_device` finds out.

    Raises:
        UserError: an unknown name.
    """
    if not re.fullmatch(r"auto|(cpu|cuda)(:\d{1,3})?", name):
        raise UserError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N")


def check_dtype_name(name: str) -> None:
    """Refuse what no dtype of a model is called, without loading PyTorch.

    Raises:
        UserError: an unknown name.
    """
    if canonical_dtype(name) not in ("auto", *COMPUTE_DTYPES):
        raise UserError(f"unknown dtype {name!r}: use auto, float32, bfloat16, float16 or float64")


def resolve_device(name: "str | torch.device") -> "torch.device":
    """The device that a name stands for; "auto" is a GPU if there is one, else the CPU.

    Raises:
        UserError: an unknown name, or a GPU that does not exist here.
    """
    check_device_name(str(name))
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"device {str(name)!r} needs a GPU, and PyTorch finds none here: use cpu")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise UserError(f"there is no device {str(name)!r}: this machine has {torch.cuda.device_count()} GPUs")
    return device


def canonical_dtype(name: str) -> str:
    """The name that PyTorch uses: "bfloat16" for "bf16"; others as they are."""
    return _SHORT_NAMES.get(name, name)


def resolve_dtype(name: "str | torch.dtype", device: "torch.device") -> "torch.dtype":
    """The dtype that a name stands for; "auto" is `auto_dtype` of the device.

    Raises:
        UserError: it is not a floating-point dtype that models can have.
    """
    name = canonical_dtype(name) if isinstance(name, str) else dtype_name(name)
    check_dtype_name(name)
    if name == "auto":
        return auto_dtype(device)
    import torch

    return getattr(torch, name)


def auto_dtype(device: "torch.device") -> "torch.dtype":
    """bfloat16 where the device multiplies it natively, else float32."""
    import torch

    return torch.bfloat16 if bf16_is_native(device) else torch.float32


def explain_auto_dtype(device: "torch.device") -> str:
    """What `auto_dtype` chooses and why: "bfloat16: this processor multiplies it natively (avx512_bf16)"."""
    kind = "GPU" if device.type == "cuda" else "processor"
    if not bf16_is_native(device):
        return f"float32: this {kind} has no bfloat16 instructions"
    names = "" if device.type == "cuda" else f" ({', '.join(native_instructions('bfloat16'))})"
    return f"bfloat16: this {kind} multiplies it natively{names}"


def bf16_is_native(device: "torch.device") -> bool:
    """Whether a device has instructions that multiply bfloat16, and PyTorch uses them."""
    if device.type != "cuda":
        return bool(native_instructions("bfloat16"))
    import torch

    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def native_instructions(dtype: str) -> list[str]:
    """The instructions of this processor that multiply bfloat16 or float16, if PyTorch uses them."""
    import torch

    if not torch.backends.mkldnn.is_available():  # nothing else in PyTorch has such kernels
        return []
    found = instruction_sets()
    return [name for name in _NATIVE_INSTRUCTIONS[dtype] if name in found]


def warn_if_slow(dtype: "torch.dtype", device: "torch.device") -> None:
    """Log a warning, once per process, if this processor has no instructions for a 16-bit dtype."""
    name = dtype_name(dtype)
    if device.type != "cpu" or name not in _NATIVE_INSTRUCTIONS or name in _reported_slow or native_instructions(name):
        return
    _reported_slow.add(name)
    slower = "about 4 times" if name == "bfloat16" else "several times"  # measured on one with AVX2
    _LOGGER.warning(
        "%s is slow here: this processor has no instructions for it, so prompts are read %s slower than in float32. "
        "Results are right. For speed use float32 (--dtype float32, or auto); a .gfc file keeps the dtype that it was "
        "written in, until its text is read again",
        name,
        slower,
    )


def dtype_name(dtype: "torch.dtype") -> str:
    """Such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")
