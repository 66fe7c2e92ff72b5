"""Fused decoding in C++ computes what the modules do."""

import ctypes
from pathlib import Path

import pytest
import torch

import goldfinch as gf
from goldfinch.checkpoint.quantize import quantize
from goldfinch.config import ModelConfig, RopeConfig
from goldfinch.cpu import build
from goldfinch.inference.context import Context
from goldfinch.inference.cpu_decode import MAX_TOKENS, MAX_TOKENS_IF_FASTER, decoder, fused_decoder
from goldfinch.layers.quantized import QuantizedLinear
from goldfinch.mixers import SharedKeys
from goldfinch.model import Decoder
from goldfinch.model.initialization import initialize

PLANS = {
    "GoldFinch": ("finch_c2", "finch_c2", "gold", "gold"),
    "Finch": ("finch", "finch"),
    "ablations": ("finch_c2_no_v2", "finch_c2_no_one_minus_w", "gold"),
    "Finch below GOLD": ("finch", "gold"),
}
pytestmark = pytest.mark.skipif(build.compiled(decoder.SOURCE, decoder.NAME) is None, reason="no C++ compiler")


@pytest.fixture(params=["as they are", "int8"])
def prepared(request):
    """prepared(model) -> the same, perhaps with quantized weights."""

    def prepare(model):
        if request.param == "int8":
            quantize(model, "int8")
        return model

    return prepare


def model_of(plan, dtype=torch.float32, **sizes):
    config = ModelConfig(vocab_size=300, width=96, time_mixes=plan, head_size=32, channel_width=80, **sizes)
    model = Decoder(config)
    initialize(model, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # of a new model many are zero
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype)


def assert_close(actual, expected, tolerance):
    x, states = actual
    expected_x, expected_states = expected
    assert [len(states), x.dtype] == [len(expected_states), expected_x.dtype]
    pairs = [(x, expected_x)]
    for state, wanted in zip(states, expected_states, strict=True):
        pairs += zip(state.tensors(), wanted.tensors(), strict=True)
    for one, other in pairs:
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert (one.double() - other.double()).abs().max() <= tolerance * other.double().abs().max()


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_and_states_are_those_of_the_modules(plan, threads, dtype, prepared, monkeypatch):
    torch.manual_seed(0)
    model = prepared(model_of(PLANS[plan], dtype))
    # bf16 rounds after every operation in PyTorch, here only at the end: compared with the same weights in fp32.
    truth, tolerance = prepared(model_of(PLANS[plan])), 2e-5
    if dtype == torch.bfloat16:
        truth.load_state_dict(model.state_dict())
        tolerance = 2e-2
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with torch.inference_mode():
        states = None
        for count in (1, 2, 7, MAX_TOKENS, 1):
            layers = fused_decoder(model, count)
            assert layers is not None
            ids = torch.randint(300, (1, count))
            x, latents, (after,) = layers.lower(ids, [states])
            given = None if states is None else [to(state, torch.float32) for state in states]
            expected, expected_states = truth.lower(truth.embed(ids), given)
            assert_close((x, after), (expected.to(dtype), [to(s, dtype) for s in expected_states]), tolerance)
            assert (latents is None) == (model.token_cat is None)
            if latents is not None:
                torch.testing.assert_close(latents, model.token_cat.compress(x), atol=tolerance, rtol=tolerance)
            states = after


def test_ids_outside_the_vocabulary_are_refused():
    model = model_of(PLANS["GoldFinch"])
    for bad in (300, -1):
        with torch.inference_mode(), pytest.raises(IndexError, match="not in the vocabulary"):
            fused_decoder(model, 2).lower(torch.tensor([[1, bad]]), [None])


def to(state, dtype):
    """A block's state with everything but the recurrence in a type."""
    mixes = {name: value if name == "wkv" else value.to(dtype) for name, value in vars(state.time_mix).items()}
    return type(state)(time_mix=type(state.time_mix)(**mixes), channel_mix=state.channel_mix.to(dtype))


