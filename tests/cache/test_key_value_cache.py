"""Keys and values, kept or rebuilt: the same numbers, within the budget."""

import pytest
import torch
from plans import WITH_GOLD, small_context, small_sequence

from goldfinch.cache.key_value_cache import KeyValueCache
from goldfinch.model.token_cat import TokenCat
from goldfinch.ops.attention import KeyValueBlock

WIDTH, ITEM = 64, 8  # of the small models, fp64


def budget_for(level, model, tokens):
    """Bytes that keep this level, and no higher one, for texts up to this length; without the embedding keys."""
    rows = {"latents": 0, "shared_keys": 1, "keys_values": 2 * model.config.num_gold_layers}[level]
    return rows * -(-tokens // 4) * 4 * WIDTH * ITEM  # full blocks of four tokens


@pytest.mark.parametrize("plan", WITH_GOLD)
@pytest.mark.parametrize("level", ["latents", "shared_keys", "keys_values"])
@pytest.mark.parametrize("table", [0, 41 * 4 + 15 * WIDTH * ITEM])
def test_every_level_gives_the_keys_and_values_of_the_definition(plan, level, table, model_of, text):
    model, ids = model_of(plan), text(21)
    sequence = small_sequence(model, budget=budget_for(level, model, 21) + table)
    for piece in ids.split([9, 1, 11]):
        sequence.append(piece)
        with torch.no_grad():
            x0 = model.embed(sequence.key_cache.ids(0, len(sequence))[None])
            latents = sequence.key_cache.latents(0, len(sequence), torch.float64)[None]
            whole = model.token_cat.expand(x0, latents)
            for block in model.blocks[model.config.first_gold_layer :]:
                (expected,) = whole.keys_values(block.time_mix)
                pieces = list(sequence.key_value_cache.keys_values(block.time_mix))
                keys = torch.cat([piece.keys for piece in pieces], dim=2)
                values = [p.values if p.value_index is None else p.values[:, :, p.value_index] for p in pieces]
                torch.testing.assert_close(keys, expected.keys, rtol=0, atol=1e-12)
                torch.testing.assert_close(torch.cat(values, dim=2), expected.values, rtol=0, atol=1e-12)
    assert sequence.key_value_cache.level == level


@pytest.mark.parametrize("plan", WITH_GOLD)
def test_all_levels_give_equal_logits_through_reads_forks_and_going_back(plan, model_of, text):
    model, ids = model_of(plan), text(30)
    after = {}
    for level in ("latents", "shared_keys", "keys_values"):
        context = small_context(model, None, budget=budget_for(level, model, 30))
        seen = after[level] = []
        for piece in ids[:21].split([9, 1, 1, 7, 3]):
            seen.append(context.read(piece).logits)
        seen.append(context.fork().read(ids[21:25]).logits)
        context.truncate(10)
        seen.append(context.logits)
        seen.append(context.read(ids[21:]).logits)
    for level in ("shared_keys", "keys_values"):
        for one, other in zip(after["latents"], after[level], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_values_are_computed_once_per_distinct_bigram(model_of, monkeypatch):
    model = model_of("one GOLD layer")
    sequence = small_sequence(model)
    sequence.append(torch.tensor([1, 2, 1, 2, 1, 2, 1, 2]))
    gold = model.blocks[-1].time_mix
    rows, real = [], gold.mix
    monkeypatch.setattr(gold, "mix", lambda e, before: (rows.append(len(e)), real(e, before))[1])
    assert sequence.compute_logits() is not None
    assert rows == [3, 2]  # (start, 1), (1, 2), (2, 1); then (2, 1), (1, 2)


def test_the_product_with_an_ids_embedding_is_computed_once_per_id_within_the_budget(model_of, monkeypatch):
    model, products, real = model_of("two GOLD layers"), [], TokenCat.embedding_part
    monkeypatch.setattr(TokenCat, "embedding_part", lambda self, x0: (products.append(len(x0)), real(self, x0))[1])
    sequence = small_sequence(model, budget=41 * 4 + 4 * WIDTH * ITEM)
    sequence.append(torch.tensor([5, 6, 5, 6, 7, 7, 5, 7]))
    assert sequence.compute_logits() is not None
    assert sum(products) == 3
    assert sequence.key_value_cache.nbytes <= 41 * 4 + 4 * WIDTH * ITEM


def test_a_text_that_outgrows_its_budget_moves_down_a_level_and_stays_within_it(model_of, text):
    model, ids = model_of("two GOLD layers"), text(40)
    budget = budget_for("keys_values", model, 8)
    context, levels = small_context(model, None, budget=budget), []
    free = small_context(model, None, budget=10**9)
    for piece in ids.split(5):
        context.read(piece)
        torch.testing.assert_close(context.logits, free.read(piece).logits, rtol=0, atol=1e-6)
        levels.append(context.level)
        assert context.memory_usage().key_value_cache <= budget
    assert levels == ["keys_values"] + ["shared_keys"] * 5 + ["latents"] * 2
    context.truncate(8)
    assert (context.level, free.level) == ("keys_values", "keys_values")


def test_what_is_kept_is_not_rebuilt(model_of, text, monkeypatch):
    model, rebuilt = model_of("one GOLD layer"), []
    real = KeyValueCache._expand
    monkeypatch.setattr(
        KeyValueCache,
        "_expand",
        lambda self, layer, start, stop: (rebuilt.append((start, stop)), real(self, layer, start, stop))[1],
    )
    context = small_context(model, None, budget=10**9).read(text(10))
    for token in (1, 2, 3):
        assert context.logits is not None
        context.read([token])
    assert rebuilt == [(0, 4), (4, 8), (8, 10), (10, 11), (11, 12)]


def test_no_block_is_rebuilt_before_it_is_asked_for(model_of, text):
    """Nothing of the length of the text is held at once at the level latents."""
    sequence = small_sequence(model_of("one GOLD layer"))
    sequence.append(text(23))
    gold = sequence.key_value_cache._model.blocks[-1].time_mix
    sizes = [
        block.keys.shape[2] for block in sequence.key_value_cache.keys_values(gold) if isinstance(block, KeyValueBlock)
    ]
    assert sizes == [4, 4, 4, 4, 4, 3]
    assert sequence.key_value_cache.nbytes == 0


@pytest.mark.parametrize("level", ["latents", "shared_keys", "keys_values"])
def test_the_first_pass_says_how_far_it_is_and_later_ones_do_not(level, model_of, text):
    model = model_of("two GOLD layers")
    sequence = small_sequence(model, budget=budget_for(level, model, 21))
    sequence.append(text(21))
    done = []
    sequence.key_value_cache.progress = done.append
    sequence.compute_logits()
    assert done == sorted(done)
    assert len(done) == 2 * 6
    assert done[-1] == 1
    sequence.verify_draft(text(1))
    assert len(done) == 2 * 6
