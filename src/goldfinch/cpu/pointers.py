"""Addresses of tensors for C++, given out only for tensors that are what C++ takes them for."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor


def pointer(
    tensor: Tensor | None, shape: Sequence[int], dtype: torch.dtype, *, strided: bool = False
) -> ctypes.c_void_p:
    """The address of a tensor's data; null for None.

    Args:
        tensor: on the CPU.
        shape: that C++ will read or write.
        dtype: that C++ takes the numbers for.
        strided: C++ gets the strides too, so only the last dimension must be contiguous.

    Raises:
        ValueError: the tensor is anything else. C++ would read or write memory that is not the tensor's.
    """
    if tensor is None:
        return ctypes.c_void_p(None)
    contiguous = tensor.stride(-1) == 1 or tensor.shape[-1] < 2 if strided else tensor.is_contiguous()
    if not (tensor.is_cpu and tensor.dtype is dtype and tensor.shape == tuple(shape) and contiguous):
        layout = "contiguous" if contiguous else "not contiguous"
        raise ValueError(
            f"a tensor of {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}, {layout}, "
            f"must be {dtype} {tuple(shape)} on cpu, contiguous"
        )
    return ctypes.c_void_p(tensor.data_ptr())
