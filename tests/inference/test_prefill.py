"""Linear prefill is exact: whatever the pieces, the whole forward's numbers."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plans import PLANS, WITH_GOLD, small_context, small_sequence

from goldfinch.inference import prefill


def logits_after(model, pieces):
    """Logits after each read of a context that reads `pieces`, in the model's own precision."""
    context, after = small_context(model, None), []
    for piece in pieces:
        context.read(piece)
        after.append(context.logits)
    return torch.stack(after)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 5e-4)])
def test_reading_in_any_pieces_gives_the_logits_of_the_whole_forward(plan, dtype, tolerance, model_of, text):
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


@pytest.mark.parametrize("plan", WITH_GOLD)
def test_hidden_states_and_all_states_are_exact_in_fp64_around_the_length_of_the_tail(
    plan, model_of, text, assert_same
):
    model = model_of(plan)
    tail = prefill.tail_length(model)
    for length in range(1, tail + 4):
        ids = text(length + 3, seed=length)
        sequence = small_sequence(model)
        sequence.append(ids[:length])
        with torch.no_grad():
            cache, lower = sequence.key_value_cache, sequence.current_state()
            hidden, (upper,) = prefill.read_upper(model, lower.tail, length, None, cache)
            whole, state = model.hidden(ids[None, :length])
            assert_same([hidden[:, -1], [*lower.blocks, *upper]], [whole[:, -1], state.blocks], 1e-9)
            for token in ids[length:]:  # and every token decoded after it
                sequence.append(token[None])
                lower = sequence.current_state()
                hidden, (upper,) = prefill.read_upper(model, lower.tail, 1, [upper], cache)
                whole, state = model.hidden(token[None, None], state)
                assert_same([hidden[:, -1], [*lower.blocks, *upper]], [whole[:, -1], state.blocks], 1e-9)


@pytest.mark.parametrize("plan", ["one GOLD layer", "two GOLD layers", "three GOLD layers"])
def test_a_tail_one_token_shorter_is_wrong(plan, model_of, text, monkeypatch):
    model, ids = model_of(plan), text(20)
    tail = prefill.tail_length(model)
    with torch.no_grad():
        whole = model.hidden(ids[None])[0][0, -1]
        for length, exact in ((tail, True), (tail - 1, False)):
            monkeypatch.setattr(prefill, "tail_length", lambda model, length=length: length)
            sequence = small_sequence(model)
            sequence.append(ids)
            hidden, _ = prefill.read_upper(model, sequence.current_state().tail, 20, None, sequence.key_value_cache)
            assert ((hidden - whole).abs().max() <= 1e-9) == exact


@pytest.mark.parametrize("plan", ["two GOLD layers", "RoPE"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=6)
@given(lengths=st.lists(st.integers(1, 9), min_size=2, max_size=5), data=st.data())
def test_it_does_not_matter_when_logits_are_looked_at(plan, model_of, text, lengths, data):
    model, ids = model_of(plan), text(sum(lengths))
    looked = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    context = small_context(model, None)
    for piece, look in zip(ids.split(lengths), looked, strict=True):
        context.read(piece)
        if look:
            assert context.logits.isfinite().all()
    assert (context.logits - small_context(model, None).read(ids).logits).abs().max() <= 1e-6


def test_gold_layers_run_when_logits_are_asked_for_and_see_the_tail_only(model_of, text):
    model, lengths = model_of("two GOLD layers"), []
    model.blocks[2].register_forward_hook(lambda module, args, output: lengths.append(args[0].shape[1]))
    context = small_context(model, None).read(text(30)).read(text(30))
    assert lengths == []
    for count in (3, 1, 30):
        assert context.logits is not None
        context.read(text(count))
    assert context.logits is not None
    assert lengths == [4, 3, 1, 4]
