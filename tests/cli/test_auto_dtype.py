"""--dtype auto: what commands choose, for models and for .gfc files, and what they say about it."""

import json
from pathlib import Path

import pytest

from goldfinch import devices
from goldfinch.benchmark import speed as speed_benchmark

PROCESSORS = {"not native": ("avx2", "float32"), "native": ("avx512_bf16", "bfloat16")}
EACH_PROCESSOR = pytest.mark.parametrize(("found", "auto"), PROCESSORS.values(), ids=PROCESSORS)


@pytest.fixture
def new_process(monkeypatch):
    """new_process(): nothing has been said about slow dtypes."""
    return lambda: monkeypatch.setattr(devices, "_reported_slow", set())


@pytest.fixture
def short(monkeypatch):
    """Speeds are measured on tiny tensors."""
    monkeypatch.setattr(speed_benchmark, "COPY_BYTES", 1 << 16)
    monkeypatch.setattr(speed_benchmark, "MIN_PRODUCT_FLOPS", 1)
    monkeypatch.setattr(speed_benchmark, "LENGTHS", (16,))
    monkeypatch.setattr(speed_benchmark, "PREFILL_TOKENS", 16)


@EACH_PROCESSOR
def test_a_file_is_read_in_the_fast_dtype_and_opened_anywhere(
    found, auto, instructions, new_process, small_run, goldfinch
):
    other = next(name for name, _ in PROCESSORS.values() if name != found)
    Path("book.txt").write_text("Call me Ishmael. " * 20)
    instructions(found)
    new_process()
    assert "slow" not in goldfinch("read", "book.txt", "-m", small_run, "-o", "book.gfc").err
    assert auto in goldfinch("cache", "info", "book.gfc").out
    for name in (found, other):
        instructions(name)
        for command in (
            ("ask", "book.gfc", "Who?", "--plain", "--max-tokens", 2),
            ("generate", "book.gfc", "--max-tokens", 2),
            ("read", "book.txt", "-m", small_run, "-o", "book.gfc", "--append"),
            ("cache", "verify", "book.gfc"),
        ):
            new_process()
            said = goldfinch(*command).err
            assert said.count("bfloat16 is slow here") == ((auto, name) == ("bfloat16", "avx2")), command
    assert auto in goldfinch("cache", "info", "book.gfc").out


@EACH_PROCESSOR
def test_commands_say_once_that_a_dtype_is_slow_here(found, auto, instructions, new_process, small_run, goldfinch):
    instructions(found)
    new_process()
    command = ("generate", small_run, "Call", "--max-tokens", 2)
    assert "slow" not in goldfinch(*command).err
    slow = int(auto == "float32")
    assert goldfinch(*command, "--dtype", "bf16").err.count("goldfinch: bfloat16 is slow here") == slow
    assert "slow" not in goldfinch(*command, "--dtype", "bf16").err


@EACH_PROCESSOR
@pytest.mark.parametrize("model", ["run", "finch-L1-D64"])
def test_bench_speed_says_what_it_chose_and_why(model, found, auto, instructions, short, small_run, goldfinch):
    instructions(found)
    out = goldfinch("bench", "speed", model, "--repeats", 1).out
    reason = {
        "float32": "float32: this processor has no bfloat16 instructions",
        "bfloat16": "bfloat16: this processor multiplies it natively (avx512_bf16)",
    }[auto]
    assert f"parameters in {auto}" in out
    assert reason in out.splitlines()
    content = json.loads(goldfinch("bench", "speed", model, "--repeats", 1, "--json").out)
    assert (content["dtype"], content["auto_dtype"]) == (auto, reason)
    out = goldfinch("bench", "speed", model, "--repeats", 1, "--dtype", "float32").out
    assert "parameters in float32" in out
    assert "instructions" not in out


def test_an_unknown_dtype_is_refused_before_anything_is_loaded(goldfinch):
    assert "unknown dtype 'fp8'" in goldfinch("bench", "speed", "finch-L1-D64", "--dtype", "fp8", code=2).err
