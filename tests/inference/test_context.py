"""Reading and generating with a model."""

import pytest
import torch

import goldfinch as gf
from goldfinch.data.tokenizers import ByteTokenizer, Tokenizer
from goldfinch.errors import UserError
from goldfinch.inference.language_model import LanguageModel
from goldfinch.inference.prefill import read_lower
from goldfinch.inference.text_stream import TextStream


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


def test_a_long_text_is_read_in_chunks_without_changing_anything(lm):
    once = lm.read("Call me Ishmael.").logits
    context = lm.context()
    context.sequence.chunk_size = 3
    torch.testing.assert_close(context.read("Call me Ishmael.").logits, once, rtol=0, atol=1e-4)


def test_greedy_decoding_is_the_argmax_of_the_whole_forward_at_each_step(lm):
    context = lm.read("whale")
    generated = context.generate(max_tokens=6, temperature=0)
    ids = lm.encode("whale").tolist()
    for _ in range(6):
        ids.append(int(lm.logits(torch.tensor([ids]))[0, -1, :257].argmax()))
    assert generated.text == lm.tokenizer.decode(ids[5:])
    assert generated.token_ids == tuple(ids[5:])
    assert len(context) == len(ids)


@pytest.mark.parametrize("channel_width", [64, 72])
def test_under_autocast_the_model_predicts_what_it_does_without(channel_width, small_config, small_model):
    # 72 is not a multiple of 16: the layers run in PyTorch, in bfloat16, and the key cache stays float32.
    config = small_config("finch_c2", "finch_c2", "gold", vocab_size=300, channel_width=channel_width)
    lm = LanguageModel(small_model(config, torch.float32), ByteTokenizer())
    exact = lm.read("Call me Ishmael.").score(" Some years ago")
    with torch.autocast("cpu", torch.bfloat16):
        rounded = lm.read("Call me Ishmael.").score(" Some years ago")
        assert lm.read("Call me").generate(max_tokens=20, seed=0).finish_reason == "length"
    assert rounded.total == pytest.approx(exact.total, rel=0.02)


def test_no_step_runs_the_past_through_the_layers_again(lm, monkeypatch):
    lengths = []

    def counting(model, ids, states):
        lengths.append(ids.numel())
        return read_lower(model, ids, states)

    monkeypatch.setattr("goldfinch.inference.sequence.read_lower", counting)
    lm.read("0123456789").generate(max_tokens=4, seed=0)
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
    context.sequence.chunk_size = 4
    calls = []

    def interrupting(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return read_lower(*args)

    monkeypatch.setattr("goldfinch.inference.sequence.read_lower", interrupting)
    with pytest.raises(KeyboardInterrupt):
        context.read(" best of times")
    monkeypatch.undo()
    assert len(context) == 10
    assert torch.equal(context.logits, before)
    torch.testing.assert_close(context.read("!").logits, lm.read("It was the!").logits, rtol=0, atol=1e-4)


def test_the_end_of_text_ends_the_generation_unless_it_is_ignored(lm):
    context = lm.read("x")
    always_end = {"logit_bias": {256: 1000.0}, "max_tokens": 5}
    generation = context.generate(**always_end)
    assert (generation.text, generation.token_ids, generation.finish_reason) == ("", (), "stop")
    assert len(context) == 1
    generation = context.generate(ignore_eos=True, **always_end)
    assert (generation.text, generation.token_ids, generation.finish_reason) == ("", (256,) * 5, "length")


@pytest.mark.parametrize(
    ("tokens", "stop", "expected"),
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
def test_stop_strings_are_found_across_tokens_and_nothing_else_is_lost(tokens, stop, expected):
    stream = TextStream(Words(tokens), stop)
    pieces = []
    for token in range(len(tokens)):
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    pieces.append(stream.flush())
    assert "".join(pieces) == stream.text == expected
    if stream.stopped:
        count, rest = stream.split_at_end()
        assert "".join(tokens[:count]) + rest == expected


class Words(Tokenizer):
    """Token i is the i-th of some words."""

    name = "words"
    end_of_text = 10**6

    def __init__(self, words):
        super().__init__([word.encode() for word in words])

    def encode(self, text, *, special_tokens=False):
        raise NotImplementedError


def test_the_context_ends_exactly_where_the_text_does_at_a_stop_string(lm):
    whole = lm.read("whale").generate(max_tokens=40, temperature=0, logit_bias=ASCII)
    for start in (1, 5, 17, 30):
        for length in (1, 2, 4):
            stop = whole.text[start : start + length]
            for max_draft_tokens in (0, 8):
                context = lm.read("whale")
                generation = context.generate(
                    max_tokens=40, temperature=0, stop=stop, logit_bias=ASCII, max_draft_tokens=max_draft_tokens
                )
                assert generation.finish_reason == "stop"
                assert generation.text == whole.text[: whole.text.index(stop)]
                assert lm.tokenizer.decode(context.ids()) == "whale" + generation.text
                assert context.ids()[5:] == list(generation.token_ids)
                again = lm.read("whale" + generation.text)
                torch.testing.assert_close(context.logits, again.logits, rtol=0, atol=1e-4)


# Bytes above 127 and the end of text are never generated: every token is a character.
ASCII = dict.fromkeys(range(128, 257), -1000.0)


def test_a_stop_token_ends_the_generation(lm):
    whole = lm.read("whale").generate(max_tokens=10, temperature=0)
    generation = lm.read("whale").generate(max_tokens=10, temperature=0, stop=(whole.token_ids[4],))
    assert generation.finish_reason == "stop"
    assert generation.token_ids == whole.token_ids[: whole.token_ids.index(whole.token_ids[4])]


def test_logprobs_are_those_of_the_whole_forward(lm):
    generation = lm.read("whale").generate(max_tokens=5, temperature=0.7, seed=1, top_k=3, logprobs=2)
    ids = torch.tensor([*lm.encode("whale"), *generation.token_ids])
    expected = lm.logits(ids[None])[0, 4:-1, :257].log_softmax(-1)
    for token, row, found in zip(generation.token_ids, expected, generation.logprobs, strict=True):
        assert found.token_id == token
        assert found.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert [id for id, _ in found.top] == row.topk(2).indices.tolist()


def test_a_model_without_tokenizer_generates_ids(lm):
    bare = LanguageModel(lm.model, None)
    generation = bare.generate([119, 104], max_tokens=4, temperature=0, stop=300)
    assert generation.text == ""
    assert len(generation.token_ids) == 4
    with pytest.raises(UserError, match="empty"):
        bare.context().generate(max_tokens=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no tokens"),
        ("\udc80", "not valid Unicode"),
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
