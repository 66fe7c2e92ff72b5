"""What a run reads: the batches it learns from and the text that it is measured on."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from goldfinch.data.batches import sequential_windows
from goldfinch.data.tokenizers import Tokenizer
from goldfinch.data.training_data import TrainingData
from goldfinch.errors import UserError
from goldfinch.training.config import TrainConfig
from goldfinch.training.parallel.processes import Processes
from goldfinch.training.run.folder import check_data


class RunData:
    """The data of a run.

    Args:
        config: the settings.
        processes: each gets its part of every training batch.
        resume: check that the data is that of the run in `config.output`.

    Raises:
        UserError: the data is not that of the run, or does not fit the model, the sequence length or the number of
            processes.
    """

    def __init__(self, config: TrainConfig, processes: Processes, *, resume: bool = False) -> None:
        if config.batch_size % processes.world_size:
            raise UserError(
                f"batch_size {config.batch_size} cannot be shared out evenly among {processes.world_size} processes"
            )
        self._sequence_length = config.sequence_length
        data = TrainingData.open(config.data)
        self.fingerprint = data.fingerprint()
        """`TrainingData.fingerprint`."""
        if resume:
            check_data(config.output, config.data, self.fingerprint)
        self.tokenizer = data.tokenizer
        """Of all the text."""
        self.chat_template = data.chat_template
        """Of the conversations in it, if there are any."""
        _check_vocabulary(config, self.tokenizer)
        self.token_bytes = torch.tensor([len(self.tokenizer.token_bytes(i)) for i in range(self.tokenizer.vocab_size)])
        """(V,) int64: bytes of text per token id."""
        self.reset_after = self.tokenizer.end_of_text if config.document_resets else None
        """The id that ends documents, where they are kept apart."""
        self.batches = data.batches(
            config.sequence_length,
            config.batch_size,
            config.seed,
            rank=processes.rank,
            world_size=processes.world_size,
            num_workers=config.num_workers,
        )
        """This process's part of every training batch."""
        self.steps = config.steps or _steps_of_epochs(config, self.batches.num_windows)
        """Total number of steps."""
        self._validation = data.validation
        self._validation_tokens = sum(len(dataset) - 1 for dataset in data.validation.values())
        self._at_once = config.micro_batch_size or config.batch_size // processes.world_size

    def validation_windows(self, max_tokens: int) -> dict[str, Iterator[Tensor]]:
        """The validation split of each source by name, as `sequential_windows` gives it.

        With `max_tokens`, about that many targets in total: the same fraction of each, from its start.
        """
        total = sum(map(len, self._validation.values()))
        return {
            name: sequential_windows(
                dataset, self._sequence_length, self._at_once, -(-max_tokens * len(dataset) // total) or None
            )
            for name, dataset in self._validation.items()
        }

    def is_whole_validation(self, max_tokens: int) -> bool:
        """Whether `validation_windows(max_tokens)` leaves nothing out."""
        return not 0 < max_tokens < self._validation_tokens

    def first_words(self) -> str:
        """How the validation text begins: about sixteen tokens of it."""
        dataset = next(iter(self._validation.values()))
        ids = dataset.tokens(0, min(16, len(dataset))).tolist()
        return self.tokenizer.decode(ids)


def _steps_of_epochs(config: TrainConfig, windows: int | None) -> int:
    if windows is None:
        raise UserError(f"{' '.join(config.data)}: a stream has no known length: give --steps")
    return max(1, math.ceil(config.epochs * windows / config.batch_size))


def _check_vocabulary(config: TrainConfig, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > config.model.vocab_size:
        remedy = (
            f"set --model.vocab-size {tokenizer.vocab_size}"
            if config.initial is None
            else f"prepare it with the tokenizer that {config.initial} was trained with"
        )
        raise UserError(
            f"the tokenizer of {config.data[0]} has {tokenizer.vocab_size} ids, the model only "
            f"{config.model.vocab_size}: {remedy}"
        )
