"""lm-eval's own client of completions: the same numbers as in the library."""

import pytest

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

from goldfinch.huggingface.repository import export_repository

PAIRS = [
    ("Call me", " Ishmael."),
    ("Some years ago, never mind how long precisely,", " I thought I would sail"),
    ("Some years ago, never mind how long precisely,", " a little"),
]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("batch_size", [1, 3])
def test_continuations_have_the_librarys_log_probabilities(url, lm, tmp_path, batch_size):
    lm.save(tmp_path / "model")
    export_repository(tmp_path / "model", tmp_path / "hf", 1 << 30)
    model = LocalCompletionsAPI(
        base_url=f"{url}/v1/completions",
        model="small",
        tokenizer_backend="huggingface",
        tokenizer=str(tmp_path / "hf"),
        batch_size=batch_size,
    )
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(PAIRS)]
    for (logprob, is_greedy), (prefix, text) in zip(
        model.loglikelihood(requests, disable_tqdm=True), PAIRS, strict=True
    ):
        expected = lm.read(prefix).score(text)
        assert logprob / len(text) == pytest.approx(expected.total / len(text), abs=1e-4)
        assert is_greedy == expected.is_greedy
