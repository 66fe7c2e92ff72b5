"""The models of transformers compute what `Decoder` does, and their cache is our engine."""

import copy
import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM

import goldfinch as gf
from goldfinch.huggingface import (
    GoldFinchCache,
    GoldFinchConfig,
    GoldFinchForCausalLM,
    GoldFinchForSequenceClassification,
    GoldFinchForTokenClassification,
)
from goldfinch.inference.language_model import LanguageModel

PLANS = {
    "GoldFinch": None,
    "rotary GoldFinch": ("finch_c2", "gold", "gold"),
    "Finch": ("finch", "finch"),
    "Llama": ("llama", "llama"),
}


def config_of(plan="GoldFinch", **fields):
    rope = {"base": 10000.0, "rescale": 1.0, "rebase": 1.0} if plan in ("rotary GoldFinch", "Llama") else None
    layers = 3 if PLANS[plan] is None else len(PLANS[plan])
    sizes = {"vocab_size": 99, "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": layers}
    channel_mix = "swiglu" if plan == "Llama" else "rwkv"
    return GoldFinchConfig(**sizes | fields, time_mixes=PLANS[plan], rope=rope, channel_mix=channel_mix)


def model_of(plan="GoldFinch", cls=GoldFinchForCausalLM, dtype=torch.float32, **fields):
    torch.manual_seed(0)
    model = cls(config_of(plan, **fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # of a new model many are zero
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.to(dtype)


@pytest.fixture(scope="module")
def model():
    return model_of()


@pytest.fixture
def ids():
    return torch.randint(1, 99, (3, 12), generator=torch.Generator().manual_seed(1))


def masked(ids):
    """Padding on the left, on the right, and within."""
    mask = torch.ones_like(ids)
    mask[0, :4], mask[1, 9:], mask[2, [3, 5]] = 0, 0, 0
    return mask


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("use_cache", [False, True])
def test_logits_are_those_of_the_decoder(plan, use_cache, ids):
    model = model_of(plan)
    with torch.no_grad():
        expected = model.model.decoder(model.lm_head)(ids)[0]
        outputs = model(ids, use_cache=use_cache)
    assert (outputs.logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (outputs.cache is None) != use_cache


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_padded_row_equals_the_row_alone(plan, use_cache, dtype, tolerance, ids):
    model, mask = model_of(plan, dtype=dtype), masked(ids)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, use_cache=use_cache).logits
        for row, is_token in enumerate(mask.bool()):
            alone = model(ids[row, is_token][None], use_cache=False).logits[0]
            assert (logits[row, is_token] - alone).abs().max() <= tolerance * alone.abs().max()
            one = model(ids[row][None], attention_mask=mask[row][None], use_cache=use_cache).logits[0]
            assert (one[is_token] - alone).abs().max() <= tolerance * alone.abs().max()


def test_padding_in_a_later_forward_pass_does_not_reach_the_next(model, ids):
    mask = masked(ids)
    with torch.no_grad():
        cache = model(ids[:, :7], attention_mask=mask[:, :7]).cache
        model(ids[:, 7:10], attention_mask=mask[:, :10], cache=cache)
        logits = model(ids[:, 10:], attention_mask=mask, cache=cache).logits
        for row, is_token in enumerate(mask.bool()):
            if is_token[-1]:
                alone = model(ids[row, is_token][None], use_cache=False).logits[0, -1]
                assert (logits[row, -1] - alone).abs().max() <= 1e-5 * alone.abs().max()


def test_gradients_do_not_flow_through_padding(ids):
    model, mask = model_of(dtype=torch.float64), masked(ids)
    losses = []
    for attention_mask, text in ((mask, ids), (None, None)):
        model.zero_grad()
        if text is None:
            rows = [model(ids[row, m][None]).logits.square().sum() for row, m in enumerate(mask.bool())]
            torch.stack(rows).sum().backward()
        else:
            model(text, attention_mask=attention_mask).logits[mask.bool()].square().sum().backward()
        losses.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    for name, gradient in losses[0].items():
        torch.testing.assert_close(gradient, losses[1][name], rtol=1e-9, atol=1e-12)


def test_packed_documents_are_read_as_if_each_stood_alone(model, ids):
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None].expand(3, -1)
    within = positions.where(torch.arange(12) >= 5, positions + 3)  # as of a text that began before the batch
    with torch.no_grad():
        assert torch.equal(*(model(ids, position_ids=each, use_cache=False).logits for each in (positions, within)))
        packed = model(ids, position_ids=positions, use_cache=False).logits
        parts = [model(part, use_cache=False).logits for part in (ids[:, :5], ids[:, 5:])]
        with pytest.raises(ValueError, match="cannot continue a cache"):
            model(ids, position_ids=positions, cache=model(ids).cache)
    torch.testing.assert_close(packed, torch.cat(parts, dim=1), rtol=0, atol=2e-5)


def test_only_the_logits_that_are_kept_are_computed(model, ids):
    with torch.no_grad():
        whole = model(ids).logits
        for kept in (1, 4):
            torch.testing.assert_close(model(ids, logits_to_keep=kept).logits, whole[:, -kept:], rtol=0, atol=1e-5)
        columns = torch.tensor([2, 5])
        torch.testing.assert_close(model(ids, logits_to_keep=columns).logits, whole[:, columns], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"prefill_chunk_size": 5}, {"prompt_lookup_num_tokens": 3}, {"use_cache": False}],
    ids=lambda options: next(iter(options), "greedy"),
)
def test_generate_writes_what_our_engine_writes(model, ids, options):
    lm = LanguageModel(model.model.decoder(model.lm_head), None)
    for row in ids.tolist():
        expected = lm.generate(row, max_tokens=16, temperature=0).token_ids
        written = model.generate(torch.tensor([row]), max_new_tokens=16, do_sample=False, **options)
        assert written[0, len(row) :].tolist() == list(expected)


