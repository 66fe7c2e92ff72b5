"""Models of different kinds with the same number of parameters."""

import dataclasses

from goldfinch.config import ModelConfig
from goldfinch.errors import UserError
from goldfinch.model.accounting import account

MULTIPLE = 8
"""Channel widths are multiples of this."""


def non_embedding_parameters(config: ModelConfig) -> int:
    """Parameters outside embedding and head, whose size the vocabulary decides."""
    costs = account(config)
    return costs.parameters - costs.embedding_parameters


def match_parameters(config: ModelConfig, target: int) -> ModelConfig:
    """The model with the channel width that brings `non_embedding_parameters` nearest to `target`; of two, the smaller.

    The channel mix is what every kind has, and its width the one size on which nothing else depends.

    Raises:
        UserError: it is so small that the nearest would be no channel mix at all.
    """
    narrow, wider = (dataclasses.replace(config, channel_width=MULTIPLE * steps) for steps in (1, 2))
    least = non_embedding_parameters(narrow)
    each = non_embedding_parameters(wider) - least
    steps = -(-(2 * (target - least) - each) // (2 * each))  # rounded to the nearest, halves down
    if steps < 0:
        raise UserError(
            f"{target:,} parameters outside embedding and head are too few for {config.num_layers} layers of width "
            f"{config.width} ({config.time_mixes[0]}, ...): these take at least {least:,}"
        )
    return dataclasses.replace(config, channel_width=MULTIPLE * (1 + steps))
