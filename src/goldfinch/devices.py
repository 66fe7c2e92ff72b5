"""Devices and dtypes by the names that users give."""

import torch

from goldfinch.errors import UserError

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "float64": torch.float64,
    "fp64": torch.float64,
}


def resolve_device(name: str | torch.device) -> torch.device:
    """The device that a name stands for; "auto" is a GPU if there is one, else the CPU.

    Raises:
        UserError: an unknown name, or a GPU that does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda", "meta"):
        raise UserError(f"unknown device {str(name)!r}: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"device {str(name)!r} needs a GPU, and PyTorch finds none here: use cpu")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise UserError(f"there is no device {str(name)!r}: this machine has {torch.cuda.device_count()} GPUs")
    return device


def resolve_dtype(name: str | torch.dtype) -> torch.dtype | None:
    """The dtype that a name stands for; None for "auto".

    Raises:
        UserError: it is not a floating-point dtype that models can have.
    """
    if isinstance(name, torch.dtype):
        name = dtype_name(name)
    if name == "auto":
        return None
    if name not in _DTYPES:
        raise UserError(f"unknown dtype {name!r}: use auto, float32, bfloat16, float16 or float64")
    return _DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """Such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")
