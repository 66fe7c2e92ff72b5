"""Linear pre-fill and the stored key memory: exact, and as small as promised."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from goldfinch.config import RopeConfig
from goldfinch.inference import key_memory, prefill
from goldfinch.inference.context import Context
from goldfinch.inference.key_memory import BlockedKeyMemory
from goldfinch.model import Decoder
from goldfinch.presets import model_config

PLANS = {
    "one GOLD layer": (("finch_c2", "gold"), {}),
    "two GOLD layers": (("finch_c2", "finch_c2", "gold", "gold"), {}),
    "three GOLD layers": (("finch_c2", "gold", "gold", "gold"), {}),
    "nothing but GOLD": (("gold", "gold"), {}),
    "RoPE": (("finch_c2", "gold", "gold"), {"rope": RopeConfig(rescale=2.0)}),
    "no GOLD": (("finch", "gptalpha", "llama"), {}),
}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Chunks and blocks so small that short texts have several."""
    monkeypatch.setattr(prefill, "CHUNK", 5)
    monkeypatch.setattr(key_memory, "BLOCK", 4)


@pytest.fixture
def model_of(small_config, small_model):
    """model_of(plan name, dtype) -> a small model."""

    def make(name, dtype=torch.float64):
        plan, fields = PLANS[name]
        return small_model(small_config(*plan, **fields), dtype)

    return make


def text(length, seed=0):
    return torch.randint(41, (length,), generator=torch.Generator().manual_seed(seed))


def logits_after(model, pieces):
    """Logits after each read of a context that reads `pieces`, in the model's own precision."""
    context, after = Context(model, None), []
    for piece in pieces:
        context.read(piece)
        after.append(context.logits)
    return torch.stack(after)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 1e-3)])
def test_reading_in_any_pieces_gives_the_logits_of_the_whole_forward(plan, dtype, tolerance, model_of):
    model = model_of(plan, dtype)

    @given(lengths=st.lists(st.integers(1, 17), min_size=1, max_size=4))
    def check(lengths):
        ids = text(sum(lengths))
        with torch.no_grad():
            whole = model(ids[None])[0][0]
        ends = torch.tensor(lengths).cumsum(0) - 1
        read = logits_after(model, ids.split(lengths))
        assert (read - whole[ends].float()).abs().max() <= tolerance * whole.std()

    check()


@pytest.mark.parametrize("plan", [name for name in PLANS if name != "no GOLD"])
def test_hidden_states_and_all_states_are_exact_in_fp64_around_the_length_of_the_tail(plan, model_of, assert_same):
    model = model_of(plan)
    tail = prefill.tail_length(model)
    for length in range(1, tail + 4):
        ids = text(length + 3, seed=length)
        memory = BlockedKeyMemory(model, torch.float64, 0)
        with torch.no_grad():
            hidden, states = prefill.prefill(model, ids[:length], None, memory)
            whole, state = model.hidden(ids[None, :length])
            assert_same([hidden, [*states.lower, *states.upper]], [whole[0, -1], state.blocks], 1e-9)
            for token in ids[length:]:  # and every token decoded after it
                hidden, states = prefill.prefill(model, token[None], states, memory)
                whole, state = model.hidden(token[None, None], state)
                assert_same([hidden, [*states.lower, *states.upper]], [whole[0, -1], state.blocks], 1e-9)


@pytest.mark.parametrize("plan", ["one GOLD layer", "two GOLD layers", "three GOLD layers"])
def test_a_tail_one_token_shorter_is_wrong(plan, model_of, monkeypatch):
    model, ids = model_of(plan), text(20)
    tail = prefill.tail_length(model)
    with torch.no_grad():
        whole = model.hidden(ids[None])[0][0, -1]
        for length, exact in ((tail, True), (tail - 1, False)):
            monkeypatch.setattr(prefill, "tail_length", lambda model, length=length: length)
            hidden, _ = prefill.prefill(model, ids, None, BlockedKeyMemory(model, torch.float64, 0))
            assert ((hidden - whole).abs().max() <= 1e-9) == exact


def test_gold_layers_see_the_tail_only(model_of):
    model, lengths = model_of("two GOLD layers"), []
    model.blocks[2].register_forward_hook(lambda module, args, output: lengths.append(args[0].shape[1]))
    Context(model, None).read(text(30)).read(text(3)).read(text(1))
    assert lengths == [4, 3, 1]


