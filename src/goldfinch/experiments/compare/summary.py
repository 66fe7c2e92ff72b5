"""What the runs of an arena say together: means over seeds, and the paper's figures beside them."""

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
"""Gaps are to this kind, or to the best model where there is none."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    error: float | None
    """Standard error of the mean; None of a single seed."""

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """The mean of one value or more."""
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return cls(statistics.fmean(values), error)

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + (f" ± {self.error:.4f}" if self.error is not None else "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One model."""

    name: str
    kind: str | None
    """Of the paper's kinds, if it is one."""
    losses: dict[int, float]
    """Seed -> final validation loss, nats per token."""
    bits_per_byte: Estimate
    parameters: int
    non_embedding_parameters: int
    """Without embedding and head."""
    tokens_per_second: float | None
    """Median over all steps of all seeds; None where the metrics have none."""
    cache_bytes_per_token: float
    state_bytes: int

    @property
    def loss(self) -> Estimate:
        """Mean over seeds, nats per token."""
        return Estimate.of(list(self.losses.values()))

    def gap(self, other: "Row") -> Estimate:
        """How much higher this loss is than another's: mean over the seeds of both, which saw the same batches."""
        common = self.losses.keys() & other.losses.keys()
        if not common:
            return Estimate(self.loss.mean - other.loss.mean, None)
        return Estimate.of([self.losses[seed] - other.losses[seed] for seed in sorted(common)])


def rows(runs: Sequence[Run], measurements: dict[str, Measurement]) -> list[Row]:
    """The models that have finished runs, the lowest loss first."""
    result = []
    finished = [run for run in runs if run.final is not None]
    for name, group in itertools.groupby(finished, key=lambda run: run.name):
        seeds = list(group)
        measured = [measurements[label(run)] for run in seeds]
        finals = {run.seed: run.final for run in seeds if run.final is not None}
        speeds = [step["tokens_per_second"] for run in seeds for step in run.steps if step.get("tokens_per_second")]
        costs = account(seeds[0].model)
        result.append(
            Row(
                name=name,
                kind=kind_of(seeds[0].model),
                losses={seed: final["validation_loss"] for seed, final in finals.items()},
                bits_per_byte=Estimate.of([final["bits_per_byte"] for final in finals.values()]),
                parameters=costs.parameters,
                non_embedding_parameters=costs.parameters - costs.embedding_parameters,
                tokens_per_second=statistics.median(speeds) if speeds else None,
                cache_bytes_per_token=measured[0].cache_bytes_per_token,
                state_bytes=measured[0].state_bytes,
            )
        )
    return sorted(result, key=lambda row: row.loss.mean)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One model beside the paper's."""

    row: Row
    gap: Estimate
    """To the baseline, ours."""
    ablation_loss: float | None
    """The paper's at L12 D768."""
    large_loss: float | None
    """The paper's at L24 D2048."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BesidePaper:
    """Our order and the paper's."""

    baseline: Row
    rows: list[PaperRow]
    """The models of the paper's kinds, the lowest loss first; where a kind was trained at several sizes, all."""
    same_order: list[tuple[Row, Row]]
    """Pairs, the better first here and in the paper's ablation."""
    other_order: list[tuple[Row, Row]]
    """Pairs, the better first here, the other way round in the paper's ablation."""


def beside_paper(models: Sequence[Row]) -> BesidePaper | None:
    """Put the paper's losses beside ours; None where no model is of its kinds."""
    known = [row for row in models if row.kind in ABLATION_LOSS or row.kind in LARGE_LOSS]
    if not known:
        return None
    baseline = next((row for row in known if row.kind == BASELINE), known[0])
    beside = [
        PaperRow(
            row=row,
            gap=row.gap(baseline),
            ablation_loss=ABLATION_LOSS.get(row.kind or ""),
            large_loss=LARGE_LOSS.get(row.kind or ""),
        )
        for row in known
    ]
    same: list[tuple[Row, Row]] = []
    other: list[tuple[Row, Row]] = []
    for better, worse in itertools.combinations(beside, 2):
        if better.ablation_loss is not None and worse.ablation_loss is not None and better.row.kind != worse.row.kind:
            pairs = same if better.ablation_loss < worse.ablation_loss else other
            pairs.append((better.row, worse.row))
    return BesidePaper(baseline=baseline, rows=beside, same_order=same, other_order=other)


def common_settings(runs: Sequence[Run]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Settings that decide a result and that all runs share, and those in which they differ, with the values met."""
    names = (
        "data",
        "sequence_length",
        "batch_size",
        "steps",
        "epochs",
        "max_minutes",
        "dtype",
        "document_resets",
        "optimizer",
    )
    shared: dict[str, Any] = {}
    differing: dict[str, list[Any]] = {}
    for name in names:
        met: list[Any] = []
        for run in runs:
            if name in run.settings and run.settings[name] not in met:  # runs of other versions may lack it
                met.append(run.settings[name])
        if len(met) == 1:
            shared[name] = met[0]
        elif met:
            differing[name] = met
    return shared, differing
