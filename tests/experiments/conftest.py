"""Folders as `goldfinch train` leaves them, without training."""

import json

import pytest
import torch

from goldfinch.checkpoint.model_folder import save_description, save_weights
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.model import Decoder
from goldfinch.model.initialization import initialize
from goldfinch.presets import model_config
from goldfinch.training.config import TrainConfig
from goldfinch.training.run.folder import write_settings


@pytest.fixture
def finished_run(tmp_path, data):
    """finished_run(name, seed, preset, losses, **settings) -> a run in tmp_path/name/seed-N whose last loss is the last
    of `losses`, one a step.
    """

    def make(name, seed, preset, losses, steps=None, **settings):
        folder = tmp_path / "runs" / name / f"seed-{seed}"
        folder.mkdir(parents=True)
        config = model_config(preset, 257)
        save_description(folder, config, ByteTokenizer())
        model = Decoder(config)
        initialize(model, seed)
        save_weights(folder, model.state_dict())
        fields = {"sequence_length": 16, "batch_size": 2, "steps": steps or len(losses)}
        values = {"model": config.to_dict(), "data": str(data), "output": str(folder)} | fields | settings
        write_settings(TrainConfig.from_dict(values))
        records = [{"step": n, "tokens": 32 * n, "loss": loss} for n, loss in enumerate(losses, start=1)]
        last = {"step": len(losses), "tokens": 32 * len(losses), "validation_loss": losses[-1]}
        position_loss = {"first": 1, "last": 16, "loss": losses[-1], "tokens": 100}
        last |= {"bits_per_byte": losses[-1] / 2, "loss_by_position": [position_loss], "whole_validation_set": True}
        records.append(last)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return folder

    return make


@pytest.fixture
def reading_model():
    """reading_model(folder, config): a model with random weights that reads bytes."""

    def make(folder, config, seed=0):
        folder.mkdir(parents=True)
        save_description(folder, config, ByteTokenizer())
        model = Decoder(config)
        initialize(model, seed)
        for name, parameter in model.named_parameters():
            if name.endswith("output.weight"):  # zero at the start: attention would have no effect
                torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(seed))
        save_weights(folder, model.state_dict())
        return model.eval().requires_grad_(False)

    return make