@pytest.mark.parametrize("rope", [None, RopeConfig()])
def test_gold_layers_and_the_head_are_those_of_the_modules(rope, prepared):
    torch.manual_seed(0)
    model = prepared(model_of(PLANS["GoldFinch"], rope=rope))
    keys = SharedKeys(keys=torch.randn(1, 30, 96), embeddings=torch.randn(1, 30, 96))
    with torch.inference_mode():
        states = None
        for count in (3, 1, 9):
            layers = fused_decoder(model, count)
            x = torch.randn(1, count, 96)
            x_out, (after,) = layers.upper(x, [states], [keys])
            expected, expected_states = model.upper(x, states, keys)
            assert_close((x_out, after), (model.output_norm(expected), expected_states), 2e-5)
            states = after
            torch.testing.assert_close(layers.head(x[0]), model.head(x[0]), atol=1e-5, rtol=1e-5)


def test_logits_of_each_token_are_those_of_pytorch_alone(monkeypatch):
    model = model_of(PLANS["GoldFinch"])

    def after_each():
        context, logits = Context(model, None), []
        for token in torch.arange(40) * 7 % 300:
            logits.append(context.read(token[None]).logits)
        return torch.stack(logits)

    written = after_each()
    monkeypatch.setattr("goldfinch.inference.prefill.fused_decoder", lambda *_: None)
    torch.testing.assert_close(written, after_each(), atol=2e-5, rtol=0)


