"""Going on, going back, forking: what a sequence holds and what it costs."""

import pytest
import torch
from plans import PLANS, small_context

from goldfinch.cache.key_cache import KeyCache
from goldfinch.cache.latents import FORMATS
from goldfinch.errors import UserError
from goldfinch.inference.prefill import read_upper
from goldfinch.inference.snapshots import log_spaced
from goldfinch.presets import model_config


@pytest.mark.parametrize(
    ("vocab_size", "latents", "bytes_per_token"),
    [(65536, "bfloat16", 258), (65537, "bfloat16", 260), (65537, "int8", 140), (65536, "int4", 74)],
)
def test_a_token_takes_the_bytes_that_are_promised(vocab_size, latents, bytes_per_token):
    config = model_config("goldfinch-L24-D2048", vocab_size)
    cache = KeyCache(config, FORMATS[latents], torch.device("meta"))
    cache.append(torch.zeros(64000, dtype=torch.int64, device="meta"), torch.zeros(64000, 128, device="meta"))
    assert cache.nbytes == 64000 * bytes_per_token


def test_the_state_takes_the_bytes_that_it_should(model_of, text):
    context = small_context(model_of("one GOLD layer", torch.float32), None)
    assert context.nbytes == context.memory_usage().total == 0
    assert context.read(text(9)).logits is not None
    # Finch-C2: S of (4, 16, 16) and two tokens; GOLD: two tokens; what GOLD starts from: three; 64 wide, 4 bytes each.
    assert context.memory_usage().state == 4 * (4 * 16 * 16 + 2 * 64 + 2 * 64 + 3 * 64)


def test_rounded_latents_take_half_the_memory_and_change_little(model_of, text):
    model, ids = model_of("two GOLD layers", torch.float32), text(40)
    exact, rounded = small_context(model, None).read(ids), small_context(model, None, "bfloat16").read(ids)
    room = 40 * 2  # bytes of the ids
    assert (rounded.memory_usage().key_cache - room) * 2 == exact.memory_usage().key_cache - room
    difference = (rounded.logits - exact.logits).abs().max()
    assert 0 < difference < 0.1 * exact.logits.std()


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("latents", [None, "int8"])
def test_going_back_is_as_if_the_rest_had_never_been_read(plan, latents, model_of, text):
    model, ids = model_of(plan), text(60)
    if latents and not model.config.num_gold_layers:
        pytest.skip("no latents")
    context = small_context(model, None, latents).read(ids)
    for length in (59, 58, 41, 40, 39, 17, 5, 2, 1):
        replayed = context.truncate(length)
        assert replayed <= length
        assert len(context) == length
        torch.testing.assert_close(
            context.logits, small_context(model, None, latents).read(ids[:length]).logits, rtol=0, atol=1e-5
        )
    torch.testing.assert_close(
        context.read(ids[1:]).logits, small_context(model, None, latents).read(ids).logits, rtol=0, atol=1e-5
    )


def test_going_back_to_nothing_and_beyond(model_of, text):
    context = small_context(model_of("one GOLD layer"), None).read(text(9))
    for wrong in (-1, 10):
        with pytest.raises(UserError, match=f"length must be a whole number from 0 to 9, not {wrong}"):
            context.truncate(wrong)
    assert context.truncate(0) == 0
    assert len(context) == 0
    with pytest.raises(ValueError, match="empty"):
        _ = context.logits
    assert torch.equal(context.read(text(9)).logits, small_context(context.model, None).read(text(9)).logits)


def test_snapshots_make_going_back_cheap_and_say_what_they_cost(model_of, text, monkeypatch):
    context = small_context(model_of("one GOLD layer", torch.float32), None).read(text(70))
    assert list(context.snapshots) == [48, 64, 68]
    each = 4 * (4 * 16 * 16 + 2 * 64 + 3 * 64)
    assert set(context.snapshots.values()) == {each}
    assert context.memory_usage().snapshots == 3 * each
    assert context.fork().truncate(69) == 1
    assert context.fork().truncate(50) == 2
    context.truncate(30)
    context.snapshot()
    context.read(text(200))
    assert context.truncate(31) == 1


