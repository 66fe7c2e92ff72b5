"""The training loop."""

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from goldfinch.checkpoint.native import CONFIG, TOKENIZER, WEIGHTS, read_config, save_description, save_weights
from goldfinch.data.batches import Batches, sequential_windows
from goldfinch.data.shards import TokenDataset
from goldfinch.data.tokenizers import Tokenizer, load_tokenizer
from goldfinch.errors import UserError
from goldfinch.files import write_text
from goldfinch.heap import keep_freed_memory
from goldfinch.inference.language_model import LanguageModel
from goldfinch.model import Decoder
from goldfinch.model.initialization import initialize
from goldfinch.training.block_plan import apply_block_plan
from goldfinch.training.checkpoint import FOLDER, Progress, list_checkpoints, load_checkpoint, save_checkpoint
from goldfinch.training.config import TrainConfig
from goldfinch.training.divergence import Diverged, first_bad_tensor
from goldfinch.training.interruption import Interrupted, stop_signals
from goldfinch.training.loss import Validation, next_token_loss, validate
from goldfinch.training.metrics import FILE as METRICS
from goldfinch.training.metrics import Metrics
from goldfinch.training.optimizer import build_optimizer, set_learning_rate
from goldfinch.training.schedule import learning_rate

SETTINGS, SAMPLES = "training.json", "samples.txt"


class Reporter(Protocol):
    """Told what happens while a model trains; the command line shows it."""

    def start(self, config: TrainConfig, step: int, steps: int) -> None:
        """The run starts, or resumes after `step` of `steps`."""

    def compiled(self, seconds: float) -> None:
        """Blocks are compiled (`TrainConfig.compile`): the first step took this much longer than the second."""

    def step(self, record: dict[str, Any], done: float) -> None:
        """One optimizer step is done; `record` is its line of metrics.jsonl, `done` the part of the run, up to 1."""

    def validation(self, step: int, result: Validation) -> None:
        """A validation is done."""

    def sample(self, step: int, text: str) -> None:
        """The model has written a sample, its prompt included."""


def read_settings(run: Path) -> TrainConfig:
    """The settings that a run was started with.

    Raises:
        UserError: the folder holds no run.
    """
    path = run / SETTINGS
    try:
        return TrainConfig.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{run} holds no training run: {SETTINGS} is missing") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is broken: {error}") from error


def resolve_device(config: TrainConfig) -> tuple[torch.device, torch.dtype]:
    """The device to train on, and the type of its matrix products (float32, or bfloat16 under autocast)."""
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    native = torch.cpu._is_avx512_bf16_supported() if device.type == "cpu" else True
    bf16 = config.precision == "bf16" or (config.precision == "auto" and native)
    return device, torch.bfloat16 if bf16 else torch.float32


