"""The adapter to flash-linear-attention, in two proofs, both on a CPU. Nothing here has run on a GPU.

By a stand-in, always: two functions that follow the documented convention of `fla.ops.rwkv6` (argument order, scale
1 / sqrt(N) by default, log-decay, layout, state) and have the faults we know of: one drops the gradient of the state
after, the other subtracts sums of log-decays. They prove the adapter's conversions, and nothing about the real kernels.

By the real kernels, where `fla` and `triton` are installed: `wkv6_fla_program.py` steps through them in Triton's
interpreter, which computes in NumPy: no TF32, no tuning, no compiler. What it measured is in docs/numerics.md.
"""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from test_wkv6 import assert_agree, definition, inputs, run_with_gradients
from torch._subclasses import FakeTensorMode

from goldfinch.errors import UserError
from goldfinch.ops.wkv6 import IMPLEMENTATIONS, fla, wkv6

SIZE = 16
LENGTHS = [1, 3, 64, 65, 130]


def stand_in_fused_recurrent(r, k, v, w, u, scale=None, initial_state=None, output_final_state=False):
    """A step per token; the final state takes no gradient back."""
    check_arguments(r, k, v, w, u, initial_state)
    r = r.float() * (r.shape[-1] ** -0.5 if scale is None else scale)
    batch, length, heads, size = k.shape
    state = torch.zeros(batch, heads, size, size) if initial_state is None else initial_state
    outputs = []
    for t in range(length):
        written = k[:, t].float().unsqueeze(-1) * v[:, t].float().unsqueeze(-2)
        seen = state + u.view(1, heads, size, 1) * written
        outputs.append((r[:, t].unsqueeze(-1) * seen).sum(-2))
        state = state * w[:, t].exp().unsqueeze(-1) + written
    return torch.stack(outputs, 1).to(v.dtype), state.detach() if output_final_state else None


def stand_in_chunk(r, k, v, w, u, scale=None, initial_state=None, output_final_state=False):
    """All tokens at once, weights as exp(sum to t - sum to s): -inf - -inf is NaN."""
    check_arguments(r, k, v, w, u, initial_state)
    dtype, length = v.dtype, r.shape[1]
    scale = r.shape[-1] ** -0.5 if scale is None else scale
    r, k, v, w = (x.float().transpose(1, 2) for x in (r, k, v, w))  # (B, H, T, N)
    until = w.cumsum(-2)
    before = until - w
    exponent = before.unsqueeze(3) - until.unsqueeze(2)  # (B, H, t, s, N)
    past = torch.ones(length, length).tril(-1).bool()[..., None]
    weights = exponent.masked_fill(~past, -torch.inf).exp()
    scores = torch.einsum("bhtn,bhsn,bhtsn->bhts", r, k, weights)
    scores = scores + torch.diag_embed(torch.einsum("bhtn,bhtn,hn->bht", r, k, u))
    y = scores @ v
    state = torch.einsum("bhtn,bhtn,bhtm->bhnm", k, (until[:, :, -1:] - until).exp(), v)
    if initial_state is not None:
        y = y + (r * before.exp()) @ initial_state
        state = state + until[:, :, -1, :, None].exp() * initial_state
    return (y * scale).transpose(1, 2).to(dtype), state if output_final_state else None


def check_arguments(r, k, v, w, u, initial_state):
    assert r.dtype == k.dtype == v.dtype
    assert r.dtype in (torch.float32, torch.bfloat16, torch.float16)
    assert w.dtype == u.dtype == torch.float32
    assert u.shape == r.shape[2:]
    assert initial_state is None or initial_state.dtype == torch.float32


@pytest.fixture
def stand_in(monkeypatch):
    """The names of the stand-in's functions that were called."""
    called = []

    def recorded(name, function):
        return lambda *args, **kwargs: (called.append(name), function(*args, **kwargs))[1]

    modules = {name: ModuleType(name) for name in ("fla", "fla.ops", "fla.ops.rwkv6")}
    modules["fla"].ops, modules["fla.ops"].rwkv6 = modules["fla.ops"], modules["fla.ops.rwkv6"]
    modules["fla.ops.rwkv6"].chunk_rwkv6 = recorded("chunk", stand_in_chunk)
    modules["fla.ops.rwkv6"].fused_recurrent_rwkv6 = recorded("fused", stand_in_fused_recurrent)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # else the adapter refuses a CPU
    monkeypatch.setenv("TRITON_F32_DEFAULT", "")  # so that what the adapter sets is undone
    monkeypatch.delenv("TRITON_F32_DEFAULT")
    fla.library.cache_clear()
    yield called
    fla.library.cache_clear()