def test_a_batch_with_padding_writes_what_each_row_writes_alone(model, ids):
    mask = torch.ones_like(ids)
    mask[0, :4], mask[1, :9] = 0, 0
    together = model.generate(ids, attention_mask=mask, max_new_tokens=10, do_sample=False)
    for row, is_token in enumerate(mask.bool()):
        alone = model.generate(ids[row, is_token][None], max_new_tokens=10, do_sample=False)
        assert together[row, -10:].tolist() == alone[0, -10:].tolist()


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 2}, {"prefill_chunk_size": 4}], ids=str)
def test_text_padded_on_the_right_goes_on_after_its_last_token(model, ids, options):
    mask = torch.ones_like(ids)
    mask[1, 9:], mask[2, 1:] = 0, 0
    options = {"max_new_tokens": 6, "pad_token_id": 0} | options
    written = model.generate(ids, attention_mask=mask, **options)[:, 12:]
    for row, length in enumerate((12, 9, 1)):
        assert torch.equal(written[row], model.generate(ids[row : row + 1, :length], **options)[0, length:])


def test_beams_and_a_small_assistant(model, ids):
    beams = model.generate(ids, num_beams=3, max_new_tokens=8, do_sample=False)
    without = model.generate(ids, num_beams=3, max_new_tokens=8, do_sample=False, use_cache=False)
    assert beams.tolist() == without.tolist()
    assistant = model_of("Finch")
    greedy = model.generate(ids[:1], max_new_tokens=12, do_sample=False)
    assisted = model.generate(ids[:1], max_new_tokens=12, do_sample=False, assistant_model=assistant)
    assert assisted.tolist() == greedy.tolist()


