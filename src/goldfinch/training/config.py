"""All settings of a training run, as plain frozen data."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from goldfinch.config import ModelConfig
from goldfinch.errors import UserError
from goldfinch.settings import from_plain
from goldfinch.training.recipes import MINIPILE_TOKENS

Precision = Literal["auto", "bf16", "fp32"]
OptimizerKind = Literal["adamw", "muon"]
Schedule = Literal["quarter_cosine", "cosine", "wsd"]
DecayShape = Literal["linear", "one_minus_sqrt"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer and its schedule; the defaults are the paper's (SPEC 8)."""

    kind: OptimizerKind = "adamw"
    """adamw; muon: torch.optim.Muon for the matrices inside the blocks and W_KD and W_KU, AdamW for all else. Its
    updates are scaled to the size of AdamW's, so that learning rate and weight decay mean the same."""
    learning_rate: float = 6e-4
    """After the warm-up."""
    final_learning_rate: float = 2e-4
    """At the last step."""
    schedule: Schedule = "quarter_cosine"
    """How the learning rate gets from one to the other: quarter_cosine is the paper's; cosine, a half one; wsd stays at
    the first until the last `decay_fraction` of the run (warm-up, stable, decay)."""
    decay_fraction: float = 0.2
    """Part of the run, at its end, in which wsd lowers the learning rate."""
    decay_shape: DecayShape = "linear"
    """How wsd lowers it: linear, or one_minus_sqrt, which falls fast at first."""
    warmup_steps: int = 10
    """Steps of linear warm-up."""
    warmup_start: float = 0.2
    """Fraction of the learning rate at the first step."""
    beta1: float = 0.9
    """Decay of the gradient's running mean, AdamW's."""
    beta2: float = 0.99
    """Decay of the squared gradient's running mean, AdamW's."""
    eps: float = 1e-8
    """Added to the root of the squared gradient's mean, AdamW's."""
    momentum: float = 0.95
    """Decay of the gradient's running mean, Muon's."""
    weight_decay: float = 0.001
    """On matrices only: not on loras, mixing vectors, norms, the bonus and the decay."""
    decay_rate_multiplier: float = 2.0
    """The recurrent layers' base decay learns this many times faster; `rates` come on top."""
    rates: tuple[str, ...] = ()
    """Learning rates of their own, as PATTERN=MULTIPLIER: `blocks.[0-7].*=0.1`, `head.*=2`. Patterns are shell-like, on
    parameter names; of several that match, the last one counts. 0 freezes: such parameters have no gradient and no
    optimizer state, and nothing below the lowest one that is trained is back-propagated through."""
    clip: float = 1.0
    """Largest norm of the whole gradient."""

    def __post_init__(self) -> None:
        if not 0 < self.decay_fraction <= 1:
            raise UserError(f"optimizer.decay_fraction must be above 0 and at most 1, not {self.decay_fraction}")
        self.rate_multipliers()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, the inverse of `from_dict`."""
        return dataclasses.asdict(self) | {"rates": list(self.rates)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "OptimizerConfig":
        """Build from plain JSON types; see `goldfinch.settings.from_plain` for what is refused."""
        return from_plain(cls, values)

    def rate_multipliers(self) -> list[tuple[str, float]]:
        """`rates`, each as its pattern and its multiplier."""
        return [_rate(text) for text in self.rates]


def gold_only(model: ModelConfig) -> tuple[str, ...]:
    """`OptimizerConfig.rates` that train the GOLD layers, the last norm and the head, and freeze everything below.

    What a saved context depends on (embedding, recurrent layers, W_KD) stays as it is, to the bit.

    Raises:
        UserError: there are no GOLD layers.
    """
    if not model.num_gold_layers:
        raise UserError("this model has no GOLD layers to train: `goldfinch upgrade` adds some to a Finch")
    gold = range(model.first_gold_layer, model.num_layers)
    return "*=0", *(f"blocks.{layer}.*=1" for layer in gold), "output_norm.*=1", "head.*=1"


def _rate(text: str) -> tuple[str, float]:
    pattern, _, number = text.rpartition("=")
    try:
        multiplier = float(number)
    except ValueError:
        multiplier = math.nan
    if not (pattern and 0 <= multiplier < math.inf):
        raise UserError(f"optimizer.rates must be PATTERN=MULTIPLIER, such as 'blocks.0.*=0.1', not {text!r}")
    return pattern, multiplier


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Stored as `training.json` in its output folder, which `--config` reads again."""

    model: ModelConfig
    """What to train."""
    initial: Path | None = None
    """Folder of a model to start from these weights instead of random ones; the model and the tokenizer are its own. Of
    its settings only model.rope may be changed: it holds no weights. Weights are trained in fp32, however stored."""
    data: tuple[str, ...]
    """Folder made by `goldfinch data prepare` or `data stream`. Several are mixed: FOLDER=WEIGHT ... gives each its
    part of all windows, FOLDER ... without weights takes them in proportion to their tokens."""
    output: Path
    """Folder of the run: weights, checkpoints, metrics, samples."""
    steps: int = 0
    """Optimizer steps; 0 for `epochs` passes over the data."""
    epochs: float = 1.0
    """Passes over the training tokens, where `steps` is 0."""
    minutes: float = 0.0
    """Longest time for the steps; 0 for no limit. Where the clock is ahead of the steps, the schedule follows it, so
    that the run ends at its final learning rate all the same; such a run does not repeat to the bit."""
    context: int = 1024
    """Tokens in one sequence."""
    batch_size: int = 64
    """Sequences in one optimizer step."""
    document_resets: bool = False
    """Keep the documents of a sequence apart: recurrent state, token shift, key memory and attention begin anew at
    each, and what predicts a document's first token from the one before it is no part of the loss, nor of the
    validation loss. False: a sequence is one text, as in the paper."""
    micro_batch_size: int = 0
    """Sequences that go through the model at once in each process; 0 for all of its part of the batch. Gradients add up
    to the same step."""
    replicas: int = 1
    """Groups of processes that each hold the whole model, spread within the group (HSDP); 1 spreads it over all
    processes. With several machines, as many groups as machines keep most traffic inside them."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer and its schedule."""
    precision: Precision = "auto"
    """bf16: autocast with fp32 weights; fp32; auto: bf16 where the hardware multiplies it natively.
    A run stores which one it was."""
    activation_checkpointing: bool = False
    """Keep only each block's inputs, and run the block again for its gradients: a twentieth of the activations, steps
    a sixth to a fifth slower, the same results to the bit."""
    compile: bool = False
    """Run blocks through torch.compile: steps of models with recurrent layers are about a fifth faster (CPU, fp32),
    those of Llama slower; after a minute or more of compiling, with other roundings. On CPUs it needs a C++ compiler.
    It pays in runs of more than some ten minutes."""
    workers: int = 1
    """Processes that tokenise a stream (`goldfinch data stream`) ahead of the steps; 0: between the steps. The order of
    the data does not depend on it."""
    device: str = "auto"
    """cpu, cuda, ...; auto: a GPU if there is one."""
    seed: int = 0
    """Of the initial weights and the order of the data."""
    validate_every: int = 200
    """Steps between validations; there is always one at the end."""
    validation_tokens: int = 262_144
    """Most tokens of a validation, from the start of the split; the last one reads all of it. 0 for all always."""
    save_every: int = 200
    """Steps between checkpoints; there is always one at the end."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay; older ones are removed once a newer one is whole."""
    keep_every: int = 0
    """Checkpoints whose step is a multiple of this stay for ever; 0 for none."""
    most_skipped_steps: int = 10
    """A step whose loss or gradient is not finite changes nothing and is counted; after more than this many in a row
    the run stops and names the first bad tensor. 0 to stop at once."""
    sample_every: int = 200
    """Steps between generated samples; 0 for none."""
    sample_prompt: str = ""
    """What samples go on from; the first words of the validation text if empty."""
    sample_tokens: int = 100
    """Length of a sample."""
    update_sizes_every: int = 50
    """Steps between measurements of how far a step moves each group of parameters; 0 for none."""
    peak_tflops: float = 0.0
    """What one device could reach, in TFLOPS, for the MFU in metrics.jsonl; 0: known for common GPUs, measured on
    others and on CPUs."""
    tensorboard: bool = False
    """Write event files for TensorBoard, too, in the run's folder `tensorboard`."""
    wandb: str = ""
    """Send metrics to the project of this name at Weights & Biases, too."""

    def __post_init__(self) -> None:
        at_least_one = ("context", "batch_size", "replicas", "validate_every", "save_every", "keep_checkpoints")
        for name in (*at_least_one, "sample_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        not_negative = ("steps", "minutes", "micro_batch_size", "validation_tokens", "keep_every", "most_skipped_steps")
        for name in (*not_negative, "sample_every", "update_sizes_every", "peak_tflops", "workers", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative: {getattr(self, name)}")
        if self.steps == 0 and not self.epochs > 0:
            raise UserError(f"epochs must be above 0, not {self.epochs}, or give steps")
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise UserError(
                f"batch_size {self.batch_size} must be a multiple of micro_batch_size {self.micro_batch_size}"
            )
        if self.precision not in get_args(Precision):
            raise UserError(f"unknown precision {self.precision!r}; known: {', '.join(get_args(Precision))}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, the inverse of `from_dict`."""
        values = dataclasses.asdict(self)
        paths = {name: str(values[name]) for name in ("output", "initial") if values[name] is not None}
        plain = {"model": self.model.to_dict(), "optimizer": self.optimizer.to_dict(), "data": list(self.data)}
        return values | plain | paths

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Build from plain JSON types; see `goldfinch.settings.from_plain` for what is refused."""
        return from_plain(cls, values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a dry run reckons with."""

    gpus: int = 8
    """Devices, one process each."""
    gpu_tflops: float = 989.0
    """Peak of one device in the precision of the run; 989 is an H100's in bf16."""
    utilisation: float = 0.4
    """Part of the peak that is reached (MFU)."""
    tokens: int = MINIPILE_TOKENS
    """Training tokens, where the run's length is given in epochs; the default is minipile's."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise UserError(f"{field.name} must be above 0, not {getattr(self, field.name)}")
        if self.utilisation > 1:
            raise UserError(f"utilisation is a part of the peak, at most 1, not {self.utilisation}")
