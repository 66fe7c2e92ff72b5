"""`goldfinch upgrade`: what is old stays to the bit, what is new starts as the identity, what cannot be is refused."""

import dataclasses
import subprocess
import sys

import pytest
import torch

import goldfinch as gf
from goldfinch.checkpoint.model_folder import load_model, read_config, save_description, save_weights
from goldfinch.checkpoint.upgrade import old_weights_slowly, read_finch, upgrade, upgraded_config
from goldfinch.cli.main import run
from goldfinch.config import RopeConfig
from goldfinch.data.tokenizers import ByteTokenizer, WorldTokenizer
from goldfinch.errors import UserError
from goldfinch.model import Decoder
from goldfinch.model.initialization import initialize

WAYS = {"append:2": 3, "replace:1/3": 2}  # the way and the index of the first GOLD layer, of three layers


@pytest.fixture
def finch(small_config, small_model):
    """A Finch of three layers, none of which is neutral."""

    def make(dtype=torch.float32, *plan):
        config = small_config(*(plan or ("finch",) * 3), vocab_size=300)
        return small_model(config, dtype)

    return make


@pytest.fixture
def folder(finch, tmp_path):
    """The same as a folder in bf16, with a tokenizer."""
    model = finch(torch.bfloat16)
    save_description(tmp_path / "finch", model.config, ByteTokenizer())
    save_weights(tmp_path / "finch", model.state_dict())
    return tmp_path / "finch"


