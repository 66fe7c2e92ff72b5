"""Devices and dtypes by the names that users give."""

import re
from typing import TYPE_CHECKING

from goldfinch.errors import UserError

if TYPE_CHECKING:
    import torch  # commands look at names before they load it

COMPUTE_DTYPES = ("float32", "bfloat16", "float16", "float64")
_SHORT_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}


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


def resolve_dtype(name: "str | torch.dtype") -> "torch.dtype | None":
    """The dtype that a name stands for; None for "auto".

    Raises:
        UserError: it is not a floating-point dtype that models can have.
    """
    name = canonical_dtype(name) if isinstance(name, str) else dtype_name(name)
    check_dtype_name(name)
    if name == "auto":
        return None
    import torch

    return getattr(torch, name)


def dtype_name(dtype: "torch.dtype") -> str:
    """Such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")
