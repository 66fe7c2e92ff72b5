"""A C++ kernel is used where it is faster than PyTorch: measured once, and remembered beside the compiled library."""

import importlib
import json
import shutil
import time
from pathlib import Path

import pytest
import torch

from goldfinch.benchmark.kernels import KERNELS
from goldfinch.cpu import autotune, build
from goldfinch.cpu.autotune import Kernel, Measurement
from goldfinch.ops import wkv6

pytestmark = pytest.mark.skipif(not any(map(shutil.which, build.COMPILERS)), reason="no C++ compiler")
real = importlib.util.module_from_spec(importlib.util.find_spec("goldfinch.cpu.autotune"))
real.__spec__.loader.exec_module(real)  # without what conftest.py replaces


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """kernel(seconds, seconds of PyTorch) -> the kernel, and how often it has been measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "answer.cpp"
    source.write_text('extern "C" int answer() { return 42; }')
    build.compiled.cache_clear()
    measured = []

    def make(ours, pytorch):
        def prepare():
            measured.append(1)
            return (lambda: time.sleep(ours)), (lambda: time.sleep(pytorch))

        return Kernel("answer", source, "Answer", prepare), measured

    yield make
    build.compiled.cache_clear()


@pytest.mark.parametrize(("ours", "pytorch", "expected"), [(0.001, 0.05, True), (0.05, 0.001, False)])
def test_the_faster_form_is_used_and_processes_that_follow_do_not_measure_again(kernel, ours, pytorch, expected):
    answer, measured = kernel(ours, pytorch)
    for _ in range(2):
        real.is_faster.cache_clear()  # as a new process
        assert real.is_faster(answer) is expected
    assert len(measured) == 1


def test_another_number_of_threads_is_measured_by_itself(kernel, monkeypatch):
    answer, measured = kernel(0.0, 0.01)
    for threads in (1, 2, 1):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        real.is_faster.cache_clear()
        assert real.is_faster(answer)
    assert len(measured) == 2


@pytest.mark.parametrize(
    "content", ["", "[]", '{"answer": 1}', '{"answer": {"1": [0.5]}}', '{"answer": {"1": ["x", 1]}}']
)
def test_a_damaged_record_is_measured_again(kernel, content):
    answer, measured = kernel(0.0, 0.01)
    real.is_faster.cache_clear()
    assert real.is_faster(answer)
    (record,) = Path(build.cache_folder()).glob("*.json")
    record.write_text(content)
    real.is_faster.cache_clear()
    assert real.is_faster(answer)
    assert len(measured) == 2
    assert list(json.loads(record.read_text())) == ["answer"]


def test_without_a_compiler_pytorch_is_used_and_nothing_is_measured(kernel, monkeypatch):
    answer, measured = kernel(0.0, 0.01)
    monkeypatch.setattr(build, "COMPILERS", ())
    monkeypatch.delenv("CXX", raising=False)
    real.is_faster.cache_clear()
    assert not real.is_faster(answer)
    assert not measured


def test_wkv6_runs_in_pytorch_where_that_is_faster(monkeypatch):
    slower = {kernel: Measurement(2.0, 1.0).is_faster for kernel in wkv6.KERNELS.values()}
    monkeypatch.setattr(wkv6, "is_faster", slower.__getitem__)
    called = []
    chunked = wkv6.IMPLEMENTATIONS["chunked"]
    monkeypatch.setitem(wkv6.IMPLEMENTATIONS, "chunked", lambda *args: (called.append(1), chunked(*args))[1])
    wkv6.wkv6(*torch.randn(3, 1, 8, 2, 16).unbind(), -torch.rand(1, 8, 2, 16))
    assert called


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_each_kernel_and_its_pytorch_form_can_be_measured_anywhere_and_leave_no_trace(kernel):
    state = torch.get_rng_state()
    with torch.inference_mode():
        found = real.measure(kernel)
    assert found.kernel_seconds > 0 < found.pytorch_seconds
    assert torch.equal(torch.get_rng_state(), state)
    assert autotune.is_faster(kernel)
