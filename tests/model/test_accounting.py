"""The accounting against SPEC's tables, and against what PyTorch counts and tensors weigh."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from goldfinch.costs import preset_costs
from goldfinch.errors import UserError
from goldfinch.model.accounting import account
from goldfinch.ops import wkv6
from goldfinch.presets import KINDS, model_config, preset_names

PUBLISHED_PARAMETERS = {
    "llama": (185_637_888, 1_473_454_080),
    "finch": (196_955_136, 1_599_873_024),
    "finch_c2": (191_056_896, 1_505_501_184),
    "gptalpha": (187_536_384, 1_486_725_120),
    "goldfinch": (186_617_856, 1_445_257_216),
    "goldfinch_uncompressed": (187_723_776, 1_453_121_536),
    "goldfinch_sixth": (189_169_152, 1_477_738_496),
    "goldfinch_half": (184_066_560, 1_412_775_936),
}
TINY = {kind: dataclasses.replace(model_config(f"{kind}-L3-D64", vocab_size=41), head_size=16) for kind in KINDS}
every_kind = pytest.mark.parametrize("kind", KINDS)


# parameters


@pytest.mark.parametrize("size", [0, 1], ids=["L12-D768", "L24-D2048"])
@pytest.mark.parametrize("kind", PUBLISHED_PARAMETERS)
def test_parameter_counts_equal_the_published_ones(kind, size):
    config = model_config(f"{kind}-{('L12-D768', 'L24-D2048')[size]}")
    assert account(config).parameters_as_published == PUBLISHED_PARAMETERS[kind][size]


def test_ours_lack_exactly_the_unused_bonus_of_finch_c2():
    for kind, layers_with_one in {"goldfinch": 8, "finch_c2": 12, "finch_c2_no_v2": 0, "finch": 0, "llama": 0}.items():
        accounting = account(model_config(f"{kind}-L12-D768"))
        assert accounting.parameters_as_published - accounting.parameters == layers_with_one * 768
        assert accounting.embedding_parameters == 2 * 65536 * 768


# bytes


@pytest.mark.parametrize(
    ("preset", "ratio", "cache", "transformer"),
    [("goldfinch-L24-D2048", 756, 260, 196_608), ("goldfinch-L80-D8192", 2550, 1028, 2_621_440)],
)
def test_the_abstracts_two_cache_ratios(preset, ratio, cache, transformer):
    accounting = account(model_config(preset))
    assert accounting.cache_bytes_per_token == cache
    assert accounting.transformer_bytes_per_token == transformer
    assert int(accounting.cache_ratio) == ratio


def test_state_of_the_large_goldfinch_is_8_2_mib_and_belongs_in_every_total():
    accounting = account(model_config("goldfinch-L24-D2048"))
    assert accounting.state_bytes == 16 * 2048 * 64 * 4 + 24 * 2 * 2048 * 2
    assert f"{accounting.state_bytes / 2**20:.1f}" == "8.2"
    assert accounting.total_bytes(2**20) == accounting.state_bytes + 2**20 * 260


@every_kind
def test_bytes_equal_those_of_the_tensors_of_a_bf16_model(kind, small_model, tensors_of):
    model = small_model(TINY[kind], torch.bfloat16)
    accounting = account(TINY[kind])
    for tokens in (1, 5):
        _, state = model(torch.arange(tokens)[None])
        measured = sum(
            tensor.numel() * 4 if tensor.dtype == torch.int64 else tensor.nbytes
            for tensor in tensors_of(state).values()
        )
        assert measured == accounting.total_bytes(tokens)
    if state.key_cache is not None:
        latents = state.key_cache.latents
        assert latents.nbytes + tokens * 4 == tokens * accounting.cache_bytes_per_token
        small_ids = account(TINY[kind], id_bytes=2).cache_bytes_per_token
        assert latents.nbytes + tokens * 2 == tokens * small_ids


def test_a_recurrent_model_has_no_cache_and_a_transformer_has_ratio_1():
    assert account(TINY["finch"]).cache_ratio is None
    assert account(TINY["finch"]).cache_bytes_per_token == 0
    assert account(TINY["llama"]).cache_ratio == 1
    assert account(TINY["llama"]).state_bytes == 0


# FLOPs


@pytest.fixture(autouse=True)
def recurrence_in_pytorch(monkeypatch):
    """PyTorch's counter does not see what C++ does."""
    monkeypatch.setattr(wkv6, "cpu_is_fastest", lambda with_gradients: False)


