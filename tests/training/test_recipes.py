"""Recipes: every row of the paper's tables by name, with its numbers, and those of the comparison."""

import re
from pathlib import Path

import pytest

from goldfinch.errors import UserError
from goldfinch.model.accounting import account
from goldfinch.presets import KINDS, model_config
from goldfinch.training.config import TrainConfig
from goldfinch.training.recipes import MINIPILE_TOKENS, recipe, recipe_names, recipe_summary, settings_for

SPECIFICATION = (Path(__file__).parents[2] / "docs" / "specification.md").read_text(encoding="utf-8")
KIND_OF_ROW = {
    "Llama-like": "llama",
    "Llama": "llama",
    "Finch": "finch",
    "Finch-C2": "finch_c2",
    "Finch-C2 without (1-w)": "finch_c2_no_one_minus_w",
    "Finch-C2 without the second value": "finch_c2_no_v2",
    "Finch-C2, last 1/3 GPTAlpha": "finch_c2_gptalpha",
    "GPTAlpha": "gptalpha",
    "GPTAlpha with RoPE": "gptalpha",
    "GoldFinch, last 1/2 GOLD": "goldfinch_half",
    "GoldFinch, last 1/3 GOLD": "goldfinch",
    "GoldFinch, last 1/3 GOLD, RoPE": "goldfinch_rope",
    "GoldFinch, last 1/6 GOLD": "goldfinch_sixth",
    "GoldFinch 1/3, 16:1": "goldfinch",
    "GoldFinch 1/3, 1:1": "goldfinch_uncompressed",
    "GoldFinch 1/6, 16:1": "goldfinch_sixth",
    "GoldFinch 1/2, 16:1": "goldfinch_half",
}


def table(heading):
    """The rows below a table's heading in the specification, each as its cells."""
    text = SPECIFICATION[SPECIFICATION.index(heading) :]
    rows = re.match(r"\|.*\n\|[-|]+\n((?:\|.*\n)+)", text)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1].splitlines()]


def config_of(name, **fields):
    return TrainConfig.from_dict({**recipe(name), "data": "data", "output": "run"} | fields)


@pytest.mark.parametrize("column", [1, 2])
def test_every_row_of_the_papers_parameter_table_is_a_recipe(column):
    rows = table("| parameters, V = 65536 |")
    assert len(rows) == 8
    for row in rows:
        name = f"paper/{('L12-D768', 'L24-D2048')[column - 1]}-{KIND_OF_ROW[row[0]]}"
        model = config_of(name).model
        assert f"{account(model).parameters_as_published:,}" == row[column], name


def test_every_row_of_the_papers_ablations_is_a_recipe():
    kinds = [KIND_OF_ROW[name] for name, _ in table("| ablation,")]
    assert len(set(kinds)) == 11
    for kind in kinds:
        assert f"paper/L12-D768-{kind}" in recipe_names()
        assert config_of(f"paper/L12-D768-{kind}").model == model_config(f"{kind}-L12-D768")


def test_the_papers_recipes_have_the_papers_numbers():
    for name in (name for name in recipe_names() if name.startswith("paper/")):
        config = config_of(name)
        optimizer = config.optimizer
        large = "L24" in name
        assert config.sequence_length * config.batch_size == (128 * 1024 if large else 64 * 1024)
        assert config.sequence_length == (2048 if large else 1024)
        assert (config.steps, config.epochs, config.dtype) == (0, 1.0, "bfloat16")
        rates = optimizer.learning_rate, optimizer.final_learning_rate
        assert rates == ((3e-4, 1e-4) if large else (6e-4, 2e-4))
        assert (optimizer.kind, optimizer.schedule, optimizer.learning_rate_multipliers) == (
            "adamw",
            "quarter_cosine",
            (),
        )
        assert (optimizer.beta1, optimizer.beta2, optimizer.eps) == (0.9, 0.99, 1e-8)
        assert (optimizer.warmup_steps, optimizer.warmup_start) == (10, 0.2)
        assert (optimizer.weight_decay, optimizer.max_gradient_norm, optimizer.decay_learning_rate_multiplier) == (
            0.001,
            1.0,
            2.0,
        )
    assert MINIPILE_TOKENS == 1_498_226_207
    assert "1,498,226,207" in SPECIFICATION


def test_the_models_of_the_comparison_have_five_million_parameters_outside_embedding_and_head():
    names = [name for name in recipe_names() if name.startswith("compare/")]
    assert len(names) == 9
    for name in names:
        config = TrainConfig.from_dict({**recipe(name, 4096), "data": "data", "output": "run"})
        assert config.model.vocab_size == 4096
        counts = account(config.model, config.sequence_length)
        assert counts.parameters - counts.embedding_parameters == pytest.approx(5.0e6, rel=0.005), name
        assert config.steps * config.batch_size * config.sequence_length == pytest.approx(4.0e6, rel=0.005)


def test_every_recipe_says_what_it_is_and_a_wrong_name_is_answered_with_the_nearest():
    assert set(KINDS) == {name.rpartition("-")[2] for name in recipe_names()}
    assert all(recipe_summary(name) for name in recipe_names())
    with pytest.raises(UserError, match="did you mean compare/L6-D256-goldfinch_rope"):
        recipe("compare/L6-D256-goldfinch_rop")
    with pytest.raises(UserError, match="--recipe list"):
        recipe("zzz")


def test_models_without_a_recipe_get_the_papers_settings_from_its_sizes_on():
    small, large = settings_for(model_config("goldfinch-L12-D768")), settings_for(model_config("finch-L24-D2048"))
    assert (small["sequence_length"], small["batch_size"]) == (1024, 64)
    assert (small["optimizer"]["learning_rate"], small["optimizer"]["final_learning_rate"]) == (6e-4, 2e-4)
    assert large["sequence_length"] * large["batch_size"] == 128 * 1024
    assert (large["optimizer"]["learning_rate"], large["optimizer"]["final_learning_rate"]) == (3e-4, 1e-4)
    assert settings_for(model_config("goldfinch-L6-D256"))["sequence_length"] == 256
