"""Summaries of a comparison: means over seeds, and how they compare with the paper's results."""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

from goldfinch.experiments.compare.measure import Measurement, label
from goldfinch.experiments.compare.paper import ABLATION_LOSS, LARGE_LOSS, kind_of
from goldfinch.experiments.compare.runs import Run
from goldfinch.model.accounting import account

BASELINE = "goldfinch"
"""Gaps are measured from this kind, or from the best model if it is missing."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    error: float | None
    """Standard error of the mean; None for a single seed."""

    @classmethod
    def from_values(cls, values: Sequence[float]) -> "Estimate":
        """The mean of one or more values."""
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return cls(statistics.fmean(values), error)

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + (f" ± {self.error:.4f}" if self.error is not None else "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """Results of one model over its seeds."""

    name: str
    kind: str | None
    """The paper's kind of model, if it is one."""
    losses: dict[int, float]
    """Seed -> final validation loss, nats per token."""
    bits_per_byte: Estimate
    parameters: int
    non_embedding_parameters: int
    """Without embedding and head."""
    tokens_per_second: float | None
    """Median over all training steps of all seeds; None if no step recorded it."""
    cache_bytes_per_token: float
    state_bytes: int

    @property
    def loss(self) -> Estimate:
        """Mean over seeds, nats per token."""
        return Estimate.from_values(list(self.losses.values()))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with the mean loss and its standard error."""
        fields = {name: value for name, value in vars(self).items() if not isinstance(value, Estimate)}
        estimates = {"loss": self.loss, "bits_per_byte": self.bits_per_byte}
        return fields | {name: dataclasses.asdict(estimate) for name, estimate in estimates.items()}

    def gap(self, other: "ModelSummary") -> Estimate:
        """How much higher this loss is than another's: mean over the seeds of both, paired by seed (same batches)."""
        common = self.losses.keys() & other.losses.keys()
        if not common:
            return Estimate(self.loss.mean - other.loss.mean, None)
        return Estimate.from_values([self.losses[seed] - other.losses[seed] for seed in sorted(common)])


def summarize_models(runs: Sequence[Run], measurements: dict[str, Measurement]) -> list[ModelSummary]:
    """One summary for each model that has finished runs, best loss first."""
    result = []
    finished = [run for run in runs if run.final is not None]
    for name, group in itertools.groupby(finished, key=lambda run: run.name):
        seeds = list(group)
        measured = [measurements[label(run)] for run in seeds]
        finals = {run.seed: run.final for run in seeds if run.final is not None}
        speeds = [step["tokens_per_second"] for run in seeds for step in run.steps if step.get("tokens_per_second")]
        costs = account(seeds[0].model)
        result.append(
            ModelSummary(
                name=name,
                kind=kind_of(seeds[0].model),
                losses={seed: final["validation_loss"] for seed, final in finals.items()},
                bits_per_byte=Estimate.from_values([final["bits_per_byte"] for final in finals.values()]),
                parameters=costs.parameters,
                non_embedding_parameters=costs.parameters - costs.embedding_parameters,
                tokens_per_second=statistics.median(speeds) if speeds else None,
                cache_bytes_per_token=measured[0].cache_bytes_per_token,
                state_bytes=measured[0].state_bytes,
            )
        )
    return sorted(result, key=lambda model: model.loss.mean)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperComparisonRow:
    """One model and the paper's losses for its kind."""

    model: ModelSummary
    gap: Estimate
    """Our loss minus that of our baseline."""
    ablation_loss: float | None
    """The paper's at L12 D768."""
    large_loss: float | None
    """The paper's at L24 D2048."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperComparison:
    """Our ranking of models next to the paper's."""

    baseline: ModelSummary
    rows: list[PaperComparisonRow]
    """The models of the paper's kinds, best loss first, in all sizes that were trained."""
    same_order: list[tuple[ModelSummary, ModelSummary]]
    """Pairs of models, better one first, that the paper's ablation ranks the same way."""
    other_order: list[tuple[ModelSummary, ModelSummary]]
    """Pairs of models, better one first, that the paper's ablation ranks the other way round."""


def compare_with_paper(models: Sequence[ModelSummary]) -> PaperComparison | None:
    """Compare with the paper's losses; None if no model is of the paper's kinds."""
    known = [model for model in models if model.kind in ABLATION_LOSS or model.kind in LARGE_LOSS]
    if not known:
        return None
    baseline = next((model for model in known if model.kind == BASELINE), known[0])
    rows = [
        PaperComparisonRow(
            model=model,
            gap=model.gap(baseline),
            ablation_loss=ABLATION_LOSS.get(model.kind or ""),
            large_loss=LARGE_LOSS.get(model.kind or ""),
        )
        for model in known
    ]
    same: list[tuple[ModelSummary, ModelSummary]] = []
    other: list[tuple[ModelSummary, ModelSummary]] = []
    for better, worse in itertools.combinations(rows, 2):
        if (
            better.ablation_loss is not None
            and worse.ablation_loss is not None
            and better.model.kind != worse.model.kind
        ):
            pairs = same if better.ablation_loss < worse.ablation_loss else other
            pairs.append((better.model, worse.model))
    return PaperComparison(baseline=baseline, rows=rows, same_order=same, other_order=other)


# What decides the result of a run, besides model and seed.
_DECISIVE: tuple[str, ...] = ("data", "sequence_length", "batch_size", "steps", "epochs", "max_minutes", "dtype")
_DECISIVE += ("document_resets", "optimizer")


def common_settings(runs: Sequence[Run]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The settings that decide a result: those that all runs share, and the different values of the others."""
    shared: dict[str, Any] = {}
    differing: dict[str, list[Any]] = {}
    for name in _DECISIVE:
        values: list[Any] = []
        for run in runs:
            value = getattr(run.settings, name)
            if value not in values:
                values.append(value)
        if len(values) == 1:
            shared[name] = values[0]
        else:
            differing[name] = values
    return shared, differing