@pytest.mark.parametrize("rope", [None, RopeConfig()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_keys_and_values_are_kept_gold_layers_are_one_call_also_after_rejected_drafts(rope, dtype, monkeypatch):
    model, truth = model_of(PLANS["GoldFinch"], dtype, rope=rope), model_of(PLANS["GoldFinch"], rope=rope)
    truth.load_state_dict(model.state_dict())
    ids = torch.arange(40) * 7 % 300
    sequence = Context(model, None).read(ids[:20]).sequence
    sequence.compute_logits()

    def not_needed(*_):
        raise AssertionError("a layer asks for keys and values one by one")

    monkeypatch.setattr(decoder.FusedDecoder, "_upper_with_expanded", not_needed)
    with torch.inference_mode():
        sequence.verify_draft(ids[20:25])
        sequence.accept(2)
        logits = sequence.verify_draft(ids[22:26])
        expected = truth(ids[None, :26])[0][0, 22:]
    assert (logits - expected).abs().max() <= (2e-5 if dtype == torch.float32 else 3e-2) * expected.abs().max()


def test_weights_may_be_trained_or_exchanged_in_between():
    model = model_of(PLANS["GoldFinch"])
    ids = torch.tensor([[7]])
    for change in (lambda: model.blocks[0].time_mix.key.weight.data.mul_(2), lambda: model.bfloat16().float()):
        with torch.inference_mode():
            fused_decoder(model, 1).lower(ids, [None])
        change()
        with torch.inference_mode():
            x, _, (after,) = fused_decoder(model, 1).lower(ids, [None])
            assert_close((x, after), model.lower(model.embed(ids), None), 2e-5)


def test_states_of_another_type_or_layout_are_read_as_what_they_are():
    model = model_of(PLANS["GoldFinch"])
    with torch.inference_mode():
        _, states = model.lower(torch.randn(1, 3, 96), None)
        ids, strange = torch.tensor([[7]]), [to(state, torch.bfloat16) for state in states]
        for state in strange:
            state.time_mix.wkv = state.time_mix.wkv.transpose(2, 3).contiguous().transpose(2, 3)
        expected, _, (states,) = fused_decoder(model, 1).lower(ids, [[to(state, torch.float32) for state in strange]])
        actual, _, (same,) = fused_decoder(model, 1).lower(ids, [strange])
        assert_close((actual, same), (expected, states), 0)


def test_whoever_hooks_into_a_model_or_replaces_a_part_of_it_is_heard():
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model, called = model_of(PLANS["GoldFinch"]), []
    with torch.inference_mode():
        assert fused_decoder(model, 1) is not None
        hook = model.blocks[1].channel_mix.register_forward_hook(lambda *_: called.append(1))
        assert fused_decoder(model, 1) is None
        Context(model, None).read([1, 2, 3])
        assert called
        hook.remove()
        assert fused_decoder(model, 1) is not None
        model.blocks[0].time_mix.key = Doubled(96, 96, bias=False)
        assert fused_decoder(model, 1) is None


@pytest.mark.parametrize(
    ("plan", "sizes", "dtype"),
    [(("llama",), {"channel_mix": "swiglu"}, torch.float32), (("finch",), {"shift_rank": 6}, torch.float32),
     (("finch",), {}, torch.float64)],
)  # fmt: skip
def test_what_it_cannot_do_is_left_to_pytorch(plan, sizes, dtype):
    with torch.inference_mode():
        assert fused_decoder(model_of(plan, dtype, **sizes), 1) is None
        assert fused_decoder(model_of(("finch",)), MAX_TOKENS_IF_FASTER + 1) is None
    assert fused_decoder(model_of(("finch",)), 1) is None  # gradients are wanted


@pytest.mark.slow
def test_sanitizers_find_nothing(run_with_sanitizers):
    run_with_sanitizers(decoder.SOURCE, Path(__file__).with_name("cpu_decode_program.cpp"))


def test_small_presets_are_written_with_it():
    lm = gf.build("goldfinch-L3-D128", vocab_size=300)
    with torch.inference_mode():
        assert fused_decoder(lm.model, 1) is not None


def test_codes_are_read_by_it_even_where_pytorch_multiplies_faster(monkeypatch):
    monkeypatch.setattr("goldfinch.inference.cpu_decode.is_faster", lambda _: False)
    model = model_of(PLANS["GoldFinch"])
    with torch.inference_mode():
        assert fused_decoder(model, 1) is None
        quantize(model, "int8")
        assert fused_decoder(model, 1) is not None
        assert fused_decoder(model, MAX_TOKENS_IF_FASTER) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("vocab_size", [300, 301, 302, 303])
def test_a_vocabulary_may_have_any_size(vocab_size, threads, dtype, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    head = torch.nn.Linear(96, vocab_size, bias=False, dtype=dtype)
    int8 = QuantizedLinear.of(torch.randn(vocab_size, 96))
    for count in (1, 2, 5, 8, 32):
        x = torch.randn(count, 96).to(dtype)
        for layer, weight in ((head, head.weight), (int8, int8.dequantized())):
            expected = x.double() @ weight.detach().double().T
            assert (decoder.linear(x, layer, dtype) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_gives_each_sequence_the_same_numbers_as_alone(plan, threads, dtype, monkeypatch):
    torch.manual_seed(0)
    model = model_of(PLANS[plan], dtype)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with torch.inference_mode():
        states, alone = [None] * 3, [None] * 3
        for length in (2, 1, 5):
            ids = torch.randint(300, (3, length))
            together, _, states = fused_decoder(model, 3 * length).lower(ids, states)
            for row in range(3):
                expected, _, (alone[row],) = fused_decoder(model, length).lower(ids[row : row + 1], [alone[row]])
                assert_close((together[row : row + 1], states[row]), (expected, alone[row]), 0)


def test_gold_layers_of_a_batch_attend_to_the_keys_of_their_own_sequence():
    torch.manual_seed(0)
    model = model_of(PLANS["GoldFinch"])
    keys = [SharedKeys(keys=torch.randn(1, n, 96), embeddings=torch.randn(1, n, 96)) for n in (30, 7)]
    x = torch.randn(2, 1, 96)
    with torch.inference_mode():
        together, states = fused_decoder(model, 2).upper(x, [None, None], keys)
        for row in range(2):
            expected, (after,) = fused_decoder(model, 1).upper(x[row : row + 1], [None], keys[row : row + 1])
            assert_close((together[row : row + 1], states[row]), (expected, after), 0)


def test_structures_that_do_not_match_the_compiled_code_are_refused(monkeypatch):
    monkeypatch.setattr(
        decoder,
        "StateStructure",
        type("StateStructure", (ctypes.Structure,), {"_fields_": [("last", ctypes.c_int)]}),
    )
    with pytest.raises(RuntimeError, match="StateStructure has 4 bytes in Python and 48"):
        decoder.library()
