"""Storing latents: how exact, and in how many bytes."""

import pytest
import torch

from goldfinch.cache.latents import FORMATS, latent_format
from goldfinch.errors import UserError


def round_trip(name, latents):
    return FORMATS[name].decode(FORMATS[name].encode(latents), latents.dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_models_own_type_rounds_nothing(dtype):
    latents = torch.randn(7, 48, dtype=torch.float64).to(dtype)
    assert torch.equal(round_trip(str(dtype).removeprefix("torch."), latents), latents)


@pytest.mark.parametrize("width", [4, 16, 48, 128])
@pytest.mark.parametrize(("name", "steps"), [("int8", 127), ("int4", 7)])
def test_integers_are_off_by_half_a_step_of_the_largest_neighbour_at_most(name, steps, width):
    torch.manual_seed(0)
    latents = torch.randn(100, width) * torch.logspace(-3, 3, 100)[:, None]
    group = {4: 4, 16: 16, 48: 24, 128: 32}[width]
    largest = latents.abs().unflatten(1, (-1, group)).amax(-1, keepdim=True).expand(-1, -1, group).flatten(1)
    # Half a step, and the rounding of the scale to eleven bits.
    assert ((round_trip(name, latents) - latents).abs() <= largest * (0.5 / steps + 2**-11)).all()


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("value", [0.0, 1e-12, -3.0, 1e9])
def test_extreme_numbers_do_not_become_nan(name, value):
    decoded = round_trip(name, torch.full((1, 4), value))
    assert decoded.isfinite().all()
    if abs(value) == 3:
        torch.testing.assert_close(decoded, torch.full((1, 4), value), rtol=1e-3, atol=0)


@pytest.mark.parametrize(("name", "expected"), [("bfloat16", 256), ("int8", 136), ("int4", 72)])
def test_a_latent_of_128_numbers_takes_these_bytes(name, expected):
    columns = FORMATS[name].columns(128).values()
    assert sum(torch.empty(shape, dtype=dtype).nbytes for shape, dtype in columns) == expected


@pytest.mark.parametrize(("name", "message"), [("int16", "did you mean int"), ("int4", "use int8")])
def test_formats_that_do_not_exist_or_fit_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        latent_format(name, 5)
