"""Measuring speed: what is counted, what is compared, and that no speed is shown if outputs disagree."""

import dataclasses
from functools import partial

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import goldfinch as gf
from goldfinch.benchmark import speed as speed_module
from goldfinch.benchmark.speed import (
    at_level,
    check_agreement,
    fill_zero_weights,
    levels,
    measure,
    prefill_product_flops,
    product_probe,
    training_product_flops,
    weight_bytes,
)
from goldfinch.benchmark.timing import Timings, interleave
from goldfinch.inference.language_model import LanguageModel
from goldfinch.inference.prefill import read_lower
from goldfinch.ops import wkv6


@pytest.fixture
def lm(small_config, small_model):
    config = small_config("finch_c2", "finch_c2", "gold", "gold")
    return LanguageModel(small_model(config, torch.float32), None)


@pytest.fixture
def without_recurrence(monkeypatch):
    """PyTorch's counter then sees the matrix products alone, and all of them."""
    monkeypatch.setattr(wkv6, "cpu_is_fastest", lambda with_gradients: False)
    monkeypatch.setattr("goldfinch.ops.attention.compiled", lambda *_: None)
    monkeypatch.setattr("goldfinch.inference.prefill.fused_decoder", lambda *_: None)

    def zeros(r, *rest, **options):
        return r * 0, torch.zeros(r.shape[0], r.shape[2], r.shape[3], r.shape[3])

    monkeypatch.setattr("goldfinch.mixers.finch.wkv6", zeros)


def test_flops_of_prefill_are_those_of_all_matrix_products_below_gold_and_of_the_compression(lm, without_recurrence):
    tokens = torch.arange(7)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        read_lower(lm.model, tokens[None], [None])
    assert counter.get_total_flops() == 7 * prefill_product_flops(lm.config)


def test_flops_of_training_are_three_times_those_of_all_products_of_a_forward(lm, without_recurrence):
    # The fused attention of the CPU has no entry in the counter's table; its definition in matrix products has.
    with FlopCounterMode(display=False) as counter, torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        lm.model(torch.zeros(1, 1, dtype=torch.int64))
    assert 3 * counter.get_total_flops() == training_product_flops(lm.config, 1)


def test_flops_of_the_probe_are_those_of_its_products():
    probe = product_probe(256, 896, torch.float32)
    with FlopCounterMode(display=False) as counter:
        assert probe.measure() > 0
    assert counter.get_total_flops() == probe.amount


def test_bytes_read_per_token_are_all_weights_but_the_embedding(lm):
    others = sum(weight.nbytes for name, weight in lm.model.named_parameters() if name != "embedding.weight")
    assert weight_bytes(lm.model, lm.model.embedding) == others


def test_a_case_takes_part_in_every_repeat_and_the_warm_up_does_not_count():
    order, times = [], iter(range(1, 100))

    def run(name):
        order.append(name)
        return float(next(times))

    taken = interleave({name: partial(run, name) for name in "ab"}, repeats=2)
    assert order == list("ababab")
    assert taken["a"].seconds == [3.0, 5.0]
    assert taken["a"].median == 4.0
    assert taken["b"].seconds == [4.0, 6.0]


def test_what_takes_too_long_is_measured_once():
    taken = interleave({"slow": lambda: 9.0, "fast": lambda: 1.0}, repeats=3, patience=8)
    assert taken["slow"].seconds == [9.0]
    assert taken["fast"].seconds == [1.0] * 3


def test_ratios_are_medians_over_repeats_that_both_took_part_in():
    ours = Timings(by_repeat={0: 50.0, 1: 1.0, 2: 2.0, 3: 4.0})
    assert ours.times_faster(Timings(by_repeat={0: 1.0, 1: 3.0, 2: 4.0, 3: 20.0})) == 3.0
    assert ours.times_faster(Timings(by_repeat={0: 100.0})) == 2.0


@pytest.mark.parametrize("preset", ["goldfinch-L3-D128", "finch-L3-D128", "llama-L3-D128"])
def test_prefill_and_decode_of_every_kind_agree_with_the_whole_forward(preset):
    lm = gf.build(preset, vocab_size=97)
    fill_zero_weights(lm.model)
    assert check_agreement(lm, torch.arange(50) % 97) < 1e-4


def test_a_new_model_with_its_zeros_filled_depends_on_all_of_the_text():
    lm = gf.build("goldfinch-L3-D128", vocab_size=97)
    one, other = torch.arange(20)[None], torch.cat([torch.tensor([50]), torch.arange(1, 20)])[None]
    assert torch.equal(lm.logits(one)[0, -1], lm.logits(other)[0, -1])
    fill_zero_weights(lm.model)
    assert not torch.allclose(lm.logits(one)[0, -1], lm.logits(other)[0, -1], atol=1e-3)


def test_no_speed_is_shown_where_outputs_disagree(lm, monkeypatch):
    whole = lm.logits
    monkeypatch.setattr(lm, "logits", lambda ids: whole(ids) * 1.01)
    with pytest.raises(RuntimeError, match="prefill: outputs disagree by 9"):
        measure(lm, prefill_tokens=8, lengths=(8,))


def test_a_fork_at_a_level_keeps_that_and_no_more(lm):
    context = lm.read(torch.arange(40), budget=0)
    kept = {level: at_level(context, level) for level in levels(lm)}
    assert {level: fork.level for level, fork in kept.items()} == {level: level for level in levels(lm)}
    sizes = [kept[level].memory_usage().key_value_cache for level in ("latents", "shared_keys", "keys_values")]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3


def test_speed_has_a_row_for_every_length_and_level(lm, monkeypatch):
    monkeypatch.setattr(speed_module, "COPY_BYTES", 1 << 16)
    monkeypatch.setattr(speed_module, "MIN_PRODUCT_FLOPS", 1)
    speed = measure(lm, prefill_tokens=8, lengths=(5, 9), repeats=2, decode_tokens=1)
    assert [(row.tokens, row.level) for row in speed.decodes] == [(n, level) for n in (5, 9) for level in levels(lm)]
    assert all(len(row.seconds) == 2 for row in speed.decodes)
    assert speed.bound_seconds == speed.weight_bytes / speed.copy_bytes_per_second
    plain = speed.to_dict()
    assert {field.name for field in dataclasses.fields(speed)} < plain.keys()
    assert plain["dtype"] == "float32"
