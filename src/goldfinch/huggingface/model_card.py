"""The model card, README.md of a repository: what is known of a model, and nothing else."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from goldfinch.checkpoint.convert import Converted, StoredModel, describe
from goldfinch.data.mixture import parse_sources
from goldfinch.data.shards import INDEX, Index
from goldfinch.errors import UserError
from goldfinch.experiments.markdown import markdown_table
from goldfinch.files import one_line
from goldfinch.model.accounting import account
from goldfinch.pretrained.hub import PREFIX, hub_name
from goldfinch.training.config import TrainConfig
from goldfinch.training.run.checkpoint import list_checkpoints, step_of
from goldfinch.training.run.folder import SETTINGS, read_settings
from goldfinch.training.run.metrics import num_validation_tokens, read_metrics, running_mean

CARD = "README.md"
LIBRARY, TASK, TAG = "transformers", "text-generation", "goldfinch"
"""What the Hub shows: the library that loads the model, its task, and what it is found by."""
_TEXT = """\
# {name}

A language model of [GoldFinch](https://arxiv.org/abs/2407.12077): {plan}.

## Use

In `transformers`, after `pip install 'goldfinch[hf]'`:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "{name}"  # this folder, or OWNER/NAME on the Hub
model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
text = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**text, max_new_tokens=50)[0]))
```

The code that `trust_remote_code=True` allows to run is one file, which imports `goldfinch.huggingface`. After
`import goldfinch.huggingface` it is not needed.

In GoldFinch itself, from this folder or from the Hub:

```sh
goldfinch generate {name} "Once upon a time"
goldfinch generate hf:OWNER/NAME "Once upon a time"
```

## Model

{model}
"""


def model_card(source: Path, name: str, model: StoredModel) -> ModelCard:
    """The card of a model: the one next to it, if somebody has written one, or a new one.

    Args:
        source: where the model was read from: a folder, a training run among them, or a `.pth`.
        name: of the repository.
        model: what was read.

    Raises:
        UserError: the card or a file of the run is corrupt.
    """
    written = source / CARD
    if written.is_file():
        return _read(written)
    run = _Run.read(source)
    data = ModelCardData(
        model_name=name,
        library_name=LIBRARY,
        pipeline_tag=TASK,
        tags=[TAG],
        base_model=run.base_model if run else None,
        datasets=run.hub_datasets or None if run else None,
        eval_results=run.eval_results() or None if run else None,
    )
    facts = describe(model.config, model.weights, model.tokenizer)
    text = _TEXT.format(name=name, plan=f"{facts.plan} layers", model=_table(_model_rows(facts)))
    if run is not None:
        text += f"\n## Training\n\n{_table(run.rows())}\n"
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _read(path: Path) -> ModelCard:
    try:
        card = ModelCard(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # YAML that is not what the Hub wants, too
        raise UserError(f"{path} is not a model card: {one_line(error)}") from error
    data = cast(ModelCardData, card.data)
    data.library_name = LIBRARY
    data.tags = list(dict.fromkeys([*(data.tags or []), TAG]))
    return card


def _model_rows(facts: Converted) -> list[tuple[str, str]]:
    config, costs = facts.config, account(facts.config)
    transformer = f"{costs.transformer_bytes_per_token:,} for a Transformer of this depth and width"
    return [
        ("parameters", f"{facts.parameters:,}, in {' and '.join(facts.dtypes)}"),
        ("width", f"{config.width:,}: {config.num_heads} heads of {config.head_size}"),
        ("channel mix", f"{config.channel_mix}, {config.channel_mix_width:,} wide"),
        ("vocabulary", f"{config.vocab_size:,} ids"),
        ("tokenizer", facts.tokenizer or "none"),
        ("cache per token, in bfloat16", f"{costs.cache_bytes_per_token:,} bytes ({transformer})"),
        ("recurrent state", f"{costs.state_bytes:,} bytes at any length"),
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """What a training run has recorded of its newest weights."""

    settings: TrainConfig
    sources: list[str]
    """Names of the data: on the Hub, or of folders."""
    hub_datasets: list[str]
    """Those on the Hub."""
    base_model: str | None
    """Name on the Hub of the model that it started from."""
    last: dict[str, Any]
    """The record of the last step."""
    loss: float
    """Running mean of the training loss, nats per token."""
    validation: dict[str, Any] | None
    """The record of the last validation."""

    @classmethod
    def read(cls, folder: Path) -> "_Run | None":
        """The run in a folder; None if it holds none, or none with a step."""
        if not (folder / SETTINGS).is_file():
            return None
        settings = read_settings(folder)
        stored = list_checkpoints(folder)
        # A run that is at work may have records of later steps than its weights.
        records = [record for record in read_metrics(folder) if not stored or record["step"] <= step_of(stored[-1])]
        steps = [record for record in records if "loss" in record]
        if not steps:
            return None
        folders = [Path(source.folder) for source in parse_sources(settings.data)]
        initial = hub_name(settings.initial) if settings.initial is not None else None
        on_hub = {each: dataset for each in folders if (dataset := _hub_dataset(each)) is not None}
        return cls(
            settings=settings,
            sources=[on_hub.get(each, each.name) for each in folders],
            hub_datasets=list(dict.fromkeys(on_hub.values())),
            base_model=None if initial is None else initial.removeprefix(PREFIX).partition("@")[0],
            last=steps[-1],
            loss=running_mean(record["loss"] for record in steps)[-1],
            validation=next((each for each in reversed(records) if "validation_loss" in each), None),
        )

    def rows(self) -> list[tuple[str, str]]:
        """The settings that decide what the weights are, and the losses."""
        optimizer, length = self.settings.optimizer, self.settings.sequence_length
        rows = [
            ("data", ", ".join(self.sources)),
            ("tokens", f"{self.last['tokens']:,}"),
            ("steps", f"{self.last['step']:,}, each of {self.settings.batch_size:,} sequences of {length:,} tokens"),
            ("optimizer", f"{optimizer.kind}, weight decay {optimizer.weight_decay:g}"),
            (
                "learning rate",
                f"{optimizer.learning_rate:g} to {optimizer.final_learning_rate:g} ({optimizer.schedule}), "
                f"{optimizer.warmup_steps:,} steps of warm-up",
            ),
            ("dtype of matrix products", self.settings.dtype),
            ("seed", f"{self.settings.seed}"),
            ("training loss", f"{self.loss:.4f} nats per token, mean of the last steps"),
        ]
        if self.validation is not None:
            rows.append(("validation loss", f"{self.validation['validation_loss']:.4f} nats per token"))
            if "bits_per_byte" in self.validation:
                rows.append(("validation text", f"{self.validation['bits_per_byte']:.4f} bits per byte"))
            rows.append(("validated on", f"{num_validation_tokens(self.validation):,} tokens"))
        return rows

    def eval_results(self) -> list[EvalResult]:
        """The last validation, as the Hub shows it."""
        if self.validation is None:
            return []
        data = ", ".join(self.sources)
        return [
            EvalResult(
                task_type=TASK,
                dataset_type=data,
                dataset_name=f"{data}, windows of {self.settings.sequence_length:,} tokens",
                dataset_split="validation",
                metric_type=metric,
                metric_name=title,
                metric_value=round(self.validation[name], 4),
            )
            for metric, name, title in (
                ("loss", "validation_loss", "nats per token"),
                ("bits_per_byte", "bits_per_byte", "bits per byte"),
            )
            if name in self.validation
        ]


def _hub_dataset(folder: Path) -> str | None:
    """The name on the Hub of what a data directory streams; None if it holds tokens, or is no longer there."""
    if not (folder / INDEX).is_file():
        return None
    stream = Index.load(folder).stream
    return None if stream is None or Path(stream.dataset).is_absolute() else stream.dataset


def _table(rows: Sequence[tuple[str, str]]) -> str:
    return markdown_table(("", ""), rows, words=2)
