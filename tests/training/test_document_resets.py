"""Document resets in training: which targets count, what a run does with them, and the loss by position."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from goldfinch.data.batches import sequential_windows
from goldfinch.data.shards import TokenDataset
from goldfinch.data.training_data import TrainingData
from goldfinch.model import Decoder
from goldfinch.model.initialization import initialize
from goldfinch.training.documents import document_positions, find_document_starts
from goldfinch.training.loss import count_targets, next_token_loss, validate
from goldfinch.training.parallel import parallelize as parallel_plan
from goldfinch.training.parallel.parallelize import apply_block_plan
from goldfinch.training.parallel.processes import SINGLE_PROCESS
from goldfinch.training.trainer import Trainer

END = 40
PLANS = {"goldfinch": ("finch_c2", "finch_c2", "gold", "gold"), "attention": ("finch", "gptalpha", "llama")}
every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
# torch.compile looks at it itself and hides the warning; but where warnings are errors, it comes as one first.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


def window_of(*lengths, seed=0):
    """(1, T) of documents of these lengths, each ended but for the last."""
    ids = torch.randint(END, (sum(lengths),), generator=torch.Generator().manual_seed(seed))
    ids[torch.tensor(lengths[:-1]).cumsum(0) - 1] = END
    return ids[None]


def test_documents_begin_after_an_end_of_text():
    ids = torch.tensor([[5, END, 7, END, END, 3], [END, 1, 2, 3, 4, END]])
    document_starts = find_document_starts(ids, END)
    assert document_starts.long().tolist() == [[0, 0, 1, 0, 1, 1], [0, 1, 0, 0, 0, 0]]
    assert document_positions(document_starts).tolist() == [[0, 1, 0, 1, 0, 0], [0, 0, 1, 2, 3, 4]]


@every_plan
def test_the_loss_of_a_window_is_that_of_its_documents_one_by_one(plan, small_config, small_model):
    model = small_model(small_config(*plan))

    @given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), seed=st.integers(0, 9))
    def check(lengths, seed):
        window = window_of(*lengths, 2, seed=seed)
        documents = [document for document in window.split([*lengths, 2], dim=1) if document.shape[1] > 1]
        alone = sum(next_token_loss(model, document) for document in documents)
        torch.testing.assert_close(next_token_loss(model, window, END), alone, rtol=1e-10, atol=0)
        assert count_targets(window, END) == sum(count_targets(document) for document in documents)

    check()


@every_plan
def test_a_document_changes_no_bit_of_the_loss_of_another(plan, small_config, small_model):
    model = small_model(small_config(*plan), torch.float32).requires_grad_()
    first, second = (window_of(9, 8, 7, seed=seed) for seed in (0, 1))
    second[0, 9:17] = first[0, 9:17]  # the middle one is the same
    kept = []
    for window in (first, second):
        with model.embedding_norm.register_forward_hook(lambda module, inputs, output: kept.append(output)):
            loss = next_token_loss(model, window, END)
        hidden, _ = model.hidden(window[:, :-1], document_starts=find_document_starts(window[:, :-1], END))
        kept.append(F.cross_entropy(model.head(hidden)[0, 9:16], window[0, 10:17]))
        (gradient,) = torch.autograd.grad(loss, kept[-2])
        kept.append(gradient[0, 9:16])
    assert torch.equal(kept[1], kept[4])
    assert torch.equal(kept[2], kept[5])
    assert not torch.equal(kept[0], kept[3])


def gradients(model, windows, bf16=False):
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = next_token_loss(model, windows, END)
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert all(gradient.isfinite().all() for gradient in found.values())
    return {"loss": loss.detach()} | found


@pytest.fixture
def model_with(small_config, small_model):
    """model_with(plan, **block plan) -> a model that takes gradients; the same weights for the same plan."""

    def make(plan, **how):
        model = small_model(small_config(*plan), torch.float32).requires_grad_()
        apply_block_plan(model, **how)
        return model

    return make


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@every_plan
def test_activation_checkpointing_changes_no_bit(plan, bf16, model_with):
    windows = torch.cat([window_of(5, 1, 1, 11), window_of(12, 6)])
    expected = gradients(model_with(plan), windows, bf16)
    actual = gradients(model_with(plan, activation_checkpointing=True), windows, bf16)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@every_plan
def test_compiled_blocks_keep_documents_apart(plan, model_with, monkeypatch):
    monkeypatch.setattr(parallel_plan, "BACKEND", "aot_eager")
    windows = torch.cat([window_of(5, 1, 1, 11), window_of(12, 6)])
    expected = gradients(model_with(plan), windows)
    actual = gradients(model_with(plan, compiled=True), windows)
    torch.compiler.reset()
    for name, wanted in expected.items():
        assert (actual[name] - wanted).abs().max() <= 1e-5 * wanted.abs().max(), name


# Runs


def records(config):
    return [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]


def test_a_step_divides_by_the_targets_that_count_in_the_whole_batch(many_documents, settings, silent, tmp_path):
    first = []
    for name, size in (("whole", 0), ("parts", 1)):
        config = settings(
            data=(str(many_documents),), document_resets=True, steps=1, micro_batch_size=size, output=tmp_path / name
        )
        Trainer(config, silent()).train()
        first.append(records(config)[0])
    assert first[1]["loss"] == pytest.approx(first[0]["loss"], rel=1e-6)
    assert first[1]["gradient_norm"] == pytest.approx(first[0]["gradient_norm"], rel=1e-5)
    model = Decoder(config.model)
    initialize(model, config.seed)
    data = TrainingData.open(config.data)
    windows = data.batches(config.sequence_length, config.batch_size, config.seed).batch(0)
    document_starts = find_document_starts(windows, data.tokenizer.end_of_text)
    logits = model(windows[:, :-1], document_starts=document_starts[:, :-1])[0][~document_starts[:, 1:]]
    expected = F.cross_entropy(logits, windows[:, 1:][~document_starts[:, 1:]])
    assert first[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("resets", [False, True])
def test_validation_tells_the_loss_by_position_in_the_window_and_in_the_document(
    resets, many_documents, small_config, small_model
):
    model = small_model(small_config("finch_c2", "gold", vocab_size=257), torch.float32)
    dataset = TokenDataset.open(many_documents, "validation")
    end = dataset.end_of_text
    token_bytes = (torch.arange(257) < 256).long()
    result = validate(
        model, sequential_windows(dataset, 24, 3), token_bytes, SINGLE_PROCESS, end_of_text=end, document_resets=resets
    )

    by_position, by_document_position, text_bytes = {}, {}, 0
    for window in sequential_windows(dataset, 24, 1):
        document_starts = find_document_starts(window, end)
        logits, _ = model(window[:, :-1], document_starts=document_starts[:, :-1] if resets else None)
        losses = F.cross_entropy(logits[0], window[0, 1:], reduction="none").tolist()
        own = 0
        for read, (token, loss) in enumerate(zip(window[0].tolist(), losses, strict=False), start=1):
            own = 0 if token == end else own + 1
            if own or not resets:
                by_position.setdefault(read, []).append(loss)
                by_document_position.setdefault(own, []).append(loss)
                text_bytes += int(window[0, read]) < 256

    for measured, known in ((result.by_position, by_position), (result.by_document_position, by_document_position)):
        ranges = [(part.first, part.last) for part in measured]
        assert ranges == [pair for pair in ((0, 0), (1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32)) if
                          any(pair[0] <= position <= pair[1] for position in known)]  # fmt: skip
        for part in measured:
            expected = [x for position in range(part.first, part.last + 1) for x in known.get(position, [])]
            assert part.tokens == len(expected)
            assert part.loss == pytest.approx(sum(expected) / len(expected), rel=1e-5)
        assert sum(part.tokens for part in measured) == result.tokens
    assert (result.by_document_position[0].first == 0) == (not resets)
    nats = [loss for losses in by_position.values() for loss in losses]
    assert result.loss == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    assert result.bits_per_byte == pytest.approx(sum(nats) / text_bytes / 0.6931471805599453, rel=1e-5)


def test_a_run_with_resets_validates_with_them_and_resumes_to_the_bit(many_documents, settings, silent, tmp_path):
    whole, rest = silent(), silent()
    config = settings(data=(str(many_documents),), document_resets=True, output=tmp_path / "whole")
    result = Trainer(config, whole).train()
    validations = [record for record in records(config) if "validation_loss" in record]
    assert [record["step"] for record in validations] == [4, 6]
    last = validations[-1]
    assert last["validation_loss"] == result.loss
    assert sum(part["tokens"] for part in last["loss_by_position"]) == result.tokens
    assert [part["first"] for part in last["loss_by_document_position"]][:3] == [1, 2, 3]
    dataset = TokenDataset.open(many_documents, "validation")
    windows = list(sequential_windows(dataset, config.sequence_length, 1))
    assert result.tokens == sum(count_targets(window, dataset.end_of_text) for window in windows) < len(dataset) - 1

    class PowerFailure(Exception):
        pass

    class Failing(silent):
        def step(self, record, done):
            if record["step"] == 5:
                raise PowerFailure

    parts = settings(data=(str(many_documents),), document_resets=True, output=tmp_path / "parts")
    with pytest.raises(PowerFailure):
        Trainer(parts, Failing()).train()
    Trainer(parts, rest, resume=True).train()
    assert rest.losses == whole.losses[4:]


def test_resets_are_off_unless_asked_for_and_change_what_is_learned(many_documents, settings, silent, tmp_path):
    assert settings().document_resets is False
    losses = []
    for resets in (False, True):
        seen = silent()
        config = settings(data=(str(many_documents),), document_resets=resets, output=tmp_path / str(resets))
        Trainer(config, seen).train()
        losses.append(seen.losses)
    assert losses[0] != losses[1]
