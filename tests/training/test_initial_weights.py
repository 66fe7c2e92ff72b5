"""Runs that start from given weights: which ones, what may be changed, and what does not fit."""

import dataclasses
import json
import shutil

import pytest
import torch

from goldfinch.checkpoint.model_folder import load_model, read_config, save_description, save_weights
from goldfinch.config import RopeConfig
from goldfinch.data.tokenizers import BpeTokenizer, ByteTokenizer
from goldfinch.errors import UserError
from goldfinch.model import Decoder
from goldfinch.model.initialization import initialize
from goldfinch.training.config import OptimizerConfig
from goldfinch.training.initial_weights import set_initial_weights
from goldfinch.training.trainer import Trainer


@pytest.fixture
def initial(small_model, settings, tmp_path):
    """initial(dtype, tokenizer, **fields) -> a folder with a model of the settings' shape, every weight random."""

    def make(dtype=torch.float32, tokenizer=None, **fields):
        folder = tmp_path / "initial"
        model = small_model(dataclasses.replace(settings().model, **fields), dtype)
        save_description(folder, model.config, tokenizer or ByteTokenizer())
        save_weights(folder, model.state_dict())
        return folder

    return make


def losses(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_run_starts_from_the_given_weights_in_fp32(dtype, initial, settings, silent):
    folder = initial(dtype)
    model = load_model(folder, torch.float32)
    still = OptimizerConfig(learning_rate=0.0, final_learning_rate=0.0)
    config = settings(initial=folder, steps=1, optimizer=still)
    Trainer(config, silent()).train()
    trained = load_model(config.output).state_dict()
    for name, weight in model.state_dict().items():
        assert trained[name].dtype == torch.float32
        assert torch.equal(trained[name], weight), name


def test_without_initial_weights_the_seed_decides(settings):
    config = settings(seed=3)
    models = [Decoder(config.model) for _ in range(2)]
    set_initial_weights(models[0], config)
    initialize(models[1], 3)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)


def test_resuming_reads_the_checkpoint_and_not_the_folder_again(initial, settings, silent, tmp_path):
    folder = initial()
    whole, halves = settings(initial=folder), settings(initial=folder, output=tmp_path / "halves")
    Trainer(whole, silent()).train()
    Trainer(dataclasses.replace(halves, steps=6), silent())  # begun, and stopped before the first checkpoint
    Trainer(halves, silent(), resume=True).train()
    assert losses(halves.output) == losses(whole.output)
    shutil.rmtree(folder)
    more = dataclasses.replace(whole, steps=8)
    Trainer(more, silent(), resume=True).train()
    assert len(losses(whole.output)) == 8


def test_positions_may_be_changed_and_nothing_else(initial, settings, silent, tmp_path):
    folder = initial(rope=RopeConfig())
    model = read_config(folder)
    longer = dataclasses.replace(model, rope=RopeConfig(rescale=4))
    config = settings(initial=folder, model=longer, sequence_length=64, steps=1)
    Trainer(config, silent()).train()
    assert read_config(config.output).rope == RopeConfig(rescale=4)
    for field, value in {"width": 64, "latent_ratio": 2, "time_mixes": ("finch", "gold"), "vocab_size": 300}.items():
        other = dataclasses.replace(model, **{field: value})
        with pytest.raises(UserError, match=rf"has model\.{field} .* leave that setting out; only model\.rope"):
            Trainer(settings(initial=folder, model=other, output=tmp_path / "none"), silent())
    assert not (tmp_path / "none").exists()


def test_data_of_another_tokenizer_is_refused_and_a_model_without_one_takes_any(initial, settings, silent):
    folder = initial(tokenizer=BpeTokenizer.train(["Call me Ishmael. " * 9], 257))
    with pytest.raises(
        UserError, match=r"data was made with another tokenizer .*--tokenizer .*initial/tokenizer\.json"
    ):
        Trainer(settings(initial=folder), silent())
    assert not settings().output.exists()
    (folder / "tokenizer.json").unlink()
    Trainer(settings(initial=folder), silent())


def test_more_ids_than_the_model_has_are_refused(initial, settings, silent):
    folder = initial()
    (folder / "tokenizer.json").unlink()
    config = settings(initial=folder)
    small = dataclasses.replace(config.model, vocab_size=100)
    with pytest.raises(UserError, match=r"has 257 ids, the model only 100: prepare it with the tokenizer"):
        Trainer(dataclasses.replace(config, model=small), silent())


def test_settings_with_initial_weights_come_back_from_json(settings, tmp_path):
    config = settings(initial=tmp_path / "base")
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert settings().to_dict()["initial"] is None
