"""A pass key in a long text: where it is hidden, what is asked, and what counts as found."""

import json
from pathlib import Path

import pytest
import torch

from goldfinch.cli.main import run
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.errors import UserError
from goldfinch.experiments import needle
from goldfinch.experiments.needle import FILLER, NUM_KEYS, measure_needle
from goldfinch.inference.language_model import LanguageModel


@pytest.fixture(scope="module")
def lm(small_config, small_model):
    config = small_config("finch_c2", "finch_c2", "gold", vocab_size=257)
    return LanguageModel(small_model(config, torch.float32), ByteTokenizer())


def texts(lm, monkeypatch, **options):
    """The texts that are asked about, and the keys to choose from."""
    seen = []

    def answers(sequence, continuations):
        text = lm.decode(sequence.key_cache.ids(0, len(sequence)))
        keys = [lm.decode(list(each.ids)).strip() for each in continuations]
        seen.append((text, keys))
        return [([-1.0] * len(each.ids), False) for each in continuations]

    monkeypatch.setattr(needle, "score_continuations", answers)
    measure_needle(lm, progress=lambda cell: None, **{"haystack": "filler", "trials": 1} | options)
    return seen


def test_the_key_is_at_every_depth_of_texts_of_the_right_length(lm, monkeypatch):
    seen = texts(lm, monkeypatch, lengths=[400], num_depths=3)
    places = []
    for text, keys in seen:
        assert len(text) == 400
        assert text.endswith("What is the pass key? The pass key is")
        hidden = f"\nThe pass key is {keys[0]}. Remember it. {keys[0]} is the pass key.\n"
        places.append(text.index(hidden))
        around = text.replace(hidden, "").removesuffix("\nWhat is the pass key? The pass key is")
        assert around == (FILLER * 9)[: len(around)]
        assert len(set(keys)) == NUM_KEYS
    assert places == [0, round(len(around) / 2), len(around)]


def test_every_trial_has_another_key_and_moby_dick_another_place(lm, monkeypatch):
    seen = texts(lm, monkeypatch, lengths=[300], num_depths=1, trials=3, haystack="moby-dick")
    assert len({keys[0] for _, keys in seen}) == len({text[:20] for text, _ in seen}) == 3


class Knowing:
    """A model that knows the key if the needle is in the first half."""

    def __call__(self, sequence, continuations):
        text = bytes(sequence.key_cache.ids(0, len(sequence)).tolist())
        found = text.index(b"The pass key") < len(text) / 2
        right, *others = continuations
        return [
            ([-0.1 if found else -3.0] * len(right.ids), found),
            *(([-2.0] * len(each.ids), False) for each in others),
        ]


def test_what_counts_as_found(lm, monkeypatch):
    monkeypatch.setattr(needle, "score_continuations", Knowing())
    cells = []
    assert measure_needle(lm, [500, 300], 2, 2, "filler", cells.append) == cells
    assert [(cell.length, cell.depth, cell.exact, cell.chosen) for cell in cells] == [
        (300, 0.0, 1.0, 1.0),
        (300, 1.0, 0.0, 0.0),
        (500, 0.0, 1.0, 1.0),
        (500, 1.0, 0.0, 0.0),
    ]
    assert [cell.nats_per_token for cell in cells] == pytest.approx([0.1, 3.0, 0.1, 3.0])


def test_scores_are_those_of_the_whole_text(lm, monkeypatch):
    seen = texts(lm, monkeypatch, lengths=[200], num_depths=2)
    monkeypatch.undo()
    for cell, (text, keys) in zip(measure_needle(lm, [200], 2, 1, "filler", lambda cell: None), seen, strict=True):
        ids = lm.encode(f"{text} {keys[0]}")
        logprobs = lm.logits(ids[None])[0, :-1].double().log_softmax(-1).gather(1, ids[1:, None])[-6:]
        assert cell.nats_per_token == pytest.approx(-logprobs.mean().item(), abs=1e-4)


def test_the_command_writes_a_table_and_a_plot_of_depth_against_length(lm, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lm.save("model")
    words = "experiment needle model --lengths 200 300 --num-depths 2 --trials 1 -o out --json"
    assert run(words.split()) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [(cell["length"], cell["depth"]) for cell in printed] == [(200, 0), (200, 1), (300, 0), (300, 1)]
    assert json.loads(Path("out/results.json").read_text())["cells"] == printed
    assert Path("out/needle.png").read_bytes().startswith(b"\x89PNG")
    assert Path("out/results.md").read_text().count("\n| ") == 6


def test_a_text_must_have_room_for_the_key(lm):
    with pytest.raises(UserError, match="no room"):
        measure_needle(lm, [50], 1, 1, "filler", lambda cell: None)
