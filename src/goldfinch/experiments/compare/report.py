"""The report of a comparison: `results.md` and its two plots."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from goldfinch.experiments.compare.measure import Measurement, label
from goldfinch.experiments.compare.runs import Run
from goldfinch.experiments.compare.summary import (
    Estimate,
    ModelSummary,
    PaperComparison,
    common_settings,
    compare_with_paper,
    summarize_models,
)
from goldfinch.experiments.markdown import markdown_table
from goldfinch.files import write_text
from goldfinch.plots import draw
from goldfinch.training.run.metrics import num_validation_tokens, running_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS, LOSS_BY_TOKEN, LOSS_BY_POSITION = "results.md", "loss_by_token.png", "loss_by_position.png"
HEADINGS = (
    "model", "seeds", "loss", "bits per byte", "parameters", "without embedding, head", "tokens/s", "cache B/token",
    "state",
)  # fmt: skip


def write_report(runs: Sequence[Run], measurements: dict[str, Measurement], output: Path) -> list[ModelSummary]:
    """Write all three files into `output`; returns the summaries in the table, best loss first."""
    models = summarize_models(runs, measurements)
    write_text(output / RESULTS, _markdown(runs, models))
    draw(output / LOSS_BY_TOKEN, lambda axes: _loss_by_token(axes, runs))
    if models:
        draw(output / LOSS_BY_POSITION, lambda axes: _loss_by_position(axes, runs, measurements, models))
    return models


def table_row(model: ModelSummary) -> tuple[str, ...]:
    """One line of the table, as strings in the order of HEADINGS."""
    speed = "-" if model.tokens_per_second is None else f"{model.tokens_per_second:,.0f}"
    return (
        model.name,
        str(len(model.losses)),
        str(model.loss),
        str(model.bits_per_byte),
        f"{model.parameters:,}",
        f"{model.non_embedding_parameters:,}",
        speed,
        f"{model.cache_bytes_per_token:,.0f}",
        f"{model.state_bytes:,} B",
    )


def _markdown(runs: Sequence[Run], models: Sequence[ModelSummary]) -> str:
    parts = ["# Comparison", _settings(runs)]
    if models:
        parts += [
            markdown_table(HEADINGS, map(table_row, models)),
            "Loss: nats per token on the whole validation split, final weights, mean over seeds ± standard error. "
            "Runs of one seed saw the same batches. Tokens/s: median over the steps of training. Cache and state: "
            "measured on a context after 512 and 1,024 tokens, in bf16, S of recurrent layers in fp32.",
        ]
        comparison = compare_with_paper(models)
        if comparison is not None:
            parts += _paper(comparison)
    unfinished = [run for run in runs if run.final is None]
    if unfinished:
        lines = [f"- {label(run)}: {run.steps[-1]['step'] if run.steps else 0:,} steps" for run in unfinished]
        parts += ["## Unfinished runs, not in the tables", "\n".join(lines)]
    parts += [
        f"![Loss by token]({LOSS_BY_TOKEN})",
        "Points that are not joined were validated on another text: the last validation of a run uses the whole split.",
    ]
    if models:
        parts += [f"![Loss by position in the window]({LOSS_BY_POSITION})"]
    return "\n\n".join(parts) + "\n"


def _settings(runs: Sequence[Run]) -> str:
    shared, differing = common_settings(runs)
    lines = []
    if "sequence_length" in shared and "batch_size" in shared:
        tokens = shared["sequence_length"] * shared["batch_size"]
        steps = f"{shared['steps']:,} steps" if shared.get("steps") else f"{shared.get('epochs', '?')} epochs"
        total = f", {shared['steps'] * tokens:,} tokens in total" if shared.get("steps") else ""
        batch = f"{shared['batch_size']} sequences of {shared['sequence_length']:,} tokens"
        lines.append(f"Each run: {steps} of {batch}{total}.")
    if "optimizer" in shared:
        optimizer = shared["optimizer"]
        dtype = shared.get("dtype", "?")
        lines.append(f"Learning rate {optimizer.learning_rate} to {optimizer.final_learning_rate}, {dtype}.")
    skipped = {label(run): run.steps[-1].get("skipped_steps", 0) for run in runs if run.steps}
    lines += [
        f"{name} skipped {count} steps whose loss or gradient was not finite."
        for name, count in skipped.items()
        if count
    ]
    for name, values in differing.items():
        lines.append(f"**Not the same in all runs: {name}** ({'; '.join(map(str, values))}).")
    return " ".join(lines)


def _paper(comparison: PaperComparison) -> list[str]:
    base = next(row for row in comparison.rows if row.model is comparison.baseline)

    def loss_and_gap(loss: float | None, start: float | None) -> tuple[str, str]:
        gap = "" if loss is None or start is None or loss == start else f"{loss - start:+.4f}"
        return ("" if loss is None else f"{loss:.4f}"), gap

    lines = [
        (
            row.model.name,
            f"{row.model.loss.mean:.4f}",
            "" if row.model is comparison.baseline else _signed(row.gap),
            *loss_and_gap(row.ablation_loss, base.ablation_loss),
            *loss_and_gap(row.large_loss, base.large_loss),
        )
        for row in comparison.rows
    ]
    name = comparison.baseline.name
    headings = ("model", "loss", f"gap to {name}", "paper, L12 D768", "gap", "paper, L24 D2048", "gap")
    pairs = len(comparison.same_order) + len(comparison.other_order)
    text = [
        "## Compared with the paper",
        markdown_table(headings, lines),
        f"Gaps: mean over common seeds ± standard error of the paired differences. "
        "Pairs of kinds in the same order as in the paper's ablation (L12 D768): "
        f"{len(comparison.same_order)} of {pairs}.",
    ]
    if comparison.other_order:
        text.append("In the other order here:\n" + "\n".join(map(_reversed, comparison.other_order)))
    return text


def _reversed(pair: tuple[ModelSummary, ModelSummary]) -> str:
    better, worse = pair
    return f"- {better.name} better than {worse.name}, by {worse.gap(better)}"


def _signed(estimate: Estimate) -> str:
    return str(estimate) if estimate.mean < 0 else f"+{estimate}"


def _loss_by_token(axes: "Axes", runs: Sequence[Run]) -> None:
    """Plot the smoothed training loss of each seed (faint) and the mean validation loss over seeds (strong)."""
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.name, []).append(run)
    min_loss, max_loss = float("inf"), 0.0
    for number, (name, seeds) in enumerate(by_name.items()):
        color = f"C{number}"
        for run in seeds:
            records = [record for record in run.steps if "loss" in record]
            tokens = [record["tokens"] for record in records]
            losses = running_mean([record["loss"] for record in records])
            axes.plot(tokens, losses, color=color, linewidth=0.8, alpha=0.4)
            if losses:
                min_loss, max_loss = min(min_loss, *losses), max(max_loss, losses[len(losses) // 10])
        validations: dict[int, dict[int, list[float]]] = {}
        for run in seeds:
            for record in run.validations:
                by_step = validations.setdefault(num_validation_tokens(record), {})
                by_step.setdefault(record["tokens"], []).append(record["validation_loss"])
        for losses_at in validations.values():
            means = [(tokens, sum(losses) / len(losses)) for tokens, losses in sorted(losses_at.items())]
            axes.plot(*zip(*means, strict=True), "o-", color=color)
        axes.plot([], "o-", color=color, label=f"{name} ({len(seeds)})")
    if max_loss > min_loss:  # the steep start would squeeze everything else
        margin = 0.1 * (max_loss - min_loss)
        axes.set_ylim(min_loss - margin, max_loss + margin)
    axes.set(xlabel="tokens", ylabel="loss (nats per token)", title="training (faint, running mean) and validation")
    axes.grid(alpha=0.3)


def _loss_by_position(
    axes: "Axes", runs: Sequence[Run], measurements: dict[str, Measurement], models: Sequence[ModelSummary]
) -> None:
    names = list(dict.fromkeys(run.name for run in runs))
    for model in models:
        finished = [run for run in runs if run.name == model.name and run.final is not None]
        bins = [measurements[label(run)].loss_by_position for run in finished]
        positions = [(each.first + each.last) / 2 for each in bins[0]]
        means = [sum(each.loss for each in same) / len(same) for same in zip(*bins, strict=True)]
        axes.plot(positions, means, "o-", color=f"C{names.index(model.name)}", label=model.name)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="tokens read in the window", ylabel="loss (nats per token)", title="by position, validation")
    axes.grid(alpha=0.3)
