"""Matrices of 8 bits: what is kept of them, and that they behave like the layers that they replace."""

import pytest
import torch
from torch import nn

from goldfinch.layers.quantized import QuantizedEmbedding, QuantizedLinear, quantize_rows


def test_no_number_is_further_from_its_code_than_half_a_step():
    weight = torch.randn(37, 53) * torch.logspace(-6, 6, 37)[:, None]
    codes, scales = quantize_rows(weight)
    assert codes.abs().max() == 127
    assert ((codes * scales[:, None] - weight).abs() <= 0.5001 * scales[:, None]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_row_of_zeros_and_the_largest_number_stay_what_they_are(dtype):
    weight = torch.tensor([[0.0, 0.0], [-3.0, 1.0]], dtype=dtype)
    matrix = QuantizedLinear.of(weight).dequantized()
    assert matrix.dtype == dtype
    assert (matrix[0] == 0).all()
    torch.testing.assert_close(matrix[1, 0], weight[1, 0])


def test_layers_of_codes_compute_with_the_matrix_that_they_stand_for():
    x, ids = torch.randn(2, 5, 16), torch.tensor([[3, 0], [7, 3]])
    linear, embedding = nn.Linear(16, 9, bias=False), nn.Embedding(9, 16)
    for layer, quantized, given in (
        (linear, QuantizedLinear.of(linear.weight), x),
        (embedding, QuantizedEmbedding.of(embedding.weight), ids),
    ):
        layer.weight.data = quantized.dequantized()
        torch.testing.assert_close(quantized(given), layer(given))


def test_another_dtype_is_that_of_the_results_and_leaves_the_matrix():
    layer = QuantizedLinear.of(torch.randn(9, 16))
    codes, scale = layer.weight, layer.scale.clone()
    layer.to(torch.bfloat16)
    assert torch.equal(layer.weight, codes)
    assert torch.equal(layer.scale, scale)
    assert layer(torch.randn(2, 16, dtype=torch.bfloat16)).dtype == torch.bfloat16