@pytest.fixture
def no_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "fla", None)
    fla.library.cache_clear()
    yield
    fla.library.cache_clear()


def wide(values):
    return {name: None if value is None else value.double() for name, value in values.items()}


def run(**values):
    return wkv6(**values, implementation="fla")


@pytest.mark.parametrize("length", LENGTHS)
def test_by_a_stand_in_outputs_state_and_all_gradients_equal_the_definition(length, stand_in):
    for with_u, with_state in ((True, True), (False, False)):
        values = inputs(length, torch.float32, with_u, with_state, size=SIZE)
        expected = run_with_gradients(definition, wide(values))
        assert_agree(run_with_gradients(run, values), expected, 1e-4)
    assert set(stand_in) == {"chunk"}


@pytest.mark.parametrize("length", LENGTHS)
def test_by_a_stand_in_without_gradients_short_sequences_go_step_by_step(length, stand_in):
    values = inputs(length, torch.float32, size=SIZE)
    y, state = definition(**wide(values))
    with torch.no_grad():
        got_y, got_state = run(**values)
    assert_agree({"y": got_y.double(), "state": got_state.double()}, {"y": y, "state": state}, 1e-4)
    assert stand_in == ["fused" if length <= fla.CHUNK_LENGTH else "chunk"]


@pytest.mark.parametrize("differentiated", [True, False])
def test_by_a_stand_in_decays_of_0_are_finite_and_exact(differentiated, stand_in):
    extremes = torch.tensor([-torch.inf, -1e4, -100.0, -20.0, -1.0, -1e-8, 0.0])
    values = inputs(35, torch.float32, size=SIZE)
    chosen = torch.randint(len(extremes), values["log_w"].shape, generator=torch.Generator().manual_seed(1))
    values["log_w"] = extremes[chosen]
    if differentiated:
        assert_agree(run_with_gradients(run, values), run_with_gradients(definition, wide(values)), 1e-4)
    else:
        y, state = definition(**wide(values))
        got_y, got_state = run(**values)
        assert_agree({"y": got_y.double(), "state": got_state.double()}, {"y": y, "state": state}, 1e-6)


@pytest.mark.parametrize("differentiated", [True, False])
@pytest.mark.parametrize("length", [35, 130])
def test_by_a_stand_in_nothing_of_a_document_reaches_the_next(length, differentiated, stand_in):
    values = inputs(length, torch.float32, size=SIZE)
    values["log_w"] = values["log_w"].clamp(min=-0.01)  # little is forgotten by itself
    document_starts = torch.zeros(2, length, dtype=torch.bool)
    document_starts[:, [20, 21]] = True
    changed = values | {name: values[name].clone() for name in ("k", "v")}
    for name in ("k", "v"):
        changed[name][:, :20] *= 1000
    with torch.set_grad_enabled(differentiated):
        leaves = [{name: value.requires_grad_(differentiated) for name, value in v.items()} for v in (values, changed)]
        (y, state), (other_y, other_state) = (run(**v, document_starts=document_starts) for v in leaves)
    assert torch.equal(y[:, 20:], other_y[:, 20:])
    assert torch.equal(state, other_state)
    assert not torch.equal(y[:, :20], other_y[:, :20])
    wanted_y, wanted_state = definition(**wide(values), document_starts=document_starts)
    assert_agree({"y": y.double(), "state": state.double()}, {"y": wanted_y, "state": wanted_state}, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [5, 70])
def test_by_a_stand_in_low_precision_comes_out_as_it_went_in_and_the_state_stays_fp32(length, dtype, stand_in):
    values = inputs(length, torch.float32, size=SIZE)
    low = {name: value.to(dtype) if name in ("r", "k", "v") else value for name, value in values.items()}
    y, state = definition(**wide(low))
    got_y, got_state = fla.wkv6_fla(**low)
    assert got_y.dtype == dtype
    assert got_state.dtype == torch.float32
    torch.testing.assert_close(got_y.double(), y, rtol=torch.finfo(dtype).eps, atol=1e-4 * y.abs().max().item())
    torch.testing.assert_close(got_state.double(), state, rtol=0, atol=1e-4 * state.abs().max().item())


