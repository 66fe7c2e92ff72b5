"""Every WKV6 implementation against the definition, written out here in fp64."""

from pathlib import Path

import pytest
import torch

from goldfinch.cpu import autotune, build
from goldfinch.ops.wkv6 import IMPLEMENTATIONS, cpu, wkv6

needs_compiler = pytest.mark.skipif(cpu.library() is None, reason="no C++ compiler")
# "fla" is for GPUs: test_wkv6_fla.py.
ON_CPUS = [name for name in IMPLEMENTATIONS if name != "fla"]
ALL = [pytest.param(name, marks=needs_compiler) if name == "cpu" else name for name in ON_CPUS]
LENGTHS = [1, 2, 3, 5, 31, 32, 33, 67, 130]
NAMES = ("r", "k", "v", "log_w", "u", "state")
BATCH, HEADS, SIZE = 2, 3, 4


def definition(r, k, v, log_w, u=None, state=None, document_starts=None):
    """y[t] = r[t] (S[t-1] + diag(u) k[t]^T v[t]);  S[t] = diag(w[t]) S[t-1] + k[t]^T v[t], entry by entry.

    S[t-1] is zero where a document begins at t.
    """
    if state is None:
        state = torch.zeros(r.shape[0], r.shape[2], r.shape[3], r.shape[3], dtype=r.dtype)
    y = []
    for t in range(r.shape[1]):
        if document_starts is not None:
            state = state.masked_fill(document_starts[:, t, None, None, None], 0)
        written = torch.einsum("bhi,bhj->bhij", k[:, t], v[:, t])
        seen = state if u is None else state + torch.einsum("hi,bhij->bhij", u, written)
        y.append(torch.einsum("bhi,bhij->bhj", r[:, t], seen))
        state = torch.einsum("bhi,bhij->bhij", log_w[:, t].exp(), state) + written
    return torch.stack(y, dim=1), state


def inputs(length, dtype=torch.float64, with_u=True, with_state=True, size=SIZE):
    generator = torch.Generator().manual_seed(length)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    sequence = (BATCH, length, HEADS, size)
    values = {name: normal(*sequence) for name in ("r", "k", "v")}
    values["log_w"] = -torch.exp(normal(*sequence) * 2 - 2)
    values["u"] = normal(HEADS, size) if with_u else None
    values["state"] = normal(BATCH, HEADS, size, size) if with_state else None
    return {name: None if value is None else value.to(dtype) for name, value in values.items()}


def run_with_gradients(function, values):
    """y, the state, and the gradients of both for every input, in fp64 for comparison."""
    leaves = {name: value.clone().requires_grad_() for name, value in values.items() if value is not None}
    y, state = function(**leaves)
    generator = torch.Generator().manual_seed(0)
    loss = sum(
        (out * torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)).sum()
        for out in (y, state)
    )
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    results = {"y": y, "final state": state} | dict(zip(leaves, gradients, strict=True))
    return {name: result.detach().double() for name, result in results.items()}


def assert_agree(actual, expected, tolerance):
    """Largest difference, relative to the largest entry of the tensor."""
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        assert torch.isfinite(actual[name]).all(), name
        assert (actual[name] - wanted).abs().max() <= tolerance * wanted.abs().max().clamp(min=1e-30), name


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
@pytest.mark.parametrize("length", LENGTHS)
def test_outputs_state_and_all_gradients_equal_the_definition(implementation, dtype, tolerance, length):
    for with_u, with_state in ((True, True), (False, False)):
        values = inputs(length, dtype, with_u, with_state)
        wide = {name: None if value is None else value.double() for name, value in values.items()}
        expected = run_with_gradients(definition, wide)
        actual = run_with_gradients(lambda **leaves: wkv6(**leaves, implementation=implementation), values)
        assert_agree(actual, expected, tolerance)


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
@pytest.mark.parametrize("mixed", [True, False], ids=["mixed", "one decay at a time"])
def test_extreme_decays_stay_finite_and_exact_with_their_gradients(implementation, dtype, tolerance, mixed):
    extremes = torch.tensor([-torch.inf, -1e4, -100.0, -20.0, -1.0, -1e-8, 0.0], dtype=torch.float64)
    length = 35
    for extreme in [None] if mixed else extremes:
        values = inputs(length, dtype)
        if extreme is None:
            chosen = torch.randint(len(extremes), values["log_w"].shape, generator=torch.Generator().manual_seed(1))
            values["log_w"] = extremes[chosen].to(dtype)
        else:
            values["log_w"] = torch.full_like(values["log_w"], extreme)
        expected = run_with_gradients(definition, {name: value.double() for name, value in values.items()})
        actual = run_with_gradients(lambda **leaves: wkv6(**leaves, implementation=implementation), values)
        assert_agree(actual, expected, tolerance)


