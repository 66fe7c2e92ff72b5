"""The kernels compute the same on ARM: compiled by a cross compiler and run by an emulator, with inputs from here."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from goldfinch.config import ModelConfig
from goldfinch.cpu import build
from goldfinch.inference.cpu_decode import decoder
from goldfinch.layers.quantized import QuantizedLinear
from goldfinch.mixers import Gold, gold_cpu
from goldfinch.ops import attention
from goldfinch.ops.attention import causal_attention
from goldfinch.ops.wkv6 import cpu
from goldfinch.ops.wkv6.recurrent import wkv6_recurrent

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
pytestmark = pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(EMULATOR)), reason=f"needs {COMPILER} and {EMULATOR}"
)


@pytest.fixture
def run(tmp_path):
    """run(name, source, sizes, inputs) -> fp32 numbers: the outputs of kernels_program.cpp on ARM."""

    def run(name, source, sizes, inputs):
        program = Path(__file__).with_name("kernels_program.cpp")
        command = [
            COMPILER, *build.FLAGS, "-static", f"-D{name}", "-iquote", build.HEADERS, "-include", source,
            program, "-o", tmp_path / "program",
        ]  # fmt: skip
        command = [part for part in command if part not in ("-fPIC", "-shared")]
        subprocess.run(command, check=True, capture_output=True)
        with (tmp_path / "inputs").open("wb") as file:
            for tensor in (torch.tensor(sizes), *inputs):
                file.write(len(tensor.flatten()).to_bytes(8, "little"))
                file.write(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        arguments = [tmp_path / "inputs", tmp_path / "outputs"]
        subprocess.run([EMULATOR, tmp_path / "program", *arguments], check=True, timeout=120)
        return torch.frombuffer(bytearray((tmp_path / "outputs").read_bytes()), dtype=torch.float32)

    return run


def assert_close(actual, parts, tolerance):
    pieces = actual.split([part.numel() for part in parts])
    for piece, part in zip(pieces, parts, strict=True):
        assert (piece.double() - part.flatten().double()).abs().max() <= tolerance * part.abs().max()


def test_wkv6_and_its_gradients(run):
    torch.manual_seed(0)
    batch, length, heads, size = 2, 19, 2, 12
    r, k, v, dy = (torch.randn(batch, length, heads, size) for _ in range(4))
    log_w, u = -torch.rand(batch, length, heads, size), torch.randn(heads, size)
    state, dafter = torch.randn(2, batch, heads, size, size).unbind()
    inputs = [r, k, v, log_w.exp(), u, state]
    found = run("WKV6", cpu.SOURCE, [batch, length, heads, size], [*inputs, dy, dafter])
    leaves = [x.double().requires_grad_() for x in inputs]
    y, after = wkv6_recurrent(*leaves[:3], leaves[3].log(), *leaves[4:])
    loss = (y * dy.double()).sum() + (after * dafter.double()).sum()
    dr, dk, dv, dw, _, dstate = torch.autograd.grad(loss, leaves)
    assert_close(found, [y, after, dr, dk, dv, dw, dstate], 1e-5)


def test_attention(run):
    torch.manual_seed(0)
    length, heads, size, total = 3, 2, 16, 150
    q = torch.randn(length, heads, size)
    k, v = torch.randn(2, total, heads, size).bfloat16().unbind()
    found = run("ATTENTION", attention.SOURCE, [length, heads, size, total], [q * size**-0.5, k, v])
    expected = causal_attention(*(part.double().transpose(0, 1)[None] for part in (q, k, v)))
    assert_close(found, [expected[0].transpose(0, 1)], 1e-5)


def test_keys_and_values_of_gold(run):
    torch.manual_seed(0)
    count, width, rank = 9, 32, 8
    gold = Gold(ModelConfig(vocab_size=1, width=width, time_mixes=("gold",), head_size=16, shift_rank=rank)).double()
    e, before = torch.randn(2, count, width).unbind()
    mu, a, b = torch.randn(width), torch.randn(width, 2 * rank) / 8, torch.randn(2, rank, width) / 4
    for parameter in (gold.mu_e, gold.mu_k, gold.mu_v, *gold.key_norm.parameters(), *gold.value_norm.parameters()):
        parameter.data = mu.double()
    gold.shift_low_rank.a.data, gold.shift_low_rank.b.data = a.double(), b.double()
    for adapter in (gold.key_adapter, gold.value_adapter):  # what the program reads as (D, rank) and (rank, D)
        adapter.a.data = a.flatten()[: width * rank].view(width, rank).double()
        adapter.b.data = b[:1].double()
    found = run("GOLD", gold_cpu.SOURCE, [count, width, rank], [e, before, mu, a, b])
    with torch.no_grad():
        weights, values = gold.mix(e.double(), before.double())
        keys = gold.keys(e.double(), before.double(), weights)
    assert_close(found, [weights, values, keys], 1e-5)


@pytest.mark.parametrize("count", [1, 2, 11])
def test_products(run, count):
    torch.manual_seed(0)
    x, weight = torch.randn(count, 37), torch.randn(22, 37)
    int8 = QuantizedLinear.of(weight)
    found = run("PRODUCTS", decoder.SOURCE, [22, count, 37], [x, weight, int8.weight, int8.scale])
    assert_close(found, [F.linear(x.double(), each.double()) for each in (weight, int8.dequantized())], 1e-5)
