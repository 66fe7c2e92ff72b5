"""All settings of a training run, as plain frozen data."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from goldfinch.config import ModelConfig
from goldfinch.devices import canonical_dtype, check_device_name
from goldfinch.errors import UserError
from goldfinch.pretrained import find_model
from goldfinch.settings import convert_fields, from_plain
from goldfinch.training.recipes import MINIPILE_TOKENS

OptimizerKind = Literal["adamw", "muon"]
Schedule = Literal["quarter_cosine", "cosine", "wsd"]
DecayShape = Literal["linear", "one_minus_sqrt"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer and its schedule; the defaults are the paper's (SPEC 8)."""

    kind: OptimizerKind = "adamw"
    """adamw, or muon: torch.optim.Muon for the matrices inside the blocks and W_KD and W_KU, AdamW for the rest. Its
    updates are scaled to the size of AdamW's, so that learning rate and weight decay keep their meaning."""
    learning_rate: float = 6e-4
    """Peak learning rate, after warm-up."""
    final_learning_rate: float = 2e-4
    """Learning rate at the last step."""
    schedule: Schedule = "quarter_cosine"
    """How the learning rate decays: quarter_cosine is the paper's; cosine, the usual half cosine; wsd (warm-up, stable,
    decay) stays at the peak until the last `decay_fraction` of the run."""
    decay_fraction: float = 0.2
    """Fraction of the run, at its end, in which wsd decays the learning rate."""
    decay_shape: DecayShape = "linear"
    """Shape of the wsd decay: linear, or one_minus_sqrt, which falls fast at first."""
    warmup_steps: int = 10
    """Steps of linear warm-up."""
    warmup_start: float = 0.2
    """Fraction of the learning rate at the first step."""
    beta1: float = 0.9
    """AdamW: decay of the running mean of the gradient."""
    beta2: float = 0.99
    """AdamW: decay of the running mean of the squared gradient."""
    eps: float = 1e-8
    """AdamW: added to the denominator."""
    momentum: float = 0.95
    """Muon: decay of the running mean of the gradient."""
    weight_decay: float = 0.001
    """Of matrices only: not of low-rank parts, mixing vectors, norms, the bonus and the decay."""
    decay_learning_rate_multiplier: float = 2.0
    """Multiplies the learning rate of the recurrent layers' base decay, besides `learning_rate_multipliers`."""
    learning_rate_multipliers: tuple[str, ...] = ()
    """PATTERN=MULTIPLIER, such as `blocks.[0-7].*=0.1` or `head.*=2`. Patterns are shell-like, on parameter names; of
    several that match, the last one counts. 0 freezes: such parameters have no gradient and no optimizer state, and
    nothing is back-propagated below the lowest one that is trained."""
    max_gradient_norm: float = 1.0
    """The gradient is scaled down to this norm where it is larger."""

    def __post_init__(self) -> None:
        convert_fields(self, "optimizer.")
        if not 0 < self.decay_fraction <= 1:
            raise UserError(f"optimizer.decay_fraction must be above 0 and at most 1, not {self.decay_fraction}")
        for name in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optimizer.{name} must be at least 0 and below 1, not {getattr(self, name)}")
        not_negative = ("learning_rate", "final_learning_rate", "warmup_steps", "eps", "weight_decay")
        for name in (*not_negative, "decay_learning_rate_multiplier", "max_gradient_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"optimizer.{name} must be a number of at least 0, not {getattr(self, name)}")
        self.parsed_multipliers()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, the inverse of `from_dict`."""
        return dataclasses.asdict(self) | {"learning_rate_multipliers": list(self.learning_rate_multipliers)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "OptimizerConfig":
        """Build from plain JSON types; see `goldfinch.settings.from_plain` for what is refused."""
        return from_plain(cls, values)

    def parsed_multipliers(self) -> list[tuple[str, float]]:
        """`learning_rate_multipliers`, each as its pattern and its number."""
        return [_multiplier(text) for text in self.learning_rate_multipliers]


def gold_only(model: ModelConfig) -> tuple[str, ...]:
    """`OptimizerConfig.learning_rate_multipliers` that train the GOLD layers, the last norm and the head only.

    What a saved context depends on (embedding, recurrent layers, W_KD) is frozen: it stays as it is, to the bit.

    Raises:
        UserError: there are no GOLD layers.
    """
    if not model.num_gold_layers:
        raise UserError("this model has no GOLD layers to train: `goldfinch upgrade` adds some to a Finch")
    gold = range(model.first_gold_layer, model.num_layers)
    return "*=0", *(f"blocks.{layer}.*=1" for layer in gold), "output_norm.*=1", "head.*=1"


def _multiplier(text: str) -> tuple[str, float]:
    pattern, _, number = text.rpartition("=")
    try:
        multiplier = float(number)
    except ValueError:
        multiplier = math.nan
    if not (pattern and 0 <= multiplier < math.inf):
        raise UserError(
            f"optimizer.learning_rate_multipliers must be PATTERN=MULTIPLIER, such as 'blocks.0.*=0.1', not {text!r}"
        )
    return pattern, multiplier


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Stored as `training.json` in its output folder, which `--config` reads again."""

    model: ModelConfig
    """The model to train."""
    initial: Path | None = None
    """Start from the weights of this model folder instead of random ones, with its model and tokenizer. Only
    model.rope, which holds no weights, may be changed. Weights are trained in float32, however they are stored."""
    data: tuple[str, ...]
    """Folder from `goldfinch data prepare` or `data stream`. Several are mixed: FOLDER=WEIGHT ... gives each source its
    share of the sequences; without weights, shares are proportional to the number of tokens."""
    output: Path
    """Output folder: weights, checkpoints, metrics, samples."""
    steps: int = 0
    """Number of optimizer steps; 0 to use `epochs`."""
    epochs: float = 1.0
    """Number of passes over the training data, if `steps` is 0."""
    max_minutes: float = 0.0
    """Maximum time for the steps; 0 for no limit. If time runs out before the steps do, the learning rate schedule
    follows the clock, so that the run still ends at its final learning rate; such a run is not reproducible."""
    sequence_length: int = 1024
    """Tokens per sequence."""
    batch_size: int = 64
    """Sequences per optimizer step."""
    document_resets: bool = False
    """Keep the documents of a sequence apart: recurrent state, token shift, key cache and attention start over at each
    document, and the prediction of a document's first token from the document before it does not count in the loss.
    False: a sequence is one text, as in the paper."""
    micro_batch_size: int = 0
    """Sequences per forward pass in each process; 0 for its whole share of the batch. Gradients are accumulated to the
    same step."""
    num_replicas: int = 1
    """Groups of processes that each hold the whole model, spread within the group (HSDP); 1 spreads it over all
    processes. With several machines, as many groups as machines keep most traffic inside them."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer and its schedule."""
    dtype: str = "auto"
    """Dtype of matrix products: bfloat16 (autocast, with float32 weights) or float32; auto: bfloat16 where the
    processor or GPU multiplies it natively. A run records which one it used."""
    activation_checkpointing: bool = False
    """Keep only each block's inputs, and run the block again for its gradients: a twentieth of the activations, steps
    a sixth to a fifth slower, the same results to the bit."""
    compile: bool = False
    """Run blocks through torch.compile: steps of models with recurrent layers are about a fifth faster (CPU, fp32),
    those of Llama slower; after a minute or more of compiling, with other roundings. On CPUs it needs a C++ compiler.
    It pays in runs of more than some ten minutes."""
    num_workers: int = 1
    """Processes that tokenise a stream (`goldfinch data stream`) ahead of the steps; 0: between the steps. The order of
    the data does not depend on it."""
    device: str = "auto"
    """cpu, cuda or cuda:N; auto is a GPU if there is one."""
    seed: int = 0
    """Random seed for initialisation and data order."""
    validate_every: int = 200
    """Steps between validations, 0 for none; there is always one at the end."""
    max_validation_tokens: int = 262_144
    """Maximum tokens per validation, from the start of the split; the final one uses all of it. 0 for no limit."""
    save_every: int = 200
    """Steps between checkpoints; there is always one at the end."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep; older ones are removed once a newer one is complete."""
    keep_every: int = 0
    """Checkpoints whose step is a multiple of this are never removed; 0 for none."""
    max_skipped_steps: int = 10
    """A step whose loss or gradient is NaN or infinite is skipped; after more than this many in a row the run stops and
    names the first bad tensor. 0 to stop at once."""
    sample_every: int = 200
    """Steps between generated samples; 0 for none."""
    sample_prompt: str = ""
    """Prompt of the samples; if empty, the first words of the validation text."""
    sample_max_tokens: int = 100
    """Maximum number of tokens of a sample."""
    update_sizes_every: int = 50
    """Steps between measurements of the relative update size of each parameter group; 0 for none."""
    peak_tflops: float = 0.0
    """Peak TFLOPS of one device, for the MFU in metrics.jsonl; 0: known for common GPUs, measured on other devices."""
    tensorboard: bool = False
    """Also write TensorBoard event files, in the run's folder `tensorboard`."""
    wandb: str = ""
    """Also send metrics to this Weights & Biases project."""

    def __post_init__(self) -> None:
        convert_fields(self)
        if self.initial is not None:
            object.__setattr__(self, "initial", find_model(self.initial))
        check_device_name(self.device)
        at_least_one = (
            "sequence_length",
            "batch_size",
            "num_replicas",
            "save_every",
            "keep_checkpoints",
        )
        for name in (*at_least_one, "sample_max_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        not_negative = (
            "steps",
            "max_minutes",
            "micro_batch_size",
            "validate_every",
            "max_validation_tokens",
            "keep_every",
            "max_skipped_steps",
        )
        for name in (*not_negative, "sample_every", "update_sizes_every", "peak_tflops", "num_workers", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative: {getattr(self, name)}")
        if self.steps == 0 and not self.epochs > 0:
            raise UserError(f"epochs must be above 0, not {self.epochs}, or give steps")
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise UserError(
                f"batch_size {self.batch_size} must be a multiple of micro_batch_size {self.micro_batch_size}"
            )
        object.__setattr__(self, "dtype", canonical_dtype(self.dtype))
        if self.dtype not in ("auto", "bfloat16", "float32"):
            raise UserError(f"cannot train in dtype {self.dtype!r}: use auto, bfloat16 or float32")

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
    """The hardware and data that a dry run assumes."""

    num_gpus: int = 8
    """Number of devices, one process each."""
    gpu_tflops: float = 989.0
    """Peak TFLOPS of one device in the dtype of the run; 989 is an H100 in bfloat16."""
    utilisation: float = 0.4
    """Fraction of the peak that is reached (MFU)."""
    tokens: int = MINIPILE_TOKENS
    """Training tokens, for runs whose length is given in epochs; the default is minipile."""

    def __post_init__(self) -> None:
        convert_fields(self)
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise UserError(f"{field.name} must be above 0, not {getattr(self, field.name)}")
        if self.utilisation > 1:
            raise UserError(f"utilisation must be at most 1, not {self.utilisation}")
