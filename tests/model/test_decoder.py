"""The whole model: reading in pieces, causality, independence, shapes."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from goldfinch.config import RopeConfig
from goldfinch.model import Decoder
from goldfinch.presets import KINDS, model_config

V = 41
# Three layers are the fewest that hold a third; a sixth takes six.
PRESETS = {
    kind: dataclasses.replace(model_config(f"{kind}-L{6 if 'sixth' in kind else 3}-D64", vocab_size=V), head_size=16)
    for kind in KINDS
}
GOLDFINCH = PRESETS["goldfinch"]
STRETCHED = RopeConfig(rescale=2.0, rebase=3.0)
CONFIGS = PRESETS | {
    "all_gold": dataclasses.replace(GOLDFINCH, time_mixes=("gold",) * 3),
    "one_gold": dataclasses.replace(GOLDFINCH, time_mixes=("finch", "gold")),
    "only_one_layer": dataclasses.replace(GOLDFINCH, time_mixes=("gold",)),
    "gold_above_gptalpha_rope": dataclasses.replace(GOLDFINCH, time_mixes=("gptalpha", "gold"), rope=STRETCHED),
    "latent_4": dataclasses.replace(GOLDFINCH, latent_ratio=4),
    "goldfinch_rope_stretched": dataclasses.replace(GOLDFINCH, rope=STRETCHED),
    "llama_rope_stretched": dataclasses.replace(PRESETS["llama"], rope=STRETCHED),
}
every_config = pytest.mark.parametrize("config", [pytest.param(config, id=name) for name, config in CONFIGS.items()])


def random_ids(batch, length, seed=0):
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(seed))


def read(model, ids, lengths):
    """Logits and the final state when ids are read in pieces of these lengths."""
    logits, state = [], None
    for piece in ids.split(lengths, dim=1):
        part, state = model(piece, state)
        logits.append(part)
    return torch.cat(logits, dim=1), state


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [pytest.param(torch.float64, 1e-9, id="fp64"), pytest.param(torch.float32, 1e-4, id="fp32")],
)
@every_config
def test_whole_equals_chunks_equals_token_by_token(config, dtype, tolerance, small_model, assert_same):
    model = small_model(config, dtype)

    @settings(max_examples=2)
    @given(lengths=st.lists(st.integers(0, 6).map(lambda n: 2 * n + 1), min_size=2, max_size=3), seed=st.integers(0, 9))
    def check(lengths, seed):
        ids = random_ids(2, sum(lengths), seed)
        whole = read(model, ids, [sum(lengths)])
        assert_same(read(model, ids, lengths), whole, tolerance)
        assert_same(read(model, ids, [1] * sum(lengths)), whole, tolerance)

    check()


@every_config
def test_a_token_changes_no_logits_before_it_and_all_from_it_on(config, small_model):
    model = small_model(config)
    ids = random_ids(1, 37)
    changed = ids.clone()
    changed[0, 17] = (ids[0, 17] + 1) % V
    difference = (model(ids)[0] - model(changed)[0]).abs().amax(-1)[0]
    assert difference[:17].max() <= 1e-12
    assert difference[17:].min() > 1e-9


@every_config
def test_sequences_of_a_batch_do_not_see_each_other(config, small_model, assert_same):
    model = small_model(config)
    ids = random_ids(3, 9)
    logits, _ = read(model, ids, [5, 4])
    for row in range(3):
        alone, _ = read(model, ids[row : row + 1], [5, 4])
        assert_same(alone, logits[row : row + 1], 1e-12)


@every_config
def test_the_state_passed_in_is_left_as_it_was(config, small_model, assert_same):
    model = small_model(config)
    _, state = model(random_ids(2, 5))
    before = copy.deepcopy(state)
    first, _ = model(random_ids(2, 7, seed=1), state)
    assert_same(state, before, 0)
    again, _ = model(random_ids(2, 7, seed=1), state)
    assert torch.equal(first, again)


def test_a_state_keeps_no_activations_alive(small_model, tensors_of):
    _, state = small_model(GOLDFINCH)(random_ids(1, 50))
    for path, tensor in tensors_of(state).items():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, path


def test_every_parameter_has_the_shape_of_its_equation():
    config = dataclasses.replace(
        GOLDFINCH, width=96, channel_width=200, time_mixes=("finch", "finch_c2", "finch_c2_no_v2", "gptalpha", "gold"),
        latent_ratio=4, shift_rank=5, decay_rank=6, value_rank=7,
    )  # fmt: skip
    d, f, adapter, latent = 96, 200, 64, 24
    norms = {f"{name}.{part}": (d,) for name in ("time_mix_norm", "channel_mix_norm") for part in ("weight", "bias")}
    channel_mix = {
        "mu_r": (d,),
        "mu_k": (d,),
        "receptance.weight": (d, d),
        "key.weight": (f, d),
        "value.weight": (d, f),
    }
    block = norms | {f"channel_mix.{name}": shape for name, shape in channel_mix.items()}

    def ddlerp(uses):
        shapes = {"mu_x": (d,), "mu": (uses, d), "low_rank.a": (d, uses * 5), "low_rank.b": (uses, 5, d)}
        return {f"ddlerp.{name}": shape for name, shape in shapes.items()}

    def matrices(*names):
        return {f"{name}.weight": (d, d) for name in names}

    def vector_norms(*names):
        return {f"{name}.{part}": (d,) for name in names for part in ("weight", "bias")}

    def low_rank(name, rank, outputs=1):
        return {f"{name}.a": (d, outputs * rank), f"{name}.b": (outputs, rank, d)}

    recurrent = ddlerp(5) | {"decay.base": (d,)} | low_rank("decay.low_rank", 6) | vector_norms("norm")
    recurrent |= matrices("receptance", "key", "value", "output")
    attention_norms = vector_norms("query_norm", "key_norm", "value_norm", "norm")
    mixers = [
        recurrent | {"bonus": (6, 16)} | matrices("gate"),
        recurrent | low_rank("second_value", 7),
        recurrent | low_rank("second_value", 7) | {"bonus": (6, 16)},
        ddlerp(3) | matrices("query", "key", "value", "output") | attention_norms,
        ddlerp(1) | matrices("query", "output") | attention_norms | {"mu_e": (d,), "mu_k": (d,), "mu_v": (d,)}
        | low_rank("shift_low_rank", 5, 2) | low_rank("key_adapter", adapter) | low_rank("value_adapter", adapter),
    ]  # fmt: skip
    expected = {"embedding.weight": (V, d), "head.weight": (V, d)} | vector_norms("embedding_norm", "output_norm")
    expected |= {"token_cat.down.weight": (latent, d), "token_cat.up.weight": (d, d + latent)}
    for layer, mixer in enumerate(mixers):
        shapes = block | {f"time_mix.{name}": shape for name, shape in mixer.items()}
        expected |= {f"blocks.{layer}.{name}": shape for name, shape in shapes.items()}
    assert {name: tuple(value.shape) for name, value in Decoder(config).named_parameters()} == expected
