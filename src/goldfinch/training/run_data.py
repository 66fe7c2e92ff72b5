"""What a run reads: the batches it learns from and the text that it is measured on."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from goldfinch.checkpoint.native import TOKENIZER
from goldfinch.data.batches import Batches, sequential_windows
from goldfinch.data.shards import TokenDataset
from goldfinch.data.tokenizers import Tokenizer, load_tokenizer
from goldfinch.errors import UserError
from goldfinch.training.config import TrainConfig
from goldfinch.training.processes import Processes


class RunData:
    """The data of a run.

    Args:
        config: the settings.
        processes: each gets its part of every training batch.

    Raises:
        UserError: the data does not fit the model, the context or the number of processes.
    """

    def __init__(self, config: TrainConfig, processes: Processes) -> None:
        if config.batch_size % processes.count:
            raise UserError(
                f"batch_size {config.batch_size} cannot be shared out evenly among {processes.count} processes"
            )
        self._context = config.context
        self.tokenizer = load_tokenizer(config.data / TOKENIZER)
        """Of all the text."""
        _check_vocabulary(config, self.tokenizer)
        self.token_bytes = torch.tensor([len(self.tokenizer.token_bytes(i)) for i in range(self.tokenizer.vocab_size)])
        """(V,) int64: bytes of text that each id stands for."""
        self.reset_after = self.tokenizer.end_of_text if config.document_resets else None
        """The id that ends documents, where they are kept apart."""
        train = TokenDataset.open(config.data, "train")
        self.batches = Batches(
            train, config.context, config.batch_size, config.seed, rank=processes.rank, world_size=processes.count
        )
        """This process's part of every training batch."""
        self.steps = config.steps or max(1, math.ceil(config.epochs * self.batches.windows / config.batch_size))
        """Steps of the whole run."""
        self._validation = TokenDataset.open(config.data, "validation")
        self._at_once = config.micro_batch_size or config.batch_size // processes.count

    def validation_windows(self, most_tokens: int) -> Iterator[Tensor]:
        """The validation split, or its first `most_tokens` targets unless 0, as `sequential_windows` gives them."""
        return sequential_windows(self._validation, self._context, self._at_once, most_tokens or None)

    def first_words(self) -> str:
        """How the validation text begins: about sixteen tokens of it."""
        ids = self._validation.tokens(0, min(16, len(self._validation))).tolist()
        return self.tokenizer.decode(ids)


def _check_vocabulary(config: TrainConfig, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > config.model.vocab_size:
        remedy = (
            f"set --model.vocab-size {tokenizer.vocab_size}"
            if config.initial is None
            else f"prepare it with the tokenizer that {config.initial} was trained with"
        )
        raise UserError(
            f"the tokenizer of {config.data} has {tokenizer.vocab_size} ids, the model only "
            f"{config.model.vocab_size}: {remedy}"
        )