def test_the_cache_goes_back_and_its_rows_are_selected(model, ids):
    with torch.no_grad():
        expected = model(ids).logits
        cache = model(ids[:, :8]).cache
        model(ids[:, 8:11] * 0 + 5, cache=cache)
        cache.crop(-3)  # to the last forward pass
        assert cache.get_seq_length() == 8
        torch.testing.assert_close(model(ids[:, 8:], cache=cache).logits, expected[:, 8:], rtol=0, atol=2e-5)
        cache.crop(-9)  # and further
        kept = copy.deepcopy(cache)
        torch.testing.assert_close(model(ids[:, 3:], cache=cache).logits, expected[:, 3:], rtol=0, atol=2e-5)
        kept.batch_repeat_interleave(2)
        kept.batch_select_indices(torch.tensor([5, 0, 2]))
        kept.reorder_cache(torch.tensor([1, 1, 2]))
        rows = [0, 0, 1]
        logits = model(ids[rows, 3:], cache=kept).logits
        torch.testing.assert_close(logits, expected[rows, 3:], rtol=0, atol=2e-5)
        kept.reset()
        torch.testing.assert_close(model(ids, cache=kept).logits, expected, rtol=0, atol=2e-5)


def test_a_context_file_is_continued_by_generate(model, ids, tmp_path):
    lm = LanguageModel(model.model.decoder(model.lm_head), None)
    book, question = ids[0].tolist(), ids[1, :4].tolist()
    lm.read(book).save(tmp_path / "book.gfc")
    expected = lm.read(book + question).generate(max_tokens=8, temperature=0).token_ids
    for prompt in (question, book + question):
        cache = GoldFinchCache.open(tmp_path / "book.gfc", model)
        written = model.generate(torch.tensor([prompt]), cache=cache, max_new_tokens=8, do_sample=False)
        assert written[0, len(prompt) :].tolist() == list(expected)


@pytest.mark.parametrize("use_cache", [False, True])
def test_hidden_states_and_attentions(model, ids, use_cache):
    mask = masked(ids)
    with torch.no_grad():
        outputs = model(ids, mask, use_cache=use_cache, output_hidden_states=True, output_attentions=True)
        after = model(ids[:, :2], torch.cat([mask, mask[:, :2] * 0 + 1], 1), cache=model(ids, mask).cache,
                      output_hidden_states=True, output_attentions=True)  # fmt: skip
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(3, 12, 64)] * 4
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(3, 2, 12, 12)]
    assert after.attentions[0].shape == (3, 2, 2, 14)
    embedded = model.model.embedding_norm(model.model.embedding(ids))
    torch.testing.assert_close(outputs.hidden_states[0][mask.bool()], embedded[mask.bool()])
    (weights,) = outputs.attentions
    for row, is_token in enumerate(mask.bool()):
        of_tokens = weights[row][:, is_token]
        torch.testing.assert_close(of_tokens.sum(-1), torch.ones(2, int(is_token.sum())))
        assert of_tokens[:, :, ~is_token].abs().max() == 0 if bool((~is_token).any()) else True
    assert not any(block._forward_hooks for block in model.model.blocks), "our engine stays fast afterwards"


@pytest.mark.parametrize("use_cache", [False, True])
def test_generate_returns_hidden_states_and_attentions_of_the_whole_prompt(model, ids, use_cache):
    outputs = model.generate(
        ids,
        max_new_tokens=2,
        use_cache=use_cache,
        return_dict_in_generate=True,
        output_hidden_states=True,
        output_attentions=True,
        output_logits=True,
    )
    steps = [(12, 12), (1, 13)] if use_cache else [(12, 12), (13, 13)]
    for (queries, keys), states, attentions in zip(steps, outputs.hidden_states, outputs.attentions, strict=True):
        assert [tuple(state.shape) for state in states] == [(3, queries, 64)] * 4
        assert [tuple(weights.shape) for weights in attentions] == [(3, 2, queries, keys)]
    torch.testing.assert_close(model.lm_head(outputs.hidden_states[1][-1][:, -1]), outputs.logits[1])


def test_hidden_states_of_some_layers(model, ids):
    every = model(ids, output_hidden_states=True).hidden_states
    some = model(ids, output_hidden_states=[0, -1]).hidden_states
    assert [state is None for state in some] == [False, True, True, False]
    assert torch.equal(some[0], every[0])
    assert torch.equal(some[3], every[3])


