"""Loss by position: chunks change nothing, bins are plain means, and the experiment is what one would compute."""

import dataclasses
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plans import PLANS
from torch.nn import functional as F

from goldfinch.cli.main import run
from goldfinch.config import RopeConfig
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.experiments import loss_by_position as position
from goldfinch.experiments.loss_by_position import linear_bins, logarithmic_bins, loss_by_position, token_losses
from goldfinch.experiments.position import split_windows
from goldfinch.model import Decoder
from goldfinch.ops import cross_entropy
from goldfinch.presets import model_config


@torch.no_grad()
def direct(model, ids):
    """(B, T + 1) -> (B, T) losses, from one forward of all tokens."""
    logits, _ = model(ids[:, :-1])
    return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


@pytest.mark.parametrize("name", PLANS)
def test_losses_in_chunks_are_those_of_the_whole_forward(name, model_of, text, monkeypatch):
    monkeypatch.setattr(position, "CHUNK_SIZE", 7)
    monkeypatch.setattr(cross_entropy, "LOGITS_AT_ONCE", 41 * 3)
    model = model_of(name)
    ids = torch.stack([text(25, seed) for seed in (0, 1)])
    torch.testing.assert_close(token_losses(model, ids), direct(model, ids), rtol=0, atol=1e-12)


def test_means_are_over_the_windows_that_reach_so_far(model_of, text):
    model = model_of("RoPE")
    long, short = text(13, 0)[None], text(6, 1)[None]
    result = loss_by_position(model, [long, short], 12)
    assert result.tokens.tolist() == [2] * 5 + [1] * 7
    sums = direct(model, long)[0]
    sums[:5] += direct(model, short)[0]
    bins = result.bins([4, 8, 12])
    assert [(each.first, each.last, each.tokens) for each in bins] == [(1, 4, 8), (5, 8, 5), (9, 12, 4)]
    for each in bins:
        assert each.loss == pytest.approx(float(sums[each.first - 1 : each.last].sum()) / each.tokens, rel=1e-5)


@given(st.integers(1, 70_000))
def test_bins_rise_and_reach_to_the_end(length):
    for lasts in (logarithmic_bins(length), linear_bins(length)):
        assert lasts == sorted(set(lasts))
        assert lasts[0] >= 1
        assert lasts[-1] == length
    assert logarithmic_bins(length)[:-1] == [2**power for power in range(20) if 2**power < length]
    assert len(linear_bins(length)) == min(length, 16)


@given(st.integers(2, 60), st.integers(1, 59))
def test_every_token_is_a_target_once_but_the_first_and_the_rest(tokens, length):
    ids = torch.arange(tokens)
    if tokens <= length:
        return
    parts = split_windows(ids, length)
    assert [part.tolist() for part in split_windows(ids, length, 2)] == [part.tolist() for part in parts[:2]]
    targets = torch.cat([part[0, 1:] for part in parts])
    assert targets.tolist() == list(range(1, (tokens - 1) // length * length + 1))
    assert all(part.shape == (1, length + 1) for part in parts)


TEXT = "The whale swims past the ship, and the ship sinks. " * 4


def test_the_experiment_is_what_a_direct_computation_gives(reading_model, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT)
    config = dataclasses.replace(model_config("llama-L3-D64", 257), head_size=16)
    models = {
        "llama": reading_model(tmp_path / "runs" / "llama", config),
        "finch": reading_model(tmp_path / "runs" / "finch", model_config("finch-L3-D64", 257)),
    }
    interpolated = Decoder(dataclasses.replace(config, rope=RopeConfig(rescale=4, rebase=2)))
    interpolated.load_state_dict(models["llama"].state_dict())
    models["llama, rescale=4, rebase=2"] = interpolated
    folders = [str(tmp_path / "runs" / name) for name in ("llama", "finch")]
    args = ["experiment", "position", *folders, "--text", str(tmp_path / "text.txt"), "-o", str(tmp_path / "out")]
    args += ["--length", "64", "--rope", "rescale=4,rebase=2", "rescale=1"]  # the second is Llama's own
    assert run(args) == 0
    capsys.readouterr()
    ids = torch.tensor(ByteTokenizer().encode(TEXT))
    expected = {
        name: torch.cat([direct(model, part) for part in split_windows(ids, 64)]).mean(0)
        for name, model in models.items()
    }
    lines = (tmp_path / "out" / "results.md").read_text().splitlines()
    headings = lines[lines.index("| --- | ---: | ---: | ---: |") - 1].strip("| ").split(" | ")
    assert headings == ["tokens read", "llama", "llama, rescale=4, rebase=2", "finch"]
    for words, first, last in (("1", 0, 0), ("33-64", 32, 63), ("61-64", 60, 63)):
        (line,) = (line.strip("| ").split(" | ") for line in lines if line.startswith(f"| {words} |"))
        for name, loss in zip(headings[1:], line[1:], strict=True):
            assert float(loss) == pytest.approx(float(expected[name][first : last + 1].mean()), abs=1e-4)
    assert not torch.allclose(expected["llama"], expected["llama, rescale=4, rebase=2"], atol=1e-3)
    assert (tmp_path / "out" / "loss_by_position.png").read_bytes().startswith(b"\x89PNG")
    assert run(args) == 0  # all curves are known
    assert ": window " not in capsys.readouterr().err
    assert run([*args, "--max-windows", "1"]) == 0
    assert capsys.readouterr().err.count(": window 1 of 1") == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--length", "5000"], "the text has .* tokens, one window needs 5,001"),
        (["--rope", "rescale=2"], "no model here has any"),
        (["--rope", "rescale=0"], "must be above 0"),
        (["--rope", "none"], "give rescale or rebase"),
        (["--text", "nowhere.txt"], "nowhere.txt does not exist"),
    ],
)
def test_mistakes_are_reported_in_one_line(flags, message, reading_model, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT)
    reading_model(tmp_path / "finch", model_config("finch-L3-D64", 257))
    start = ["experiment", "position", str(tmp_path / "finch"), "-o", str(tmp_path / "out"), "--length", "64"]
    assert run([*start, "--text", str(tmp_path / "text.txt"), *flags]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