@pytest.mark.parametrize(("precision", "setting"), [("highest", "ieee"), ("high", None)])
def test_triton_multiplies_fp32_as_exactly_as_torch_is_set_to(precision, setting, stand_in):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        fla.library()
    finally:
        torch.set_float32_matmul_precision(before)
    assert os.environ.get("TRITON_F32_DEFAULT") == setting


def on_a_gpu(dtype=torch.float32, size=SIZE):
    """Tensors of a GPU that has no memory and computes nothing, and the implementations that "auto" calls for them."""
    with FakeTensorMode(), pytest.MonkeyPatch.context() as patch:
        called = []
        for name in IMPLEMENTATIONS:
            patch.setitem(IMPLEMENTATIONS, name, lambda r, *rest, name=name: (called.append(name), (r, rest[-1]))[1])
        x = torch.empty(1, 5, 2, size, dtype=dtype, device="cuda")
        wkv6(x, x, x, x)
        wkv6(x, x, x, x)
        return called


def test_it_is_what_runs_on_a_gpu_by_default(stand_in, caplog):
    assert on_a_gpu() == on_a_gpu(torch.bfloat16) == ["fla", "fla"]
    assert on_a_gpu(torch.float64) == on_a_gpu(size=8) == ["chunked", "chunked"]
    assert not caplog.messages


def test_without_the_package_pytorch_takes_over_on_a_gpu_and_says_so_once(no_package, caplog):
    assert on_a_gpu() == on_a_gpu() == ["chunked", "chunked"]
    (warning,) = caplog.messages
    assert "pip install 'goldfinch[cuda]'" in warning


def test_asked_for_where_it_cannot_run_it_says_why(no_package, monkeypatch):
    values = inputs(3, torch.float32)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UserError, match="on the CPU"):
        run(**values)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(UserError, match="no fp64"):
        run(**inputs(3))
    with pytest.raises(UserError, match=r"goldfinch\[cuda\]"):
        run(**values)


def test_starting_goldfinch_does_not_import_it(tmp_path):
    (tmp_path / "fla.py").write_text("raise AssertionError('imported')")
    code = "import torch, goldfinch; from goldfinch.ops.wkv6 import wkv6; x = torch.zeros(1, 2, 1, 4); wkv6(x, x, x, x)"
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)


@pytest.fixture(scope="module")
def interpreted():
    """What the program measured: case -> what -> largest difference, relative to the largest entry."""
    if not (importlib.util.find_spec("fla") and importlib.util.find_spec("triton")):
        pytest.skip("flash-linear-attention and triton are not here: pip install 'goldfinch[cuda]'")
    program = Path(__file__).with_name("wkv6_fla_program.py")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, program], env=environment, capture_output=True, check=False, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.slow
def test_interpreted_the_real_kernels_equal_the_definition_with_all_gradients(interpreted, record_property):
    for case, differences in interpreted["exact"].items():
        record_property(case, differences)
        step_by_step = "forward" in case and "70 tokens" not in case
        limit = 1e-6 if step_by_step or "slow decays" in case else 5e-5
        for name, difference in differences.items():
            assert math.isfinite(difference), (case, name)
            assert difference <= limit, (case, name)


@pytest.mark.slow
def test_interpreted_the_real_kernels_take_low_precision(interpreted):
    for case, differences in interpreted["low"].items():
        step_by_step = "5 tokens" in case
        assert differences["y"] <= (2**-8 if "bfloat16" in case else 2**-10), case
        assert differences["final state"] <= (1e-6 if step_by_step else 1e-3), case


@pytest.mark.slow
def test_interpreted_the_faults_that_the_adapter_goes_around_are_still_there(interpreted):
    """If this fails, a new version fixed them: the adapter can be simpler."""
    assert interpreted["faults"]["fused: gradient of the state after, lost"] > 0.1
    assert math.isnan(interpreted["faults"]["chunk: y where log w = -inf"])
