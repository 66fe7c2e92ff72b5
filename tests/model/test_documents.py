"""Documents packed into one window: each is read as if it stood alone, and no gradient crosses a border.

The family has four ways for a document to reach the next: recurrent state, token shift (of time mixes and of channel
mixes), key cache, attention mask. Every layer plan and every time mix there is goes through every test.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plans import PLANS
from torch.nn import functional as F

from goldfinch.config import RopeConfig
from goldfinch.layers import channel_mix
from goldfinch.mixers import TIME_MIXES, attention, finch, gold
from goldfinch.model.token_cat import TokenCat

ALL_PLANS = PLANS | {f"{kind} alone": ((kind, kind), {}) for kind in TIME_MIXES}
ALL_PLANS |= {f"{kind} with RoPE": ((kind,), {"rope": RopeConfig()}) for kind in ("gold", "gptalpha", "llama")}
every_plan = pytest.mark.parametrize("plan", ALL_PLANS)
DTYPES = [pytest.param(torch.float64, 1e-10, id="fp64"), pytest.param(torch.float32, 1e-4, id="fp32")]
A, B, C = 13, 9, 21


@pytest.fixture
def packed(small_config, small_model, text):
    """packed(plan name, dtype) -> a model, the ids of A, B and C in one window, (1, T), and where documents begin."""

    def make(plan, dtype=torch.float64):
        kinds, fields = ALL_PLANS[plan]
        model = small_model(small_config(*kinds, **fields), dtype)
        return model, text(A + B + C)[None], starts_of([[A, B, C]])

    return make


def starts_of(rows):
    """(B, T) bool from each row's lengths of documents; the first token of a window counts as a start as well."""
    document_starts = torch.zeros(len(rows), sum(rows[0]), dtype=torch.bool)
    for row, lengths in enumerate(rows):
        document_starts[row, torch.tensor([0, *lengths[:-1]]).cumsum(0)] = True
    return document_starts


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@every_plan
def test_each_document_is_read_as_if_it_stood_alone(plan, dtype, tolerance, packed):
    model, ids, document_starts = packed(plan, dtype)
    hidden, _ = model.hidden(ids, document_starts=document_starts)
    alone = torch.cat([model.hidden(document)[0] for document in ids.split([A, B, C], dim=1)], dim=1)
    torch.testing.assert_close(hidden, alone, rtol=0, atol=tolerance)
    assert (model.hidden(ids)[0] - alone)[:, A:].abs().max() > 1e-3


@every_plan
def test_however_a_window_is_split(plan, packed):
    model, _, _ = packed(plan)

    @given(
        rows=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=5), min_size=2, max_size=2),
        seed=st.integers(0, 9),
    )
    def check(rows, seed):
        total = max(map(sum, rows)) + 1
        rows = [[*lengths, total - sum(lengths)] for lengths in rows]
        ids = torch.randint(41, (2, total), generator=torch.Generator().manual_seed(seed))
        hidden, _ = model.hidden(ids, document_starts=starts_of(rows))
        for row, lengths in enumerate(rows):
            for part, document in zip(hidden[row].split(lengths), ids[row].split(lengths), strict=True):
                torch.testing.assert_close(part, model.hidden(document[None])[0][0], rtol=0, atol=1e-10)

    check()


def reach_of_the_middle(model, ids, document_starts, bf16=False):
    """The largest entry of d loss(B) / d x0 over the tokens of A, of B and of C; x0 is what the embedding gives."""
    x0 = []

    def keep(module, inputs, output):
        x0.append(output.detach().requires_grad_())
        return x0[0]

    with model.embedding_norm.register_forward_hook(keep), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits, _ = model(ids, document_starts=document_starts)
    loss = F.cross_entropy(logits[0, A : A + B - 1].to(x0[0].dtype), ids[0, A + 1 : A + B])
    (gradient,) = torch.autograd.grad(loss, x0[0])
    assert gradient.isfinite().all()
    return [part.abs().max().item() for part in gradient[0].split([A, B, C])]


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
@every_plan
def test_the_loss_of_a_document_has_no_gradient_in_another(plan, precision, packed):
    model, ids, document_starts = packed(plan, torch.float64 if precision == "fp64" else torch.float32)
    before, own, after = reach_of_the_middle(model, ids, document_starts, bf16=precision == "bf16")
    assert before == after == 0
    assert own > 1e-3
    before, _, after = reach_of_the_middle(model, ids, None, bf16=precision == "bf16")
    assert before > 1e-5
    assert after == 0


LEAKS = {
    "recurrent state": ("finch_c2", finch, "wkv6"),
    "recurrent state, with the bonus": ("finch", finch, "wkv6"),
    "token shift of Finch and Finch-C2": ("finch_c2", finch, "token_shift"),
    "token shift of GPTAlpha": ("gptalpha", attention, "token_shift"),
    "token shift of channel mixes": ("finch", channel_mix, "token_shift"),
    "key cache": ("gold", TokenCat, "expand"),
    "attention mask of GOLD": ("gold", gold, "causal_attention"),
    "attention mask of GPTAlpha": ("gptalpha", attention, "causal_attention"),
    "attention mask of Llama": ("llama", attention, "causal_attention"),
}
# Not here: the token shift of GOLD's queries. What leaks into the first query of a document chooses among one key.


@pytest.mark.parametrize("leak", LEAKS)
def test_each_leak_by_itself_would_be_seen(leak, packed, monkeypatch):
    kind, owner, name = LEAKS[leak]
    model, ids, document_starts = packed(f"{kind} alone")
    assert reach_of_the_middle(model, ids, document_starts)[0] == 0
    real = getattr(owner, name)

    def of_one_document(*args, document_starts=None):
        return real(*(arg for arg in args if getattr(arg, "dtype", None) != torch.bool))

    monkeypatch.setattr(owner, name, of_one_document)
    assert reach_of_the_middle(model, ids, document_starts)[0] > 1e-6


def test_a_window_in_which_no_document_begins_is_read_as_ever(packed):
    model, ids, _ = packed("two GOLD layers", torch.float32)
    nowhere = torch.zeros(ids.shape, dtype=torch.bool)
    torch.testing.assert_close(model(ids, document_starts=nowhere)[0], model(ids)[0], rtol=0, atol=1e-5)


def test_a_state_and_starts_together_are_refused(packed):
    model, ids, document_starts = packed("one GOLD layer")
    _, state = model(ids)
    with pytest.raises(ValueError, match="empty state"):
        model(ids, state, document_starts=document_starts)