class Trainer:
    """One run, from its settings to its final weights.

    Args:
        config: the settings.
        reporter: is told of every step.
        resume: go on from the newest checkpoint in `config.output`; otherwise the folder must hold no run.

    Raises:
        UserError: the data, the tokenizer and the model do not fit, or the folder is not as it should be.
    """

    def __init__(self, config: TrainConfig, reporter: Reporter, resume: bool = False) -> None:
        keep_freed_memory()
        self._device, self._dtype = resolve_device(config)
        # Stored resolved: a run goes on in the precision that it began with, whatever machine it moves to.
        config = dataclasses.replace(config, precision="bf16" if self._dtype == torch.bfloat16 else "fp32")
        self._config = config
        self._reporter = reporter
        self._run = config.output
        self._tokenizer = load_tokenizer(config.data / TOKENIZER)
        self._train = TokenDataset.open(config.data, "train")
        self._validation = TokenDataset.open(config.data, "validation")
        _check_vocabulary(config, self._tokenizer)
        self._token_bytes = torch.tensor(
            [len(self._tokenizer.token_bytes(i)) for i in range(self._tokenizer.vocab_size)]
        )
        self._batches = Batches(self._train, config.context, config.batch_size, config.seed)
        self._steps = config.steps or max(1, math.ceil(config.epochs * self._batches.windows / config.batch_size))

        with torch.device("meta"):
            self._model = Decoder(config.model)
        self._model.to_empty(device=self._device)
        initialize(self._model, config.seed)
        apply_block_plan(self._model, activation_checkpointing=config.activation_checkpointing, compiled=config.compile)
        self._optimizer = build_optimizer(self._model, config.optimizer)
        self._progress = self._resume() if resume else self._begin()
        self._metrics = Metrics(self._run, self._progress.step)
        self._start = self._progress

    def _begin(self) -> Progress:
        if (self._run / SETTINGS).exists():
            raise UserError(f"{self._run} holds a run already: go on with `goldfinch train --resume {self._run}`")
        taken = [name for name in (CONFIG, WEIGHTS, TOKENIZER, FOLDER, METRICS) if (self._run / name).exists()]
        if taken or self._run.is_file():
            raise UserError(f"{self._run / ''.join(taken[:1])} is in the way: choose another output folder")
        save_description(self._run, self._config.model, self._tokenizer)
        self._write_settings()
        return Progress()

    def _resume(self) -> Progress:
        if read_config(self._run) != self._config.model:
            raise UserError(f"{self._run} holds another model than these settings describe: choose another output")
        checkpoints = list_checkpoints(self._run)
        progress = load_checkpoint(checkpoints[-1], self._model, self._optimizer) if checkpoints else Progress()
        self._write_settings()
        return progress

    def _write_settings(self) -> None:
        write_text(self._run / SETTINGS, json.dumps(self._config.to_dict(), indent=2) + "\n")

    def train(self) -> Validation:
        """Train to the last step.

        Returns:
            The validation of the final weights, on the whole split.

        Raises:
            Diverged: a loss or gradient is not finite; what was good is saved.
            Interrupted: Ctrl-C or SIGTERM; all is saved.
        """
        config = self._config
        self._reporter.start(config, self._progress.step, self._steps)
        with stop_signals() as stop:
            while self._done() < 1:
                self._step()
                step, last = self._progress.step, self._done() >= 1
                if step % config.validate_every == 0 and not last:
                    self._validate(config.validation_tokens)
                if stop.is_set() or step % config.save_every == 0 or last:
                    self._save()
                if config.sample_every and (step % config.sample_every == 0 or last):
                    self._sample()
                if stop.is_set() and not last:
                    raise Interrupted(
                        f"stopped after step {step} of {self._steps}, all saved; "
                        f"go on with: goldfinch train --resume {self._run}"
                    )
        result = self._validate(0)
        self._metrics.plot()
        return result

    def _done(self) -> float:
        """Part of the run that is done: of its steps, or of its time where that is ahead."""
        by_steps = self._progress.step / self._steps
        by_clock = self._progress.seconds / (60 * self._config.minutes) if self._config.minutes else 0.0
        return min(max(by_steps, by_clock), 1.0)

    def _step(self) -> None:
        config, step = self._config, self._progress.step
        started = time.monotonic()
        windows = self._batches.batch(step).to(self._device)
        rate = learning_rate(step, self._done(), config.optimizer)
        set_learning_rate(self._optimizer, rate)
        loss = self._accumulate(windows)
        norm = float(torch.nn.utils.clip_grad_norm_(self._model.parameters(), config.optimizer.clip))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._diverged(windows, loss, norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        seconds = time.monotonic() - started
        tokens = windows[:, 1:].numel()
        self._progress = Progress(step=step + 1, seconds=self._progress.seconds + seconds)
        record = {
            "step": step + 1,
            "tokens": (step + 1) * tokens,
            "loss": loss,
            "learning_rate": rate,
            "gradient_norm": norm,
            "tokens_per_second": round(tokens / seconds, 1),
        }
        self._metrics.add(**record)
        self._reporter.step(record, self._done())
        if config.compile and step == self._start.step + 1:
            first = self._progress.seconds - self._start.seconds - seconds
            self._reporter.compiled(first - seconds)

    def _accumulate(self, windows: Tensor) -> float:
        """Add up the gradients of the mean loss over a batch, (B, T + 1); returns that loss, nats per token."""
        tokens = windows[:, 1:].numel()
        losses = []
        for part in windows.split(self._config.micro_batch_size or len(windows)):
            with self._autocast():
                loss = next_token_loss(self._model, part) / tokens
            loss.backward()
            losses.append(loss.detach())
        # Not in the loop: a GPU would have to finish each part before the next one is sent.
        return sum(loss.item() for loss in losses)

    def _diverged(self, windows: Tensor, loss: float, norm: float) -> None:
        step = self._progress.step
        with self._autocast():
            culprit = first_bad_tensor(self._model, windows)
        self._optimizer.zero_grad()
        if self._weights_are_finite():
            kept = f"the weights before this step are in {self._save()}"
        else:
            kept = f"the last good weights are in {next(iter(list_checkpoints(self._run)[::-1]), 'no checkpoint yet')}"
        starts = ", ".join(str(start) for start in self._batches.window_starts(step)[:4])
        raise Diverged(
            f"step {step + 1}: loss {loss:g}, gradient norm {norm:g}; first bad tensor: {culprit}; "
            f"batch {step} of {self._config.data} (windows at tokens {starts}, ...); "
            f"{kept}; resume with a lower --optimizer.learning-rate"
        )

    def _weights_are_finite(self) -> bool:
        return all(bool(parameter.isfinite().all()) for parameter in self._model.parameters())

    def _validate(self, most_tokens: int) -> Validation:
        config, step = self._config, self._progress.step
        size = config.micro_batch_size or config.batch_size
        windows = sequential_windows(self._validation, config.context, size, most_tokens or None)
        with self._autocast():
            result = validate(self._model, (part.to(self._device) for part in windows), self._token_bytes)
        self._metrics.add(
            step=step,
            tokens=step * config.batch_size * config.context,
            validation_loss=result.loss,
            bits_per_byte=result.bits_per_byte,
        )
        self._metrics.plot()
        self._reporter.validation(step, result)
        return result

    def _sample(self) -> None:
        config, step = self._config, self._progress.step
        lm = LanguageModel(self._model, self._tokenizer)
        prompt = config.sample_prompt or self._first_words()
        with self._autocast():
            pieces = lm.read(prompt).generate(max_tokens=config.sample_tokens, temperature=0.8, top_p=0.9, seed=step)
            text = prompt + "".join(pieces)
        with (self._run / SAMPLES).open("a", encoding="utf-8") as file:
            file.write(f"--- step {step}\n{text}\n\n")
        self._reporter.sample(step, text)

    def _first_words(self) -> str:
        """How the validation text begins: about sixteen tokens of it."""
        ids = self._validation.tokens(0, min(16, len(self._validation))).tolist()
        return self._tokenizer.decode(ids)

    def _save(self) -> Path:
        """A checkpoint to resume from, and the weights as `goldfinch.load` reads them; never broken ones."""
        if not self._weights_are_finite():
            self._diverged(self._batches.batch(self._progress.step).to(self._device), math.nan, math.nan)
        keep = self._config.keep_checkpoints
        path = save_checkpoint(self._run, self._model, self._optimizer, self._progress, keep)
        save_weights(self._run, self._model.state_dict())
        return path

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._dtype == torch.bfloat16)


def _check_vocabulary(config: TrainConfig, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"the tokenizer of {config.data} has {tokenizer.vocab_size} ids, the model only "
            f"{config.model.vocab_size}: set --model.vocab-size {tokenizer.vocab_size}"
        )