def test_going_back_reads_fewer_tokens_again_than_promised(monkeypatch):
    most = 0
    kept: set[int] = set()
    for length in range(1, 600):
        if length % 4 == 0:
            kept = (kept & log_spaced(length, 4)) | {length}
        most = max(most, len(kept))
        for target in range(1, length):
            replayed = target - max((position for position in kept if position <= target), default=0)
            assert replayed < max(2 * 4, 7 * (length - target))
    assert most <= 10


def test_a_document_that_is_cut_keeps_what_is_left_of_it(model_of, text):
    context = small_context(model_of("one GOLD layer"), None)
    for name in ("a", "b", "c"):
        context.read(text(10), name=name)
    context.truncate(15)
    assert [(document.name, document.start, document.stop) for document in context.documents] == [
        ("a", 0, 10),
        ("b", 10, 15),
    ]


def test_forks_share_what_they_have_in_common_and_nothing_else(model_of, text):
    model, ids = model_of("two GOLD layers"), text(18)
    context = small_context(model, None).read(ids[:10], name="shared")
    fork = context.fork()
    fork.read(ids[10:], name="own")
    context.read(ids[3:8])
    torch.testing.assert_close(fork.logits, small_context(model, None).read(ids).logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        context.logits, small_context(model, None).read(ids[:10]).read(ids[3:8]).logits, rtol=0, atol=1e-6
    )
    first = [sequence.sequence.key_cache.columns["latents"].block(0).data_ptr() for sequence in (context, fork)]
    assert first[0] == first[1]
    assert [document.name for document in context.documents] == ["shared"]


@pytest.mark.parametrize("latents", ["int8", "int4"])
def test_the_quantization_report_compares_with_the_unquantized_latents_of_this_text(latents, model_of, text):
    model, ids = model_of("two GOLD layers", torch.float64), text(100)
    context = small_context(model, None, latents).read(ids[:64]).read(ids[64:])
    report = context.fork().measure_quantization()
    assert (report.latents, report.num_tokens) == (latents, 100)

    def logits(latents, length):
        """In fp64, where `Context.logits` are fp32."""
        sequence = small_context(model, None, latents).read(ids[:length]).sequence
        tail = sequence.current_state().tail
        return model.head(read_upper(model, tail, length, None, sequence.key_value_cache)[0][0])

    kls, same = [], []
    stride = next(stride for stride in (16, 32, 64) if len(range(0, 100, stride)) <= 16)
    for position in range(stride, 100, stride):
        exact, rounded = (logits(stored, position + 1).log_softmax(-1) for stored in (None, latents))
        kls.append((exact.exp() * (exact - rounded)).sum().item())
        same.append(exact.argmax() == rounded.argmax())
    assert report.num_positions == len(kls)
    assert report.mean_kl == pytest.approx(sum(kls) / len(kls), rel=1e-6)
    assert report.max_kl == pytest.approx(max(kls), rel=1e-6)
    assert report.top1_agreement == sum(same) / len(same)
    assert context.memory_usage().unquantized_latents > 100 * 4 * 8
    context.measure_quantization()
    assert context.memory_usage().unquantized_latents == 0
    assert context.read(text(5)).measure_quantization() == report


def test_contexts_without_integer_latents_have_no_quantization_report(model_of, text):
    assert small_context(model_of("one GOLD layer"), None, "bfloat16").read(text(40)).measure_quantization() is None
    assert small_context(model_of("one GOLD layer"), None, "int8").read(text(2)).measure_quantization() is None


def test_memory_usage_and_repr_run_no_layer(model_of, text, monkeypatch):
    context = small_context(model_of("one GOLD layer", torch.float32)).read(text(9))
    sequence = context.sequence
    assert context.logits is not None
    sequence.verify_draft(torch.tensor([1, 2]))
    sequence.accept(1)  # leaves a token that the state has not seen
    calls = []
    for name in ("read_lower", "read_upper"):
        monkeypatch.setattr(f"goldfinch.inference.sequence.{name}", lambda *args: calls.append(args))
    assert context.memory_usage().state > 0
    assert context.nbytes == context.memory_usage().total
    assert "10 tokens" in repr(context)
    assert calls == []
