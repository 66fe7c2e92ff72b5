"""What GOLD rebuilds in C++ is what its modules make of it."""

from pathlib import Path

import pytest
import torch

from goldfinch.cpu import build
from goldfinch.cpu.pointers import UnfitTensorError
from goldfinch.mixers import Gold, gold_cpu

pytestmark = pytest.mark.skipif(build.compiled(gold_cpu.SOURCE, "GOLD") is None, reason="no C++ compiler")


@pytest.fixture
def layer(small_config, randomized):
    config = small_config("gold", width=96, head_size=32, shift_rank=16)
    return lambda dtype: randomized(Gold(config), dtype, 0)


def possible(rows, gold):
    return gold_cpu.possible(rows, gold.shift_low_rank, gold.key_adapter, gold.value_adapter)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("count", [1, 4, 7, 200])
def test_keys_values_and_weights_are_those_of_pytorch(layer, count, dtype, tolerance, monkeypatch):
    torch.manual_seed(0)
    gold, truth = layer(dtype), layer(dtype).double()
    e, before, kd = torch.randn(3, count, 96).to(dtype).unbind()
    rows = torch.randint(count, (count,))
    with torch.inference_mode():
        assert possible(e, gold)
        weights, values = gold.mix(e, before)
        found = [weights, values, gold.keys(kd, before, weights), gold.keys(kd, before, weights, rows)]
        weights, values = truth.mix(e.double(), before.double())
        given = found[0].double()
        wide = kd.double(), before.double()
        expected = [weights, values, truth.keys(*wide, given), truth.keys(*wide, given[rows])]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert (one.double() - other).abs().max() <= tolerance * other.abs().max()


def test_small_and_large_numbers_are_as_exact_as_in_pytorch(layer):
    gold, truth = layer(torch.float32), layer(torch.float64)
    torch.manual_seed(0)
    for size in (1e-6, 1e-3, 1.0, 3.0, 300.0):
        e = size * torch.randn(4, 96)
        for one in (gold, truth):
            one.value_adapter.a.fill_(1 / 96)  # tanh of about `size` / 10
        expected = truth.mix(e.double(), e.double())[1]
        error = (gold.mix(e, e)[1] - expected).abs().max()  # gradients are recorded: by PyTorch
        with torch.no_grad():
            assert (gold.mix(e, e)[1] - expected).abs().max() <= 2 * error + 1e-6


def test_gradients_and_other_types_are_left_to_pytorch(layer):
    rows = torch.randn(3, 96)
    assert not possible(rows, layer(torch.float32))
    with torch.inference_mode():
        assert not possible(rows.double(), layer(torch.float64))
        assert not possible(rows[None], layer(torch.float32))


@pytest.mark.parametrize("name", ["mu_v", "shift_low_rank.b", "value_adapter.a", "value_norm.bias"])
def test_a_weight_of_another_dtype_is_refused(layer, name):
    gold, rows = layer(torch.float32), torch.randn(3, 96)
    gold.get_parameter(name).data = gold.get_parameter(name).bfloat16()
    mu = gold.mu_e, gold.mu_k, gold.mu_v
    with torch.inference_mode(), pytest.raises(UnfitTensorError, match=r"a tensor of torch.bfloat16"):
        gold_cpu.mix(rows, rows, mu, gold.shift_low_rank, gold.value_adapter, gold.value_norm)


@pytest.mark.slow
def test_sanitizers_find_nothing(run_with_sanitizers):
    run_with_sanitizers(gold_cpu.SOURCE, Path(__file__).with_name("gold_program.cpp"))
