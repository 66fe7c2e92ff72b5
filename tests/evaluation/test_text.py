"""The loss of plain text, against the whole forward."""

import json
import math

import pytest

from goldfinch.data.documents import Document
from goldfinch.evaluation.text import evaluate_text, write_text_report

TEXTS = ["Call me Ishmael. Some years ago", "never mind how long", "x"]


def documents():
    """The texts, the first in two pieces."""
    first, *rest = TEXTS
    yield Document(first[:10], source="a", continues=True)
    yield Document(first[10:], source="a")
    yield from (Document(text, source="b") for text in rest)


def test_all_of_a_document_is_context_or_a_window_and_every_token_counts_once(lm, direct):
    evaluation = evaluate_text(lm, documents(), windows=(7, 100))
    assert (evaluation.num_documents, evaluation.num_tokens) == (3, sum(map(len, TEXTS)))
    unlimited, narrow, wide = evaluation.losses
    end = lm.tokenizer.end_of_text
    nats = -sum(direct(lm, [end], text.encode())[0] for text in TEXTS)
    assert unlimited.nats_per_token == pytest.approx(nats / evaluation.num_tokens, abs=1e-4)
    assert unlimited.bits_per_byte == pytest.approx(nats / math.log(2) / evaluation.num_bytes, abs=1e-4)
    assert unlimited.perplexity == pytest.approx(math.exp(unlimited.nats_per_token))
    assert wide.nats_per_token == pytest.approx(unlimited.nats_per_token, abs=1e-5)
    nats = 0.0
    for text in TEXTS:
        ids = [end, *text.encode()]
        nats -= sum(direct(lm, ids[at : at + 1], ids[at + 1 : at + 8])[0] for at in range(0, len(ids) - 1, 7))
    assert narrow.nats_per_token == pytest.approx(nats / evaluation.num_tokens, abs=1e-4)
    for loss in evaluation.losses:
        assert sum(part.tokens for part in loss.by_position) == evaluation.num_tokens
        mean = sum(part.tokens * part.loss for part in loss.by_position) / evaluation.num_tokens
        assert mean == pytest.approx(loss.nats_per_token)
    assert narrow.by_position[-1].last == 7
    assert unlimited.by_position[-1].last == len(TEXTS[0])


def test_no_documents_have_no_loss(lm):
    assert evaluate_text(lm, [], windows=(7,)) is None


def test_the_report_has_a_table_a_plot_and_the_numbers(lm, tmp_path):
    evaluation = evaluate_text(lm, documents(), windows=(7,))
    write_text_report(evaluation, "some model", ["a.txt"], tmp_path, trained_length=7)
    assert "| windows of 7 tokens |" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "loss_by_position.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / "results.json").read_text())
    assert [each["perplexity"] for each in content["losses"]] == [each.perplexity for each in evaluation.losses]
