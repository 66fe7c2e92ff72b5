"""Sampling the next token from logits."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from goldfinch.errors import UserError
from goldfinch.inference.sampling import Sampling

GREEDY_BELOW = 1e-6
"""Below this temperature the most likely token is certain, and dividing by it would overflow."""


class NanLogitsError(UserError):
    """The model is at fault, not what it is asked."""


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

    def sample(self, logits: Tensor, allowed: Tensor | None = None) -> int:
        """Choose a token.

        Args:
            logits: (V,), of any float dtype and device.
            allowed: (V,) bool, on the CPU: which tokens may be chosen; None for all.

        Raises:
            NanLogitsError: a logit is NaN.
            UserError: a token of `logit_bias` is not in the vocabulary, or no token is left.
        """
        logits = logits.float().cpu()
        if logits.max().isnan():
            raise NanLogitsError("the model's logits contain NaN: its weights are corrupt, or overflow in this dtype")
        logits = self._adjusted(logits)
        if allowed is not None:
            logits = logits.where(allowed, -torch.inf)
        token = self._choose(logits)
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
        highest = logits.max()
        if highest.isnan() or highest == -torch.inf:
            raise UserError("logit_bias and penalties leave no token to choose that is allowed: use smaller numbers")
        if settings.temperature < GREEDY_BELOW or highest == torch.inf:
            return int(logits.argmax())
        scaled = logits / settings.temperature
        if settings.top_k or settings.top_p < 1:
            scaled = self._most_likely(scaled)
        if settings.min_p:
            scaled = scaled.where(scaled >= scaled.max() + math.log(settings.min_p), -torch.inf)
        # One random number per token, whatever was dropped: the same seed makes comparable choices.
        cumulative = scaled.double().softmax(-1).cumsum(0)
        point = torch.rand((), generator=self._generator, dtype=torch.float64) * cumulative[-1]
        choice = int(torch.searchsorted(cumulative, point, right=True))
        if choice >= len(scaled) or scaled[choice] == -torch.inf:  # rounding at the very end
            choice = int((scaled > -torch.inf).nonzero()[-1])
        return choice

    def _most_likely(self, scaled: Tensor) -> Tensor:
        """The logits, with -inf for all tokens that top_k or top_p drop; top_p is a fraction of what top_k keeps."""
        ordered = torch.from_numpy(np.sort(scaled.numpy())).flip(0)  # PyTorch's sort takes thirty times as long
        if self._sampling.top_k:
            ordered = ordered[: self._sampling.top_k]
        # A token stays while those before it have not reached top_p: the most likely one always does.
        cumulative = ordered.double().softmax(-1).cumsum(0)
        num_kept = min(1 + int(torch.searchsorted(cumulative, self._sampling.top_p)), len(ordered))
        lowest = ordered[num_kept - 1]
        is_kept = scaled > lowest
        # Of equally likely tokens, those with the lowest ids stay.
        equal = (scaled == lowest).nonzero()[:, 0]
        is_kept[equal[: num_kept - int(is_kept.sum())]] = True
        return scaled.where(is_kept, -torch.inf)
