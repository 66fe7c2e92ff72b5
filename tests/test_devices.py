"""Which dtype "auto" is, why, and what is said about a dtype that is slow here."""

import logging

import pytest
import torch

import goldfinch as gf
from goldfinch import devices, processor
from goldfinch.devices import auto_dtype, bf16_is_native, explain_auto_dtype, resolve_dtype, warn_if_slow
from goldfinch.doctor import diagnose

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
MULTIPLY_BF16 = ["amx_bf16", "avx512_bf16", "bf16"]
BF16 = MULTIPLY_BF16[1]


@pytest.fixture
def gpu(monkeypatch):
    """gpu(native): PyTorch finds a GPU with, or without, bfloat16 instructions."""

    def find(native):
        monkeypatch.setattr(torch.cuda, "device", lambda _: torch.autograd.profiler.record_function("device"))
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native
        )

    return find


@pytest.mark.parametrize("name", MULTIPLY_BF16)
def test_auto_is_bfloat16_where_the_processor_multiplies_it(name, instructions):
    instructions("avx2", name)
    assert bf16_is_native(CPU)
    assert auto_dtype(CPU) == resolve_dtype("auto", CPU) == torch.bfloat16
    assert explain_auto_dtype(CPU) == f"bfloat16: this processor multiplies it natively ({name})"
    assert diagnose()["processor"]["dtype_auto"] == explain_auto_dtype(CPU)


@pytest.mark.parametrize("others", [[], ["avx2", "f16c"], ["avx512f", "avx512bw", "avx512vl"], ["asimd", "asimdhp"]])
def test_auto_is_float32_elsewhere(others, instructions):
    """With AVX-512 alone PyTorch only emulates bfloat16."""
    instructions(*others)
    assert not bf16_is_native(CPU)
    assert auto_dtype(CPU) == resolve_dtype("auto", CPU) == torch.float32
    assert explain_auto_dtype(CPU) == "float32: this processor has no bfloat16 instructions"
    assert diagnose()["processor"]["dtype_auto"] == explain_auto_dtype(CPU)


def test_instructions_that_pytorch_does_not_use_do_not_count(instructions, monkeypatch):
    instructions(BF16)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert auto_dtype(CPU) == torch.float32


def test_on_a_gpu_emulation_does_not_count(gpu, instructions):
    instructions(BF16)
    gpu(native=False)
    assert (auto_dtype(GPU), explain_auto_dtype(GPU)) == (
        torch.float32,
        "float32: this GPU has no bfloat16 instructions",
    )
    instructions()
    gpu(native=True)
    assert (auto_dtype(GPU), explain_auto_dtype(GPU)) == (torch.bfloat16, "bfloat16: this GPU multiplies it natively")


def test_what_is_asked_for_is_given_on_any_machine(instructions):
    for found in ([], [BF16]):
        instructions(*found)
        for name in ("float32", "bfloat16", "float16", "float64"):
            assert resolve_dtype(name, CPU) == getattr(torch, name)
        assert resolve_dtype("bf16", CPU) == resolve_dtype(torch.bfloat16, CPU) == torch.bfloat16


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("processor : 0\nmodel name\t: A Chip\nflags\t\t: avx2 avx512_bf16\n", ("A Chip", ["avx2", "avx512_bf16"])),
        ("processor : 0\nFeatures\t: asimd bf16\nCPU part\t: 0xd40\n", (None, ["asimd", "bf16"])),
        (None, (None, [])),
    ],
    ids=["x86", "ARM", "no /proc"],
)
def test_instruction_sets_are_those_that_linux_and_pytorch_name(description, expected, tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    if description is not None:
        path.write_text(description)
    monkeypatch.setattr(processor, "DESCRIPTION", path)
    monkeypatch.setattr(processor.sys, "platform", "linux")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True, "avx2": False}, raising=False)
    name, instruction_sets = expected
    assert processor.instruction_sets() == [*instruction_sets, "amx_bf16"]
    assert processor.processor_name() == name if name else processor.processor_name()


def test_a_dtype_that_is_slow_here_is_reported_once(instructions, caplog, monkeypatch):
    monkeypatch.setattr(devices, "_reported_slow", set())
    instructions("avx2")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            warn_if_slow(torch.float32, CPU)
            warn_if_slow(torch.float64, CPU)
            warn_if_slow(torch.bfloat16, CPU)
            warn_if_slow(torch.float16, CPU)
            warn_if_slow(torch.bfloat16, GPU)
    bf16, fp16 = (record.getMessage() for record in caplog.records)
    assert bf16.startswith("bfloat16 is slow here")
    assert "about 4 times slower than in float32" in bf16
    assert "--dtype float32" in bf16
    assert fp16.startswith("float16 is slow here")


def test_a_dtype_that_is_fast_here_is_not_reported(instructions, caplog, monkeypatch):
    monkeypatch.setattr(devices, "_reported_slow", set())
    instructions(BF16, "avx512_fp16")
    with caplog.at_level(logging.WARNING):
        warn_if_slow(torch.bfloat16, CPU)
        warn_if_slow(torch.float16, CPU)
    assert not caplog.records


@pytest.mark.parametrize("found", [[], [BF16]], ids=["not native", "native"])
def test_a_built_model_is_float32_unless_asked(found, instructions, caplog, monkeypatch):
    monkeypatch.setattr(devices, "_reported_slow", set())
    instructions(*found)
    with caplog.at_level(logging.WARNING):
        assert gf.build("finch-L1-D64", vocab_size=32).model.dtype == torch.float32
        assert gf.build("finch-L1-D64", "auto", vocab_size=32).model.dtype == auto_dtype(CPU)
        assert not caplog.records
        assert gf.build("finch-L1-D64", "bf16", vocab_size=32).model.dtype == torch.bfloat16
    assert len(caplog.records) == (not found)
