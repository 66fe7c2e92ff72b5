"""Whole = in chunks = token by token, for every time mix there is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from goldfinch.config import RopeConfig
from goldfinch.mixers import TIME_MIXES, Gold, SharedKeys

DTYPES = [pytest.param(torch.float64, 1e-9, id="fp64"), pytest.param(torch.float32, 1e-4, id="fp32")]
STRETCHED = RopeConfig(rescale=2.0, rebase=3.0)
ODD = st.integers(0, 9).map(lambda n: 2 * n + 1)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(
    ("kind", "rope"),
    [(kind, None) for kind in TIME_MIXES] + [(kind, STRETCHED) for kind in ("gold", "gptalpha", "llama")],
)
def test_whole_equals_chunks_equals_token_by_token(kind, rope, dtype, tolerance, small_config, randomized, assert_same):
    config = small_config(kind, rope=rope)
    mixer = randomized(TIME_MIXES[kind].build(config), dtype)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(2, *shape, config.width, generator=generator, dtype=torch.float64).to(dtype)

    keys, embeddings = normal(57), normal(57)

    def run(x, lengths):
        """Outputs and the final state when x is read in pieces of these lengths."""
        outputs, state, end = [], None, 0
        for piece in x.split(lengths, dim=1):
            end += piece.shape[1]
            cache = SharedKeys(keys=keys[:, :end], embeddings=embeddings[:, :end])
            y, state = mixer(piece, state, *((cache,) if isinstance(mixer, Gold) else ()))
            outputs.append(y)
        return torch.cat(outputs, dim=1), state

    @given(lengths=st.lists(ODD, min_size=2, max_size=3))
    def check(lengths):
        x = normal(sum(lengths))
        whole = run(x, [sum(lengths)])
        assert whole[0].abs().max() > 0.1
        assert_same(run(x, lengths), whole, tolerance)
        assert_same(run(x, [1] * sum(lengths)), whole, tolerance)

    check()
