"""Addresses of tensors for C++, given out only for tensors that are what C++ takes them for."""

import ctypes

import torch
from torch import Tensor


class UnfitTensorError(ValueError):
    """A tensor is not what C++ would take it for."""


def pointer(
    tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, *, strided: bool = False
) -> ctypes.c_void_p:
    """The address of a tensor's data; null for None.

    Args:
        tensor: on the CPU.
        shape: that C++ will read or write.
        dtype: that C++ takes the numbers for.
        strided: C++ gets the strides too, so only the last dimension must be contiguous.

    Raises:
        UnfitTensorError: the tensor is anything else. C++ would read or write memory that is not the tensor's.
    """
    if tensor is None:
        return ctypes.c_void_p(None)
    # Some thirty times per decoded token: the message is made only when it is needed.
    if (
        tensor.dtype is dtype
        and tensor.is_cpu
        and tensor.shape == shape
        and (tensor.is_contiguous() or (strided and (tensor.stride(-1) == 1 or tensor.shape[-1] < 2)))
    ):
        return ctypes.c_void_p(tensor.data_ptr())
    layout = "contiguous" if tensor.is_contiguous() else "not contiguous"
    raise UnfitTensorError(
        f"a tensor of {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}, {layout}, "
        f"must be {dtype} {tuple(shape)} on cpu, contiguous"
    )
