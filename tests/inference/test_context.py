"""Reading and writing with a model."""

import pytest
import torch

import goldfinch as gf
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.errors import UserError
from goldfinch.inference.language_model import LanguageModel
from goldfinch.inference.prefill import read_lower
from goldfinch.inference.stopping import stop_before


@pytest.fixture(scope="module")
def lm(small_config, small_model):
    config = small_config("finch_c2", "finch_c2", "gold", vocab_size=300)
    return LanguageModel(small_model(config, torch.float32), ByteTokenizer())


def test_logits_after_reading_are_those_of_the_whole_forward(lm):
    ids = lm.encode("Call me Ishmael.")
    whole = lm.logits(ids[None])
    assert whole.shape == (1, 16, 300)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(lm.read("Call me Ishmael.").logits, whole[0, -1], rtol=0, atol=1e-4)
    torch.testing.assert_close(lm.read("Call me").read(" Ishmael.").logits, whole[0, -1], rtol=0, atol=1e-4)


def test_a_long_text_is_read_in_chunks_without_changing_anything(lm, monkeypatch):
    once = lm.read("Call me Ishmael.").logits
    monkeypatch.setattr("goldfinch.inference.prefill.CHUNK", 3)
    torch.testing.assert_close(lm.read("Call me Ishmael.").logits, once, rtol=0, atol=1e-4)


def test_greedy_writing_is_the_argmax_of_the_whole_forward_at_each_step(lm):
    context = lm.read("whale")
    written = "".join(context.generate(max_tokens=6, temperature=0))
    ids = lm.encode("whale").tolist()
    for _ in range(6):
        ids.append(int(lm.logits(torch.tensor([ids]))[0, -1, :257].argmax()))
    assert written == lm.tokenizer.decode(ids[5:])
    assert len(context) == len(ids)


def test_no_step_runs_the_past_through_the_layers_again(lm, monkeypatch):
    lengths = []

    def counting(model, ids, state):
        lengths.append(len(ids))
        return read_lower(model, ids, state)

    monkeypatch.setattr("goldfinch.inference.sequence.read_lower", counting)
    list(lm.read("0123456789").generate(max_tokens=4, seed=0))
    assert lengths == [10, 1, 1, 1, 1]


def test_forks_go_on_independently(lm):
    context = lm.read("It was the")
    fork = context.fork().read(" best of times")
    again = context.read(" worst")
    assert len(fork) == 24
    assert torch.equal(again.logits, lm.read("It was the").read(" worst").logits)


def test_a_read_that_is_broken_off_leaves_the_context_as_it_was(lm, monkeypatch):
    context = lm.read("It was the")
    before = context.logits
    monkeypatch.setattr("goldfinch.inference.prefill.CHUNK", 4)
    calls = []

    def breaking_off(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return read_lower(*args)

    monkeypatch.setattr("goldfinch.inference.sequence.read_lower", breaking_off)
    with pytest.raises(KeyboardInterrupt):
        context.read(" best of times")
    monkeypatch.undo()
    assert len(context) == 10
    assert torch.equal(context.logits, before)
    torch.testing.assert_close(context.read("!").logits, lm.read("It was the!").logits, rtol=0, atol=1e-4)


def test_the_end_of_text_ends_the_writing(lm, monkeypatch):
    context = lm.read("x")
    logits = torch.full((300,), -100.0)
    logits[256] = 100.0
    monkeypatch.setattr(type(context), "logits", logits)
    assert list(context.generate(max_tokens=5)) == []


@pytest.mark.parametrize(
    ("pieces", "stop", "expected"),
    [
        (["one ", "two ", "three"], ["two"], "one "),
        (["one t", "w", "o three"], ["two", "xyz"], "one "),
        (["one tw", "elve"], ["two"], "one twelve"),
        (["abab", "abac"], ["abac"], "abab"),
        (["ends with tw"], ["two"], "ends with tw"),
        (["stop"], ["stop"], ""),
        (["nothing to stop at"], [], "nothing to stop at"),
        (["xay"], ["y", "a"], "x"),
    ],
)
def test_stop_strings_are_found_across_pieces_and_nothing_else_is_lost(pieces, stop, expected):
    assert "".join(stop_before(iter(pieces), stop)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no tokens"),
        ("\udc80", "no valid Unicode"),
        ([], "no tokens"),
        ([1, 300], "300 is outside"),
        ([-1], "-1 is outside"),
        ([0.5], "integers"),
    ],
)
def test_input_that_cannot_be_read_is_refused(lm, text, message):
    with pytest.raises(UserError, match=message):
        lm.read(text)


def test_a_model_without_tokenizer_reads_ids_and_says_what_it_lacks(lm):
    bare = LanguageModel(lm.model, None)
    assert len(bare.read([1, 2, 3])) == 3
    with pytest.raises(UserError, match="no tokenizer"):
        bare.read("text")


def test_build_is_reproducible_and_refuses_unknown_names():
    first, second = (gf.build("goldfinch-L3-D64", vocab_size=32, seed=5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    assert gf.build("finch-L1-D64", dtype="bfloat16", vocab_size=32).model.dtype == torch.bfloat16
    with pytest.raises(UserError, match="did you mean goldfinch"):
        gf.build("goldfish-L3-D64")
    with pytest.raises(UserError, match="unknown dtype"):
        gf.build("finch-L1-D64", dtype="float99")
