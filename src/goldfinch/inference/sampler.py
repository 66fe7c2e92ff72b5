"""Sampling the next token from logits."""

from collections.abc import Iterable

import torch
from torch import Tensor

from goldfinch.errors import UserError
from goldfinch.inference.sampling import Sampling

# Most of the probability is in few tokens: sorting only these is exact wherever they reach top_p.
NUM_SORTED = 1024


class Sampler:
    """Samples the tokens of one sequence, one after another; remembers them for the penalties.

    The same settings, seed and logits give the same tokens.

    Args:
        sampling: the settings.
        prompt_ids: tokens before the first one that is sampled, for the repetition penalty.
    """

    def __init__(self, sampling: Sampling, prompt_ids: Iterable[int] = ()) -> None:
        self._sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)
        self._occurrences: dict[int, float] = {}
        self._seen = set(prompt_ids) if sampling.repetition_penalty != 1 else set()

    def sample(self, logits: Tensor) -> int:
        """(V,) logits of any float dtype and device -> a token id.

        Raises:
            UserError: a logit is NaN, or a token of `logit_bias` is not in the vocabulary.
        """
        logits = logits.float().cpu()
        if logits.isnan().any():
            raise UserError("the model's logits contain NaN: its weights are broken, or overflow in this dtype")
        token = self._choose(self._adjusted(logits))
        decay = self._sampling.penalty_decay
        if decay != 1:
            self._occurrences = {seen: count * decay for seen, count in self._occurrences.items()}
        self._occurrences[token] = self._occurrences.get(token, 0.0) + 1.0
        if self._sampling.repetition_penalty != 1:
            self._seen.add(token)
        return token

    def _adjusted(self, logits: Tensor) -> Tensor:
        """With the bias and the penalties."""
        settings = self._sampling
        if settings.logit_bias:
            outside = [token for token in settings.logit_bias if not 0 <= token < len(logits)]
            if outside:
                raise UserError(f"logit_bias names token {outside[0]}, which is outside the vocabulary")
            ids, values = list(settings.logit_bias), list(settings.logit_bias.values())
            logits = logits.index_add(0, torch.tensor(ids), torch.tensor(values, dtype=logits.dtype))
        if self._seen:
            seen = torch.tensor(sorted(token for token in self._seen if token < len(logits)))
            values_seen, penalty = logits[seen], settings.repetition_penalty
            logits = logits.index_copy(
                0, seen, torch.where(values_seen > 0, values_seen / penalty, values_seen * penalty)
            )
        if self._occurrences and (settings.presence_penalty or settings.frequency_penalty):
            counts = torch.tensor(list(self._occurrences.values()))
            penalties = settings.presence_penalty + counts * settings.frequency_penalty
            logits = logits.index_add(0, torch.tensor(list(self._occurrences)), -penalties)
        return logits

    def _choose(self, logits: Tensor) -> int:
        settings = self._sampling
        if settings.temperature == 0:
            return int(logits.argmax())
        probabilities = torch.softmax(logits.double() / settings.temperature, dim=-1)
        ids: Tensor | None = None
        if settings.top_k or settings.top_p < 1:
            probabilities, ids = self._most_likely(probabilities)
        if settings.min_p:
            probabilities = probabilities.where(probabilities >= settings.min_p * probabilities.max(), 0.0)
        # One random number per token, whatever was dropped: the same seed makes comparable choices.
        cumulative = probabilities.cumsum(0)
        point = torch.rand((), generator=self._generator, dtype=torch.float64) * cumulative[-1]
        choice = int(torch.searchsorted(cumulative, point, right=True))
        if choice >= len(probabilities) or probabilities[choice] == 0:  # rounding at the very end
            choice = int(probabilities.nonzero()[-1])
        return choice if ids is None else int(ids[choice])

    def _most_likely(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of top_k and top_p, the most likely first: their probabilities and ids."""
        settings, size = self._sampling, len(probabilities)
        num_sorted = min(settings.top_k or NUM_SORTED, size)
        kept, ids = probabilities.topk(num_sorted)
        if not settings.top_k and num_sorted < size and float(kept.sum()) < settings.top_p:
            kept, ids = probabilities.sort(descending=True, stable=True)
        # A token stays while those before it have not reached top_p: the most likely one always does.
        before = kept.cumsum(0) - kept
        return kept.where(before < settings.top_p, 0.0), ids
