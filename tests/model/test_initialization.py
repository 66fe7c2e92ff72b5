"""Every parameter of every kind starts as SPEC 7 says; the formulas are written out again here."""

import dataclasses
import re

import pytest
import torch

from goldfinch.model import Decoder
from goldfinch.model.initialization import initialize
from goldfinch.presets import KINDS, model_config

SMALL = {kind: model_config(f"{kind}-L3-D64", vocab_size=100) for kind in KINDS}
# Two heads, so that a bonus laid out per head would show.
CONFIGS = {kind: dataclasses.replace(config, head_size=32) for kind, config in SMALL.items()} | {
    "vocabulary smaller than width": dataclasses.replace(SMALL["goldfinch"], vocab_size=50),
    "one layer": dataclasses.replace(SMALL["finch"], time_mixes=("finch",)),
}
every_config = pytest.mark.parametrize("config", [pytest.param(config, id=name) for name, config in CONFIGS.items()])
# The uses of ddlerp's rows, SPEC 3.
ROWS = {
    "finch": ("w", "k", "v", "r", "g"),
    "finch_c2": ("r", "k", "v", "w", "v2"),
    "gptalpha": ("q", "k", "v"),
    "gold": ("q",),
}


def initialized(config, seed=0, fill=torch.nan):
    model = Decoder(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(fill)
    random_state = torch.get_rng_state()
    initialize(model, seed)
    assert torch.equal(torch.get_rng_state(), random_state)
    return model


def assert_orthogonal(weight, gain, name):
    weight = weight.double()
    gram = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
    torch.testing.assert_close(
        gram, gain**2 * torch.eye(len(gram), dtype=torch.float64), rtol=0, atol=1e-5 * gain**2, msg=name
    )


def assert_uniform(values, bound, name):
    assert values.abs().max() <= bound, name
    assert values.abs().max() > 0.98 * bound, name
    assert abs(values.mean()) < 0.06 * bound, name
    assert abs(values.std() / (bound / 3**0.5) - 1) < 0.06, name


def expected_vector(part, kind, layer, config):
    """The formula of a parameter that no chance is in, in fp64, or None."""
    width, layers = config.width, config.num_layers
    r0 = layer / (layers - 1) if layers > 1 else 0.0
    r1 = 1 - layer / layers
    i = torch.arange(width, dtype=torch.float64) / width
    j = torch.arange(width, dtype=torch.float64)
    plain, lifted, lowered = 1 - i**r1, 1 - i ** (r1 / 2), 1 - i**r1 - 0.3 * r0
    by_use = {"r": lifted, "g": lifted, "q": lifted, "v": lowered, "v2": lowered, "k": plain, "w": plain}
    if part == "time_mix.ddlerp.mu":
        family = "finch_c2" if kind.startswith("finch_c2") else kind
        return torch.stack([by_use[use] for use in ROWS[family]])
    if part in ("time_mix.ddlerp.mu_x", "time_mix.mu_e", "channel_mix.mu_r", "channel_mix.mu_k"):
        return plain
    if part in ("time_mix.mu_k", "time_mix.mu_v"):  # GOLD's
        return by_use[part[-1]]
    if part == "time_mix.decay.base":
        return -6 + 5 * (j / (width - 1)) ** (0.7 + 1.3 * r0)
    if part == "time_mix.bonus":
        return (r0 * (1 - j / (width - 1)) + 0.1 * ((j + 1) % 3 - 1)).view(config.num_heads, config.head_size)
    if part == "time_mix.norm.weight":
        return torch.full((width,), ((1 + layer) / layers) ** 0.7, dtype=torch.float64)
    if part.endswith("norm.weight"):
        return torch.ones(width, dtype=torch.float64)
    if part.endswith("norm.bias"):
        return torch.zeros(width, dtype=torch.float64)
    return None


@every_config
def test_every_parameter_starts_as_its_formula_says(config):
    zero = {"time_mix.output.weight"}
    if config.channel_mix == "rwkv":
        zero |= {"channel_mix.value.weight", "channel_mix.receptance.weight"}
    for name, parameter in initialized(config).named_parameters():
        value = parameter.detach()
        assert torch.isfinite(value).all(), name
        match = re.fullmatch(r"blocks\.(\d+)\.(.*)", name)
        layer, part = (int(match[1]), match[2]) if match else (0, name)
        kind = config.time_mixes[layer]
        vector = expected_vector(part, kind, layer, config)
        if vector is not None:
            torch.testing.assert_close(value.double(), vector, rtol=0, atol=1e-6, msg=name)
        elif part in zero or part.endswith(".a"):
            assert not value.any(), name
        elif part.endswith(".b"):
            assert_uniform(value, 0.01, name)
        elif part == "embedding.weight":
            assert_uniform(value, 1e-4, name)
        elif part == "head.weight":
            assert_orthogonal(value, 0.5 * max(config.vocab_size / config.width, 1) ** 0.5, name)
        elif kind.startswith("finch") and part in ("time_mix.key.weight", "time_mix.gate.weight"):
            assert_orthogonal(value, 0.1, name)
        else:
            assert part.endswith(".weight"), f"{name} has no formula here"
            assert value.ndim == 2, f"{name} has no formula here"
            assert_orthogonal(value, 1.0, name)


@every_config
def test_the_seed_alone_decides_and_the_global_random_state_is_left_alone(config):
    torch.manual_seed(1)
    first = initialized(config, seed=5)
    torch.manual_seed(2)
    second, other = initialized(config, seed=5, fill=7.0), initialized(config, seed=6)
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(first.embedding.weight, other.embedding.weight)
    assert not torch.equal(first.head.weight, other.head.weight)
