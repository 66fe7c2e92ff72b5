"""A small model that reads bytes, and log-probabilities by the whole forward."""

import pytest
import torch

from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.inference.language_model import LanguageModel


@pytest.fixture(scope="session")
def lm(small_config, small_model):
    config = small_config("finch_c2", "finch_c2", "gold", vocab_size=257)
    return LanguageModel(small_model(config, torch.float32), ByteTokenizer())


@pytest.fixture(scope="session")
def direct():
    """direct(lm, context, continuation) -> log-probability and whether it is greedy, from `lm.logits` of the whole."""

    def score(lm, context, continuation):
        ids = torch.tensor([*context, *continuation])
        rows = lm.logits(ids[None])[0, len(context) - 1 : -1].double()
        expected = ids[len(context) :]
        logprob = rows.log_softmax(-1).gather(1, expected[:, None]).sum().item()
        return logprob, bool((rows.argmax(-1) == expected).all())

    return score
