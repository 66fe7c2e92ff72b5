"""Choosing the next token."""

import torch
from torch import Tensor

from goldfinch.errors import UserError
from goldfinch.inference.sampling import Sampling


class Sampler:
    """Draws one token after the other for one sequence; remembers what it drew for the penalties.

    Args:
        sampling: the settings.
        seed: the same seed, settings and logits give the same tokens; None draws differently each time.
    """

    def __init__(self, sampling: Sampling, seed: int | None) -> None:
        self._sampling = sampling
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)
        self._occurrences: dict[int, float] = {}

    def draw(self, logits: Tensor) -> int:
        """(V,) logits of any float dtype and device -> a token id.

        Raises:
            UserError: a logit is NaN.
        """
        logits = logits.float().cpu()
        if logits.isnan().any():
            raise UserError("the model's logits are no numbers: its weights are broken, or overflow in this dtype")
        token = self._choose(logits)
        decay = self._sampling.penalty_decay
        self._occurrences = {seen: count * decay for seen, count in self._occurrences.items()}
        self._occurrences[token] = self._occurrences.get(token, 0.0) + 1.0
        return token

    def _choose(self, logits: Tensor) -> int:
        settings = self._sampling
        if self._occurrences and (settings.presence_penalty or settings.frequency_penalty):
            seen = torch.tensor(list(self._occurrences))
            counts = torch.tensor(list(self._occurrences.values()))
            penalty = settings.presence_penalty + counts * settings.frequency_penalty
            logits = logits.index_add(0, seen, -penalty)
        if settings.temperature == 0:
            return int(logits.argmax())
        probabilities, order = torch.softmax(logits / settings.temperature, dim=-1).sort(descending=True, stable=True)
        keep = torch.ones_like(probabilities, dtype=torch.bool)
        if settings.top_k:
            keep[settings.top_k :] = False
        # A token stays while those before it have not yet reached top_p: the likeliest one always does.
        keep &= probabilities.cumsum(0) - probabilities < settings.top_p
        keep &= probabilities >= settings.min_p * probabilities[0]
        choice = torch.multinomial(probabilities * keep, 1, generator=self._generator)
        return int(order[choice])