STARTS = {
    "nowhere": [],
    "at the first token": [0],
    "at the last token": [34],
    "one after the other": [0, 1, 2, 16, 17, 31, 32, 33],
    "everywhere": range(35),
}


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
@pytest.mark.parametrize("places", STARTS.values(), ids=STARTS)
def test_documents_begin_with_an_empty_state_and_all_gradients_stay_numbers(implementation, dtype, tolerance, places):
    document_starts = torch.zeros(BATCH, 35, dtype=torch.bool)
    document_starts[0, list(places)] = True
    document_starts[1, 5] = True
    for with_u, with_state in ((True, True), (False, True), (False, False)):
        values = inputs(35, dtype, with_u, with_state)
        wide = {name: None if value is None else value.double() for name, value in values.items()}
        expected = run_with_gradients(lambda **leaves: definition(**leaves, document_starts=document_starts), wide)
        actual = run_with_gradients(
            lambda **leaves: wkv6(**leaves, implementation=implementation, document_starts=document_starts), values
        )
        assert_agree(actual, expected, tolerance)


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_not_the_smallest_gradient_crosses_the_border_of_a_document(implementation, dtype):
    values = {name: value.requires_grad_() for name, value in inputs(67, dtype).items()}
    document_starts = torch.zeros(BATCH, 67, dtype=torch.bool)
    document_starts[:, [21, 50]] = True
    y, _ = wkv6(**values, implementation=implementation, document_starts=document_starts)
    gradients = torch.autograd.grad(y[:, 21:50].square().sum(), [values[name] for name in NAMES])
    for name, gradient in zip(NAMES, gradients, strict=True):
        if name == "state":
            assert (gradient == 0).all()
        elif name != "u":
            assert (gradient[:, :21] == 0).all(), name
            assert (gradient[:, 50:] == 0).all(), name
            assert (gradient[:, 21:49] != 0).any(), name


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("size", [16, 48, 64])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
def test_cpu_code_is_exact_at_usual_sizes_and_however_many_threads_share_a_head(
    size, dtype, tolerance, threads, monkeypatch
):
    monkeypatch.setattr(cpu, "WORTH_A_THREAD", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads * BATCH * HEADS)
    for length in (1, 16, 37):
        values = inputs(length, dtype, size=size)
        expected = run_with_gradients(definition, {name: value.double() for name, value in values.items()})
        actual = run_with_gradients(lambda **leaves: wkv6(**leaves, implementation="cpu"), values)
        assert_agree(actual, expected, tolerance)


def test_the_cpu_form_without_a_compiler_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(cpu, "library", lambda: None)
    with pytest.raises(RuntimeError, match="with a compiler"):
        wkv6(**inputs(5, torch.float32), implementation="cpu")


@needs_compiler
def test_the_cpu_operator_is_one_that_torch_can_trace():
    values = list(inputs(5, torch.float32, size=16).values())
    torch.library.opcheck(cpu._forward, [value.requires_grad_() for value in values])


@needs_compiler
def test_the_cpp_kernel_is_what_runs_on_a_cpu_by_default(monkeypatch):
    called = []
    real = IMPLEMENTATIONS["cpu"]
    monkeypatch.setitem(IMPLEMENTATIONS, "cpu", lambda *args: (called.append(1), real(*args))[1])
    wkv6(**inputs(5, torch.float32))
    assert called


@pytest.mark.parametrize(("compiler", "message"), [(None, "no C++ compiler"), ("false", "false")])
def test_without_a_working_compiler_pytorch_takes_over_and_says_so_once(
    compiler, message, monkeypatch, tmp_path, caplog
):
    build.compiled.cache_clear()
    autotune.is_faster.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "COMPILERS", ())
    monkeypatch.delenv("CXX", raising=False)
    if compiler is not None:
        monkeypatch.setenv("CXX", compiler)
    values = inputs(5, torch.float32)
    try:
        y, _ = wkv6(**values)
        wkv6(**values)
    finally:
        build.compiled.cache_clear()
        autotune.is_faster.cache_clear()
    assert torch.equal(y, wkv6(**values, implementation="chunked")[0])
    (warning,) = caplog.messages
    assert message in warning
    assert "several times slower" in warning


@pytest.mark.slow
def test_sanitizers_find_nothing_in_the_cpp_code(run_with_sanitizers):
    run_with_sanitizers(cpu.SOURCE, Path(__file__).with_name("wkv6_program.cpp"))


@pytest.mark.parametrize("implementation", ALL)
def test_bf16_inputs_are_computed_in_fp32_and_only_rounded_at_the_end(implementation):
    values = inputs(33)
    low = {name: value.bfloat16() if name in ("r", "k", "v") else value.float() for name, value in values.items()}
    y, state = definition(**{name: value.double() for name, value in low.items()})
    low_y, low_state = wkv6(**low, implementation=implementation)
    assert low_y.dtype == torch.bfloat16
    assert low_state.dtype == torch.float32
    torch.testing.assert_close(low_y.double(), y, rtol=2**-8, atol=1e-5 * y.abs().max().item())
    torch.testing.assert_close(low_state.double(), state, rtol=0, atol=1e-5 * state.abs().max().item())


@pytest.mark.parametrize("implementation", ALL)
def test_autocast_does_not_lower_the_precision(implementation):
    values = inputs(33, torch.float32)
    expected = wkv6(**values, implementation=implementation)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = wkv6(**values, implementation=implementation)
    for got, wanted in zip(actual, expected, strict=True):
        assert got.dtype == torch.float32
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("implementation", ALL)
def test_inputs_are_left_as_they_were(implementation):
    values = inputs(33, torch.float32)
    before = {name: value.clone() for name, value in values.items()}
    wkv6(**values, implementation=implementation)
    assert all(torch.equal(values[name], before[name]) for name in NAMES)


@pytest.mark.parametrize("implementation", ALL)
def test_gradients_agree_with_finite_differences(implementation):
    values = [inputs(5, size=2)[name].requires_grad_() for name in NAMES]
    assert torch.autograd.gradcheck(lambda *args: wkv6(*args, implementation=implementation), values, fast_mode=True)
