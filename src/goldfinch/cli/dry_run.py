"""`goldfinch train --dry-run`: what a run would take, as a table."""

import dataclasses
import json

from goldfinch.cli.tables import Rows, print_table
from goldfinch.cli.units import count, size
from goldfinch.training.config import Cluster, TrainConfig
from goldfinch.training.dry_run import DryRun, dry_run


def print_dry_run(title: str, config: TrainConfig, cluster: Cluster, as_json: bool = False) -> None:
    """Compute what the run would take and print it."""
    plan = dry_run(config, cluster)
    speed = _flops_per_second(config)
    here = _days(plan, speed, cluster.utilisation)
    if as_json:
        total = plan.total_bytes(config.activation_checkpointing)
        more = {"device_bytes": total, "days_on_this_processor": here}
        print(json.dumps(dataclasses.asdict(plan) | more, indent=1))
        return
    run = [
        ("tokens", f"{plan.steps * plan.tokens_per_step:,}{'' if config.steps else ' (assumed: --tokens)'}"),
        ("  steps", f"{plan.steps:,} of {plan.tokens_per_step:,} tokens"),
        ("FLOPs per step", f"{count(plan.flops_per_step)}FLOP"),
        ("days", f"{plan.days:.3g} ({_hours(plan.days)})"),
        ("  on", f"{cluster.num_gpus:,} x {cluster.gpu_tflops:g} TFLOPS, at {cluster.utilisation:.0%} utilisation"),
        ("days on this processor", f"{here:.3g} ({_hours(here)})"),
        ("  at", f"{count(round(speed))}FLOP/s in matrix products, {cluster.utilisation:.0%} of it in training"),
    ]
    parameters = [("parameters", f"{sum(plan.parameters.values()):,}")]
    parameters += [(f"  {name}", f"{number:,}") for name, number in plan.parameters.items()]
    print_table(f"{title}: dry run", (run, parameters, *_memory(plan, config)))


def _flops_per_second(config: TrainConfig) -> float:
    """Of this processor, measured on matrix products like the model's, in float32."""
    import torch

    from goldfinch.benchmark.speed import product_probe

    probe = product_probe(min(config.model.width, 1024), min(config.model.channel_mix_width, 4096), torch.float32)
    probe.measure()  # a warm-up
    return probe.amount / probe.measure()


def _days(plan: DryRun, flops_per_second: float, utilisation: float) -> float:
    return plan.steps * plan.flops_per_step / (flops_per_second * utilisation) / 86400


def _memory(plan: DryRun, config: TrainConfig) -> tuple[Rows, Rows]:
    """Memory of the run, and with the other choice of activation checkpointing."""
    chosen = config.activation_checkpointing
    fixed = [(f"  {name}", size(number)) for name, number in plan.fixed_bytes.items()]
    rows = [("memory per device, at least", size(plan.total_bytes(chosen))), *fixed]
    other = [(f"with --{'no-' if chosen else ''}activation-checkpointing", size(plan.total_bytes(not chosen)))]
    micro = f"{plan.micro_batch_size} x {config.sequence_length:,} tokens"
    for part, recomputed in ((rows, chosen), (other, not chosen)):
        activations = plan.recomputed_activations if recomputed else plan.activations
        part.append((f"  activations, {micro}", size(activations.kept)))
        part.append(("  working memory: logits, gradients", size(activations.working)))
    rows.append((f"micro-batches of {micro}", f"{plan.micro_batches} per step"))
    return rows, other


def _hours(days: float) -> str:
    hours = 24 * days
    return f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
