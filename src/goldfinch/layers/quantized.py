"""Linear layers and embeddings whose weights are integers of 8 bits, with a scale for each row.

The numbers are x W^T with W = codes * scales: the activations, the sums and all other weights stay what they are. So a
model of int8 weights is a model like any other, only that its matrices have fewer values to choose from and a quarter
of the bytes of fp32, which is what writing a token waits for.
"""

from collections.abc import Callable
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WeightKind = Literal["int8"]
"""What `quantize` can make of matrices."""
MAX_CODE = 127


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns) of any float dtype -> codes, (rows, columns) int8 in -127 .. 127, and scales, (rows,) fp32.

    Each is the nearest multiple of its row's scale, which makes the largest one 127.
    """
    numbers = weight.detach().float()
    scales = numbers.abs().amax(1) / MAX_CODE
    codes = (numbers / scales.where(scales > 0, 1.0)[:, None]).round()
    return codes.to(torch.int8), scales


class _QuantizedMatrix(nn.Module):
    """A matrix as codes and scales. They are buffers: what is rounded is not trained.

    Args:
        rows, columns: of the matrix.
        dtype: of the results.
    """

    weight: Tensor
    """(rows, columns) int8."""
    scale: Tensor
    """(rows,) fp32."""

    def __init__(self, rows: int, columns: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(rows, columns, dtype=torch.int8))
        self.register_buffer("scale", torch.empty(rows))
        self.dtype = dtype

    @classmethod
    def of(cls, matrix: Tensor) -> Self:
        """The nearest one to a (rows, columns) matrix."""
        rows, columns = matrix.shape
        module = cls(rows, columns, matrix.dtype)
        module.weight, module.scale = quantize_rows(matrix)
        return module

    def dequantized(self) -> Tensor:
        """The matrix, (rows, columns)."""
        return (self.weight * self.scale[:, None]).to(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """`to`: another dtype is that of the results. Scales stay fp32, or the matrix would be another."""
        scale = self.scale
        super()._apply(fn, recurse)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=scale.device)).dtype
        self.scale = scale.to(self.scale.device)
        return self

    def extra_repr(self) -> str:
        """Sizes, as PyTorch's own modules show them."""
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, int8"


class QuantizedLinear(_QuantizedMatrix):
    """`nn.Linear` without bias."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., columns) -> (..., rows)."""
        return F.linear(x, self.dequantized())


class QuantizedEmbedding(_QuantizedMatrix):
    """`nn.Embedding`."""

    def forward(self, ids: Tensor) -> Tensor:
        """(...) int64 -> (..., columns)."""
        return (F.embedding(ids, self.weight) * self.scale[ids][..., None]).to(self.dtype)


MatrixModule = nn.Linear | nn.Embedding | QuantizedLinear | QuantizedEmbedding
"""What holds a matrix, quantized or not."""