def ids(length=23):
    return torch.randint(257, (2, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("plan", [("finch",) * 3, ("finch_c2", "finch_c2_no_v2", "finch_c2")], ids=lambda plan: plan[0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_below_gold_no_bit_of_the_hidden_states_changes(way, dtype, plan, finch):
    base = finch(dtype, *plan)
    model = upgrade(base, upgraded_config(base.config, way))
    first = model.config.first_gold_layer
    assert first == WAYS[way]
    expected, actual = base.embed(ids()), model.embed(ids())
    assert torch.equal(actual, expected)
    for old, new in zip(base.blocks[:first], model.blocks[:first], strict=True):
        (expected, _), (actual, _) = old(expected), new(actual)
        assert torch.equal(actual, expected)
    x, _ = model.lower(model.embed(ids()), None)
    assert torch.equal(x, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rope", [None, RopeConfig(rescale=2)], ids=str)
@torch.no_grad()
def test_appended_layers_change_no_bit_of_the_logits(rope, dtype, finch):
    base = finch(dtype)
    model = upgrade(base, upgraded_config(base.config, "append:2", rope=rope))
    assert torch.equal(model(ids())[0], base(ids())[0])


@torch.no_grad()
def test_a_replaced_time_mix_adds_nothing_and_its_channel_mix_stays(finch):
    base = finch()
    model = upgrade(base, upgraded_config(base.config, "replace:1/3"))
    last = base.blocks[-1]
    x, _ = base.blocks[1](base.blocks[0](base.embed(ids()))[0])
    y, _ = last.channel_mix(last.channel_mix_norm(x), None)
    assert torch.equal(model(ids())[0], base.head(base.output_norm(x + y)))


@pytest.mark.parametrize("way", WAYS)
def test_new_weights_start_as_in_a_new_model_of_that_depth_and_the_seed_decides(way, finch):
    base = finch(torch.bfloat16)
    config = upgraded_config(base.config, way, latent_ratio=8)
    first, again, other = (dict(upgrade(base, config, seed).named_parameters()) for seed in (1, 1, 2))
    fresh = Decoder(config)
    initialize(fresh, 1)
    gold = range(config.first_gold_layer, config.num_layers)
    new = {
        name for name in first if not torch.equal(first[name], dict(base.named_parameters()).get(name, torch.empty(0)))
    }
    assert {name for name in new if name.startswith("token_cat.")} == {"token_cat.down.weight", "token_cat.up.weight"}
    for name in new:
        assert name.startswith(("token_cat.", *(f"blocks.{layer}." for layer in gold))), name
        assert first[name].dtype == torch.bfloat16
        assert torch.equal(first[name], again[name]), name
    for name, parameter in fresh.named_parameters():
        if parameter.ndim == 1 and "norm" not in name and name in new:
            assert torch.equal(first[name], parameter.bfloat16()), name
    assert not torch.equal(first["token_cat.up.weight"], other["token_cat.up.weight"])
    up = first["token_cat.up.weight"].float()
    torch.testing.assert_close(up @ up.T, torch.eye(len(up)), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("way", "plan"), [("append:4", "ffffffgggg"), ("replace:1/3", "ffffgg"), ("replace:1/6", "fffffg")]
)
def test_the_plan(way, plan, small_config):
    base = small_config(*("finch",) * 6, channel_width=48)
    config = upgraded_config(base, way, latent_ratio=4, rope=RopeConfig(rebase=3))
    assert "".join(kind[0] for kind in config.time_mixes) == plan
    kept = dataclasses.replace(config, time_mixes=base.time_mixes, latent_ratio=base.latent_ratio, rope=None)
    assert kept == base
    assert (config.latent_ratio, config.rope) == (4, RopeConfig(rebase=3))


@pytest.mark.parametrize(
    "way", ["append", "append:0", "append:-1", "replace:1/0", "replace:2/3", "4", "append:1e2", ""]
)
def test_other_ways_are_refused(way, small_config):
    with pytest.raises(UserError, match=r"give append:N or replace:1/N"):
        upgraded_config(small_config("finch", "finch"), way)


def test_something_must_stay_below_gold(small_config):
    with pytest.raises(UserError, match="leaves none below GOLD"):
        upgraded_config(small_config("finch", "finch"), "replace:1/1")


def test_old_weights_are_named_in_no_pattern_and_new_ones_in_one(small_config):
    base = small_config("finch", "finch", "finch")
    patterns = old_weights_slowly(base, upgraded_config(base, "append:2"), 0.1)
    assert patterns == ("*=0.1", "blocks.3.*=1", "blocks.4.*=1", "token_cat.*=1")
    patterns = old_weights_slowly(base, upgraded_config(base, "replace:1/3"), 0.25)
    assert patterns == ("*=0.25", "blocks.2.time_mix.*=1", "token_cat.*=1")


# --- the command -----------------------------------------------------------------------------------------------------


def test_a_folder_becomes_one_that_predicts_the_same(folder, tmp_path, capsys):
    out = tmp_path / "my model"
    assert run(["upgrade", str(folder), "--gold", "append:2", "-o", str(out), "--latent-ratio", "8"]) == 0
    printed = capsys.readouterr().out
    for wanted in ("3 finch, then 2 gold", "bit-identical", "bfloat16", "bytes tokenizer"):
        assert wanted in printed
    assert (
        f"goldfinch train --initial '{out}' --data DATA -o RUN --optimizer.learning-rate-multipliers '*=0.1'" in printed
    )
    before, after = gf.load(folder), gf.load(out)
    assert after.tokenizer.hash == before.tokenizer.hash
    assert after.config.latent_width == 8
    text = before.encode("Call me Ishmael.")[None]
    assert torch.equal(before.logits(text), after.logits(text))
    # Read as a text is read in use, the key cache included.
    context = after.read("Call me Ishmael.")
    torch.testing.assert_close(context.logits, before.logits(text)[0, -1], rtol=0, atol=0.05)


def test_a_replaced_layer_shows_what_it_costs(folder, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("The whale swims past the ship. " * 20)
    args = ["--gold", "replace:1/3", "--rope", "rescale=2", "--text", str(tmp_path / "text.txt")]
    assert run(["upgrade", str(folder), *args, "-o", str(tmp_path / "new")]) == 0
    printed = capsys.readouterr().out
    assert "on the first 512 tokens of" in printed
    assert "to the bit" not in printed
    assert read_config(tmp_path / "new").rope == RopeConfig(rescale=2)


def test_a_published_finch_is_upgraded_at_once(published, save_pth, same_bits, tmp_path, capsys):
    pth = save_pth({name: tensor.bfloat16() for name, tensor in published("finch").tensors.items()})
    assert run(["upgrade", str(pth), "--gold", "append:1", "-o", str(tmp_path / "new")]) == 0
    assert "not compared: there is no tokenizer" in capsys.readouterr().out
    base = read_finch(pth).model
    model = load_model(tmp_path / "new")
    weights = model.state_dict()
    assert same_bits({name: weights[name] for name in base.state_dict()}, base.state_dict())
    assert torch.equal(model(ids() % 41)[0], base(ids() % 41)[0])


def test_a_published_finch_with_norms_in_another_dtype_is_upgraded_in_one(published, save_pth, tmp_path, capsys):
    tensors = {name: tensor.bfloat16() for name, tensor in published("finch").tensors.items()}
    tensors |= {name: tensor.float() for name, tensor in tensors.items() if ".ln" in name}
    assert run(["upgrade", str(save_pth(tensors)), "--gold", "append:1", "-o", str(tmp_path / "new")]) == 0
    assert "tensors are float32, such as" in capsys.readouterr().err
    model = load_model(tmp_path / "new")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model(ids() % 41)[0].isfinite().all()


def test_a_tokenizer_of_another_model_next_to_a_published_finch_is_refused(published, save_pth, tmp_path, capsys):
    pth = save_pth(published("finch").tensors)
    WorldTokenizer().save(pth.with_suffix(".tokenizer.json"))
    assert run(["upgrade", str(pth), "--gold", "append:1", "-o", str(tmp_path / "new")]) == 2
    assert "model.tokenizer.json has 65536 ids, the model only 320: it belongs to another" in capsys.readouterr().err


def test_what_cannot_be_upgraded_is_refused_with_the_remedy(folder, small_config, small_model, tmp_path, capsys):
    plans = {"gold": ("finch", "gold"), "llama": ("llama",), "mixed": ("finch", "gptalpha")}
    for name, plan in plans.items():
        model = small_model(small_config(*plan), torch.float32)
        save_description(tmp_path / name, model.config, None)
        save_weights(tmp_path / name, model.state_dict())
    (tmp_path / "short.txt").write_text("C")
    out = tmp_path / "new"
    for args, answer in (
        ([tmp_path / "gold", "--gold", "append:1"], "continue training it with `goldfinch train --initial"),
        ([tmp_path / "llama", "--gold", "append:1"], "has llama layers: only a Finch can be upgraded"),
        ([tmp_path / "mixed", "--gold", "append:1"], "has gptalpha layers"),
        ([tmp_path / "gone.pth", "--gold", "append:1"], "gone.pth does not exist"),
        ([folder, "--gold", "append:1", "--latent-ratio", "7"], "multiple of latent_ratio 7"),
        ([folder, "--gold", "append:1", "--text", tmp_path / "gone.txt"], "gone.txt"),
        ([folder, "--gold", "append:1", "--text", tmp_path / "short.txt"], "too short"),
        ([folder, "--gold", "append:1", "--rope", "rescale=0"], "rope.rescale must be above 0"),
        ([folder, "--gold", "append:1", "-o", folder], "exists: choose another name"),
        ([folder], "--gold"),
    ):
        assert run(["upgrade", *map(str, args), *([] if "-o" in args else ["-o", str(out)])]) == 2, args
        captured = capsys.readouterr().err
        assert answer in captured, args
        assert captured.count("\n") == 1
    assert not out.exists()


def test_the_command_imports_no_torch_before_it_runs():
    program = "import sys, goldfinch.cli.upgrade; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
