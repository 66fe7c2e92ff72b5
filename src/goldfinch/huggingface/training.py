"""What `Trainer` and PEFT take to train as `goldfinch train` does."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal, cast

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import IterableDataset, get_worker_info

from goldfinch.data.training_data import TrainingData
from goldfinch.errors import UserError
from goldfinch.huggingface.heads import IGNORED, GoldFinchForCausalLM
from goldfinch.huggingface.modeling import GoldFinchModel, GoldFinchPreTrainedModel
from goldfinch.training.config import OptimizerConfig
from goldfinch.training.documents import document_positions, find_document_starts
from goldfinch.training.optimizer.groups import build_optimizer
from goldfinch.training.optimizer.schedule import learning_rate


class PreparedDataset(IterableDataset[dict[str, Tensor]]):
    """Windows of text from `goldfinch data prepare`, in the order in which `goldfinch train` reads them, without end.

    >>> dataset = PreparedDataset("data/books", sequence_length=512, batch_size=8)
    >>> arguments = TrainingArguments("runs/books", max_steps=1000, per_device_train_batch_size=8)
    >>> Trainer(model, arguments, train_dataset=dataset).train()

    Each has `input_ids` and `labels`, (sequence_length + 1,) int64.

    Args:
        data: a folder, or several, FOLDER=WEIGHT each, as for `goldfinch train --data`.
        sequence_length: tokens that are learned from in each window.
        batch_size: windows of a step, on all devices together.
        seed: of the order.
        document_resets: keep the documents of a window apart: with `position_ids`, which return to 0 where one starts.

    Raises:
        UserError: a folder is not a data directory, or has fewer tokens than a window.
    """

    def __init__(
        self,
        data: str | Sequence[str],
        sequence_length: int,
        batch_size: int,
        seed: int = 0,
        document_resets: bool = False,
    ) -> None:
        opened = TrainingData.open([data] if isinstance(data, str) else list(data))
        self._batches = opened.batches(sequence_length, batch_size, seed)
        self._end_of_text = opened.tokenizer.end_of_text if document_resets else None

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """One window after another; several workers of a DataLoader take whole batches in turn."""
        worker = get_worker_info()
        for step in itertools.count(worker.id if worker else 0, worker.num_workers if worker else 1):
            windows, answers = self._batches.batch(step), self._batches.answers(step)
            labels = windows.clone() if answers is None else windows.where(answers, IGNORED)
            labels[:, 0] = IGNORED  # no token predicts it, and `Trainer` divides by the number of labels
            more = {}
            if self._end_of_text is not None:
                starts = find_document_starts(windows, self._end_of_text)
                labels[starts] = IGNORED
                more["position_ids"] = document_positions(starts)
            columns = {"input_ids": windows, "labels": labels} | more
            for row in range(len(windows)):
                yield {name: values[row] for name, values in columns.items()}


def build_optimizers(model: GoldFinchForCausalLM, config: OptimizerConfig, steps: int) -> tuple[Optimizer, LambdaLR]:
    """The optimizer and the learning rates of `goldfinch train`, for `Trainer(optimizers=...)`.

    The paper's by default: weight decay for matrices only, a learning rate of its own for the base decay, a quarter
    cosine after ten steps of warm-up. `Trainer` clips gradients by itself (`max_grad_norm`).

    Args:
        model: parameters that do not require gradients are left out.
        config: with AdamW or Muon; patterns of `learning_rate_multipliers` are those of `goldfinch train`.
        steps: number of optimizer steps, `TrainingArguments.max_steps`.

    Raises:
        UserError: the learning rate is 0, or `learning_rate_multipliers` match nothing or freeze everything.
    """
    if not config.learning_rate:
        raise UserError("optimizer.learning_rate must be above 0")
    optimizer = build_optimizer(model.model.decoder(model.lm_head), config)

    def relative_rate(multiplier: float, step: int) -> float:
        return multiplier * learning_rate(step, min(1.0, step / steps), config) / config.learning_rate

    rates: list[Callable[[int], float]] = [
        partial(relative_rate, group["rate_multiplier"]) for group in optimizer.param_groups
    ]
    return optimizer, LambdaLR(optimizer, rates)


def lora_targets(model: GoldFinchPreTrainedModel, layers: Literal["all", "gold"] = "all") -> list[str]:
    """Names of linear layers, for `LoraConfig(target_modules=...)`.

    Args:
        model: one of the classes here.
        layers: "all": every one but the head. "gold": those of GOLD layers only; a saved context does not depend on
            them, so it stays valid.

    Raises:
        UserError: there are no GOLD layers.
    """
    body = cast(GoldFinchModel, model.base_model)
    adapted = body if layers == "all" else body.blocks[model.config.to_model_config().first_gold_layer :]
    modules = set(adapted.modules())
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module in modules]
    if not names:
        raise UserError("this model has no GOLD layers to adapt: `goldfinch upgrade` adds some to a Finch")
    return names