def test_hidden_states_and_attentions_have_gradients(model, ids):
    outputs = model(ids, output_hidden_states=True, output_attentions=True)
    values = (outputs.hidden_states[0], outputs.attentions[0])
    for gradient in torch.autograd.grad(outputs.logits[:, -1].square().sum(), values):
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(ids, reentrant):
    gradients = []
    for checkpointing in (False, True):
        model = model_of().train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model(ids, labels=ids).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_the_loss_without_logits_is_the_same(ids):
    labels = torch.where(ids % 5 == 0, -100, ids)
    losses = []
    for logits_in_training in (True, False):
        model = model_of(logits_in_training=logits_in_training).train()
        for more in ({"labels": labels}, {"labels": labels, "num_items_in_batch": 7}, {"shift_labels": labels}):
            outputs = model(ids, **more)
            assert (outputs.logits is not None) == logits_in_training
            losses.append(outputs.loss)
    torch.testing.assert_close(torch.stack(losses[:3]), torch.stack(losses[3:]))


def test_every_bit_comes_back_by_either_door(model, tmp_path, same_bits):
    model.save_pretrained(tmp_path / "one", max_shard_size="40KB")
    assert (tmp_path / "one" / "model.safetensors.index.json").exists()
    lm = gf.load(tmp_path / "one", dtype="float32")
    assert same_bits(lm.model.state_dict(), model.model.decoder(model.lm_head).state_dict())
    lm.save(tmp_path / "two")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "two")
    assert same_bits(again.state_dict(), model.state_dict())
    assert again.config.to_model_config() == model.config.to_model_config()
    assert again.dtype == torch.float32


def test_initial_values_are_those_of_our_own_rules():
    torch.manual_seed(0)
    model = GoldFinchForCausalLM(config_of())
    for block in model.model.blocks:
        assert not block.time_mix.output.weight.any(), "a new layer adds nothing"
    assert model.model.embedding.weight.abs().max() <= 1e-4
    ours = gf.build("goldfinch-L3-D128", vocab_size=99).model
    theirs = GoldFinchForCausalLM(GoldFinchConfig.from_model_config(ours.config)).model.decoder()
    mixing = [(name, weight) for name, weight in ours.named_parameters() if ".mu" in name or "norm" in name]
    assert len(mixing) > 20
    for name, weight in mixing:
        assert torch.equal(theirs.get_parameter(name), weight), name
    assert not any(weight.isnan().any() for weight in model.parameters())


@pytest.mark.parametrize("cls", [GoldFinchForSequenceClassification, GoldFinchForTokenClassification])
def test_classification_learns(cls, ids):
    model = model_of(cls=cls, num_labels=2, pad_token_id=0).train()
    labels = (ids > 50).long()
    labels = labels if cls is GoldFinchForTokenClassification else labels[:, -1]
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(12):
        loss = model(ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_what_cannot_be_says_so(model, ids):
    with pytest.raises(ValueError, match="needs input_ids, not inputs_embeds"):
        model(inputs_embeds=torch.zeros(1, 2, 64))
    with pytest.raises(ValueError, match="inputs_embeds"):
        model.generate(inputs_embeds=torch.zeros(1, 2, 64), max_new_tokens=2)
    with pytest.raises(ValueError, match="does not work with a GoldFinch"):
        model.generate(ids, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(gf.UserError, match="num_hidden_layers is 3, but time_mixes names 2"):
        GoldFinchConfig(num_hidden_layers=3, time_mixes=["finch", "gold"])
    with pytest.raises(ValueError, match="3 rows, and 2 are to continue"), torch.no_grad():
        model(ids[:2], cache=model(ids).cache)


def test_the_config_says_what_each_layer_is():
    config = config_of("rotary GoldFinch")
    assert config.layer_types == ["linear_attention", "full_attention", "full_attention"]
    assert config.to_model_config().rope is not None
    again = GoldFinchConfig.from_model_config(config.to_model_config())
    assert dataclasses.asdict(again.to_model_config()) == dataclasses.asdict(config.to_model_config())