def counted_by_pytorch(model, tokens):
    """FLOPs of the step that reads the last of `tokens` tokens, one by one."""
    state = None
    for token in range(tokens):
        # The fused attention of the CPU has no entry in the counter's table; its definition in matrix products has.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            _, state = model(torch.tensor([[token]]), state)
    return counter.get_total_flops()


def elementwise_wkv6_flops(config):
    """The part of WKV6 that is not a matrix product, and not counted by PyTorch's counter: 3 of 5 per entry of S."""
    return 3 * config.width * config.head_size * sum(kind.startswith("finch") for kind in config.time_mixes)


@every_kind
def test_flops_of_a_step_equal_what_pytorch_counts(kind, small_model):
    """The decoder's own step rebuilds the whole key cache, so it costs what `decode_rebuilding` says."""
    config = TINY[kind]
    model = small_model(config, torch.float32)
    for tokens in (1, 3):
        expected = account(config, tokens).decode_rebuilding_flops_per_token - elementwise_wkv6_flops(config)
        assert counted_by_pytorch(model, tokens) == expected


@every_kind
def test_training_costs_three_forwards(kind, small_model):
    config = TINY[kind]
    forward = counted_by_pytorch(small_model(config, torch.float32), 1) + elementwise_wkv6_flops(config)
    assert account(config, 1).training_flops_per_token == 3 * forward


def test_rebuilding_costs_what_spec_6_says():
    config = model_config("goldfinch-L24-D2048")
    accounting = account(config, 1001)
    multiply_adds_per_layer = 128 * 2048 + 4 * 2048 * max(128, 64)
    token_cat = (2048 + 128) * 2048
    extra = accounting.decode_rebuilding_flops_per_token - accounting.decode_flops_per_token
    assert extra == 1000 * 2 * (8 * multiply_adds_per_layer + token_cat)


def test_prefill_of_goldfinch_is_linear_and_sees_the_recurrent_layers_and_the_compression_only():
    config = model_config("goldfinch-L24-D2048")
    short, long = account(config, 1024), account(config, 2**20)
    assert short.prefill_flops_per_token == long.prefill_flops_per_token
    recurrent = dataclasses.replace(config, time_mixes=config.time_mixes[:16])
    assert short.prefill_flops_per_token == account(recurrent).prefill_flops_per_token + 2 * 2048 * 128
    assert long.decode_flops_per_token - short.decode_flops_per_token == 8 * 4 * 2048 * (2**20 - 1024)


def test_attention_of_a_transformer_grows_with_half_the_context_in_training_and_prefill():
    config = TINY["llama"]
    short, long = account(config, 101), account(config, 201)
    growth = 3 * 4 * 64 * 100  # layers, FLOPs per channel and key, channels, keys
    assert long.prefill_flops_per_token - short.prefill_flops_per_token == growth // 2
    assert long.training_flops_per_token - short.training_flops_per_token == 3 * growth // 2
    assert long.decode_flops_per_token - short.decode_flops_per_token == growth


# edges


def test_impossible_questions_are_refused():
    with pytest.raises(UserError, match="at least 1, not 0"):
        account(TINY["goldfinch"], 0)
    with pytest.raises(UserError, match="70000 token ids do not fit in 2 bytes"):
        account(dataclasses.replace(TINY["goldfinch"], vocab_size=70_000), id_bytes=2)


def test_accounting_does_not_load_the_compiler():
    """It takes longer to load than all the rest of `goldfinch info`."""
    program = (
        "import sys; from goldfinch.model.accounting import account; from goldfinch.presets import model_config;"
        "account(model_config('goldfinch-L24-D2048')); sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_stored_costs_of_presets_are_those_that_are_computed():
    """Rebuild them with `python -m goldfinch.model.accounting > src/goldfinch/preset_costs.json`."""
    for name in preset_names():
        assert preset_costs(name) == account(model_config(name)), name
    assert preset_costs("goldfinch-L2-D64") is None
