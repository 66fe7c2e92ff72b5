"""An arena's results as people read them: `results.md` and its two plots."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from goldfinch.experiments.compare.measure import Measurement, label
from goldfinch.experiments.compare.runs import Run
from goldfinch.experiments.compare.summary import BesidePaper, Estimate, Row, beside_paper, common_settings, rows
from goldfinch.experiments.markdown import markdown_table
from goldfinch.files import write_text
from goldfinch.plots import draw
from goldfinch.training.run.metrics import measured_tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS, LOSS_BY_TOKEN, LOSS_BY_POSITION = "results.md", "loss_by_token.png", "loss_by_position.png"
HEADINGS = (
    "model", "seeds", "loss", "bits per byte", "parameters", "without embedding, head", "tokens/s", "cache B/token",
    "state",
)  # fmt: skip


def write_report(runs: Sequence[Run], measurements: dict[str, Measurement], output: Path) -> list[Row]:
    """Write all three files into `output`; returns the rows of the table, best first."""
    models = rows(runs, measurements)
    write_text(output / RESULTS, _markdown(runs, models))
    draw(output / LOSS_BY_TOKEN, lambda axes: _loss_by_token(axes, runs))
    if models:
        draw(output / LOSS_BY_POSITION, lambda axes: _loss_by_position(axes, runs, measurements, models))
    return models


def cells(row: Row) -> tuple[str, ...]:
    """One line of the table, under HEADINGS."""
    speed = "-" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}"
    return (
        row.name,
        str(len(row.losses)),
        str(row.loss),
        str(row.bits_per_byte),
        f"{row.parameters:,}",
        f"{row.non_embedding_parameters:,}",
        speed,
        f"{row.cache_bytes_per_token:,.0f}",
        f"{row.state_bytes:,} B",
    )


def _markdown(runs: Sequence[Run], models: Sequence[Row]) -> str:
    parts = ["# Models compared", _settings(runs)]
    if models:
        parts += [
            markdown_table(HEADINGS, map(cells, models)),
            "Loss: nats per token of the whole validation split, final weights, mean over seeds ± standard error. "
            "Runs of one seed saw the same batches. Tokens/s: median over the steps of training. Cache and state: "
            "measured on what a context holds after 512 and 1,024 tokens, in bf16, S of recurrent layers in fp32.",
        ]
        beside = beside_paper(models)
        if beside is not None:
            parts += _paper(beside)
    unfinished = [run for run in runs if run.final is None]
    if unfinished:
        lines = [f"- {label(run)}: {run.steps[-1]['step'] if run.steps else 0:,} steps" for run in unfinished]
        parts += ["## Not finished, and not in the tables", "\n".join(lines)]
    parts += [
        f"![Loss by token]({LOSS_BY_TOKEN})",
        "Points that are not joined are validations over another text: the last one of a run reads the whole split.",
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
        total = f", {shared['steps'] * tokens:,} tokens in all" if shared.get("steps") else ""
        lines.append(
            f"Each run: {steps} of {shared['batch_size']} windows of {shared['sequence_length']:,} tokens{total}."
        )
    if isinstance(shared.get("optimizer"), dict):
        optimizer = shared["optimizer"]
        lines.append(
            f"Learning rate {optimizer.get('learning_rate')} to {optimizer.get('final_learning_rate')}, "
            f"{shared.get('dtype', '?')}."
        )
    skipped = {label(run): run.steps[-1].get("skipped_steps", 0) for run in runs if run.steps}
    lines += [f"{name} skipped {count} steps that were not finite." for name, count in skipped.items() if count]
    for name, values in differing.items():
        lines.append(f"**Not the same in all runs: {name}** ({'; '.join(map(str, values))}).")
    return " ".join(lines)


def _paper(beside: BesidePaper) -> list[str]:
    base = next(paper_row for paper_row in beside.rows if paper_row.row is beside.baseline)

    def of_paper(loss: float | None, start: float | None) -> tuple[str, str]:
        gap = "" if loss is None or start is None or loss == start else f"{loss - start:+.4f}"
        return ("" if loss is None else f"{loss:.4f}"), gap

    lines = [
        (
            paper_row.row.name,
            f"{paper_row.row.loss.mean:.4f}",
            "" if paper_row.row is beside.baseline else _signed(paper_row.gap),
            *of_paper(paper_row.ablation_loss, base.ablation_loss),
            *of_paper(paper_row.large_loss, base.large_loss),
        )
        for paper_row in beside.rows
    ]
    name = beside.baseline.name
    headings = ("model", "loss", f"gap to {name}", "paper, L12 D768", "gap", "paper, L24 D2048", "gap")
    pairs = len(beside.same_order) + len(beside.other_order)
    text = [
        "## Beside the paper",
        markdown_table(headings, lines),
        f"Gaps: mean over the seeds that both have, ± standard error of the paired differences. "
        f"Pairs of kinds in the order of the paper's ablation (L12 D768): {len(beside.same_order)} of {pairs}.",
    ]
    if beside.other_order:
        text.append("The other way round here:\n" + "\n".join(map(_reversed, beside.other_order)))
    return text


def _reversed(pair: tuple[Row, Row]) -> str:
    better, worse = pair
    return f"- {better.name} below {worse.name}, by {worse.gap(better)}"


def _signed(estimate: Estimate) -> str:
    return str(estimate) if estimate.mean < 0 else f"+{estimate}"


def _loss_by_token(axes: "Axes", runs: Sequence[Run]) -> None:
    """Training loss, smoothed, faint for each seed; validation losses, mean over seeds, strong."""
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.name, []).append(run)
    lowest, highest = float("inf"), 0.0
    for number, (name, seeds) in enumerate(by_name.items()):
        color = f"C{number}"
        for run in seeds:
            tokens, losses = _smoothed(run)
            axes.plot(tokens, losses, color=color, linewidth=0.8, alpha=0.4)
            if losses:
                lowest, highest = min(lowest, *losses), max(highest, losses[len(losses) // 10])
        validations: dict[int, dict[int, list[float]]] = {}
        for run in seeds:
            for record in run.validations:
                of_text = validations.setdefault(measured_tokens(record), {})
                of_text.setdefault(record["tokens"], []).append(record["validation_loss"])
        for losses_at in validations.values():
            means = [(tokens, sum(losses) / len(losses)) for tokens, losses in sorted(losses_at.items())]
            axes.plot(*zip(*means, strict=True), "o-", color=color)
        axes.plot([], "o-", color=color, label=f"{name} ({len(seeds)})")
    if highest > lowest:  # the steep beginning would press all that matters into a corner
        axes.set_ylim(lowest - 0.1 * (highest - lowest), highest + 0.1 * (highest - lowest))
    axes.set(xlabel="tokens", ylabel="loss (nats per token)", title="training (faint, running mean) and validation")
    axes.grid(alpha=0.3)


def _smoothed(run: Run, weight: float = 0.95) -> tuple[list[int], list[float]]:
    """Exponential running mean of the training loss, without the pull towards zero at the start."""
    steps = [record for record in run.steps if "loss" in record]
    losses, total, norm = [], 0.0, 0.0
    for record in steps:
        total, norm = weight * total + (1 - weight) * record["loss"], weight * norm + 1 - weight
        losses.append(total / norm)
    return [record["tokens"] for record in steps], losses


def _loss_by_position(
    axes: "Axes", runs: Sequence[Run], measurements: dict[str, Measurement], models: Sequence[Row]
) -> None:
    names = list(dict.fromkeys(run.name for run in runs))
    for row in models:
        bins = [
            measurements[label(run)].loss_by_position for run in runs if run.name == row.name and run.final is not None
        ]
        places = [(each.first + each.last) / 2 for each in bins[0]]
        means = [sum(each.loss for each in same) / len(same) for same in zip(*bins, strict=True)]
        axes.plot(places, means, "o-", color=f"C{names.index(row.name)}", label=row.name)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="tokens read in the window", ylabel="loss (nats per token)", title="by position, validation")
    axes.grid(alpha=0.3)