@pytest.mark.parametrize(("vocab_size", "bytes_per_token"), [(65536, 258), (65537, 260)])
def test_a_token_takes_the_bytes_that_the_paper_promises(vocab_size, bytes_per_token, monkeypatch):
    monkeypatch.setattr(key_memory, "BLOCK", 1024)
    with torch.device("meta"):
        model = Decoder(model_config("goldfinch-L24-D2048", vocab_size))
        memory = BlockedKeyMemory(model, torch.bfloat16, 0)
        memory.append(torch.zeros(4096, dtype=torch.int64), torch.zeros(4096, 128))
    assert memory.nbytes == 4096 * bytes_per_token


def test_the_memory_grows_without_copying_the_past(model_of):
    memory = BlockedKeyMemory(model_of("one GOLD layer"), torch.float32, 0)
    memory.append(text(6), torch.randn(6, 4))
    before = [block.latents.data_ptr() for block in memory._blocks]
    memory.append(text(9), torch.randn(9, 4))
    assert [block.latents.data_ptr() for block in memory._blocks][:2] == before
    assert len(memory) == 15


def test_forks_share_what_they_have_in_common_and_nothing_else(model_of):
    model, ids = model_of("two GOLD layers"), text(18)
    context = Context(model, None).read(ids[:10])
    fork = context.fork()
    fork.read(ids[10:])
    context.read(ids[3:8])
    assert torch.equal(fork.logits, Context(model, None).read(ids[:10]).read(ids[10:]).logits)
    assert torch.equal(context.logits, Context(model, None).read(ids[:10]).read(ids[3:8]).logits)
    shared = {block.ids.data_ptr() for block in fork._memory._blocks}
    assert len(shared & {block.ids.data_ptr() for block in context._memory._blocks}) == 2


@pytest.mark.parametrize("plan", ["two GOLD layers", "RoPE"])
def test_keeping_keys_and_values_changes_nothing_but_the_work(plan, model_of):
    model = model_of(plan)
    one = 2 * 4 * 64 * 8  # bytes of keys and values of one block in one layer, fp64
    after = {}
    for budget in (0, 3 * one, 10**9):
        context = Context(model, None, budget=budget)
        after[budget] = []
        for piece in text(21).split([9, 1, 1, 7, 3]):
            context.read(piece)
            after[budget].append(context.logits)
        forked = context.fork().read(text(4))
        context._memory.truncate(10)
        assert context.nbytes["expanded"] <= min(budget, 4 * one)
        after[budget] += [forked.logits]
        assert forked.nbytes["expanded"] == min(budget, 2 * 6 * one)
    for budget in (3 * one, 10**9):
        assert all(torch.equal(a, b) for a, b in zip(after[0], after[budget], strict=True))


def test_kept_blocks_are_not_rebuilt(model_of, monkeypatch):
    model, expanded = model_of("one GOLD layer"), []
    context = Context(model, None).read(text(10))
    real = model.token_cat.expand
    monkeypatch.setattr(model.token_cat, "expand", lambda x0, z: (expanded.append(x0.shape[1]), real(x0, z))[1])
    context.read([1]).read([2]).read([3])
    # Of blocks of four only the last, partial one, with the token before it, until it is whole and kept as well.
    assert expanded == [4, 5, 2]


def test_rounded_latents_take_half_the_memory_and_change_little(model_of):
    model, ids = model_of("two GOLD layers", torch.float32), text(40)
    exact, rounded = Context(model, None).read(ids), Context(model, None, torch.bfloat16).read(ids)
    room = 40 * 2  # bytes of the ids
    assert (rounded.nbytes["memory"] - room) * 2 == exact.nbytes["memory"] - room
    difference = (rounded.logits - exact.logits).abs().max()
    assert 0 < difference < 0.1 * exact.logits.std()


def test_the_state_takes_the_bytes_that_it_should(model_of):
    context = Context(model_of("one GOLD layer", torch.float32), None)
    assert context.nbytes == {"memory": 0, "state": 0, "expanded": 0}
    # Finch-C2: S of (4, 16, 16) and two tokens; GOLD: two tokens; 64 wide, 4 bytes each.
    assert context.read(text(9)).nbytes["state"] == 4 * (4 * 16 * 16 + 2 * 64 + 2 * 64)
