"""Measuring a trained model: loss by position, and the bytes that it keeps of a text."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from goldfinch.checkpoint.model_folder import WEIGHTS, load_model
from goldfinch.errors import UserError
from goldfinch.experiments.compare.runs import Run
from goldfinch.experiments.loss_by_position import logarithmic_bins, loss_by_position
from goldfinch.files import write_text
from goldfinch.inference.context import Context
from goldfinch.json_yaml import read_json
from goldfinch.model import Decoder
from goldfinch.settings import from_plain
from goldfinch.training.loss import PositionLoss
from goldfinch.training.parallel.processes import SINGLE_PROCESS
from goldfinch.training.run.data import RunData

FILE = "measurements.json"
POSITION_TOKENS = 65_536
"""Maximum validation tokens for the loss by position: windows from all over the split."""
WINDOWS_AT_ONCE = 8
READ_TOKENS = 512
"""n: the context is measured after n and after 2n tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """Measured on a run's final weights."""

    loss_by_position: tuple[PositionLoss, ...]
    """On validation windows of the training's sequence length."""
    cache_bytes_per_token: float
    """Bytes that each token adds, in bf16: latent and token id in a GoldFinch, keys and values of other attention."""
    state_bytes: int
    """Bytes that do not grow with the text, in bf16, except S of recurrent layers, which is fp32."""


def measure_runs(
    runs: Sequence[Run], output: Path, data: tuple[str, ...], progress: Callable[[Run], None]
) -> dict[str, Measurement]:
    """Measure finished runs, each once: results are kept in `output`/measurements.json.

    Args:
        runs: all finished.
        output: folder of that file.
        data: where their data is; () for where each run's settings say.
        progress: called with each run before it is measured.

    Returns:
        "NAME/seed-N" -> its measurement.

    Raises:
        UserError: the data directory of a run is missing, or a run's weights are corrupt.
    """
    path = output / FILE
    known = _read(path)
    for run in runs:
        weights = (run.folder / WEIGHTS).stat()
        stamp = [weights.st_size, weights.st_mtime_ns]
        if known.get(label(run), {}).get("weights") == stamp:
            continue
        progress(run)
        content = dataclasses.asdict(measure(run, data))
        known[label(run)] = {"weights": stamp, **content}
        write_text(path, json.dumps(known, indent=1) + "\n")
    return {
        label(run): from_plain(Measurement, {k: v for k, v in known[label(run)].items() if k != "weights"})
        for run in runs
    }


def label(run: Run) -> str:
    """NAME/seed-N."""
    return f"{run.name}/seed-{run.seed}"


def measure(run: Run, data: tuple[str, ...]) -> Measurement:
    """Measure one run's final weights; `data` is as in `measure_runs`."""
    length = run.settings.sequence_length
    windows = _validation_windows(run, data)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    losses = loss_by_position(load_model(run.folder, torch.float32, device).eval(), windows, length)
    text = torch.cat([part[:, :-1].flatten() for part in windows])
    ids = text.repeat(-(-2 * READ_TOKENS // len(text)))[: 2 * READ_TOKENS]
    per_token, state = context_bytes(load_model(run.folder, torch.bfloat16).eval(), ids)
    return Measurement(
        loss_by_position=tuple(losses.bins(logarithmic_bins(length))),
        cache_bytes_per_token=per_token,
        state_bytes=state,
    )


def context_bytes(model: Decoder, ids: Tensor) -> tuple[float, int]:
    """Bytes of a context that each token adds, and bytes that do not grow.

    Counted on the tensors of a `Context` after the first half of a text, and after all of it.

    Args:
        model: of any kind.
        ids: (2n,) int64; n a multiple of 64, by which caches grow.
    """
    context = Context(model, None)
    counts = []
    for part in ids.chunk(2):
        context.read(part)
        context.sequence.compute_logits()  # runs the GOLD layers, whose token shifts are part of the state
        usage = context.memory_usage()
        # Other models do not need the ids, which a context keeps for `truncate`.
        counts.append(usage.state + (usage.key_cache if model.config.num_gold_layers else 0))
    half, whole = counts
    return (whole - half) / (len(ids) // 2), 2 * half - whole


def _validation_windows(run: Run, data: tuple[str, ...]) -> list[Tensor]:
    """(B, T + 1) int64 each, of the training's sequence length, evenly spread over the validation split."""
    config = dataclasses.replace(run.settings, data=data or run.settings.data, batch_size=WINDOWS_AT_ONCE)
    config = dataclasses.replace(config, micro_batch_size=0)
    try:
        sources = RunData(config, SINGLE_PROCESS).validation_windows(0)
    except UserError as error:
        if data:
            raise
        raise UserError(f"{run.folder}: {error}; if its data has moved, give --data") from error
    rows = [row for part in itertools.chain.from_iterable(sources.values()) for row in part]
    count = min(max(1, POSITION_TOKENS // run.settings.sequence_length), len(rows))
    chosen = [rows[index * len(rows) // count] for index in range(count)]
    length = max(map(len, chosen))
    whole = [row for row in chosen if len(row) == length]  # without the shorter one at the end of each source
    return list(torch.stack(whole).split(WINDOWS_AT_ONCE))


def _read(path: Path) -> dict[str, Any]:
    """The content of measurements.json; empty where there is none.

    Raises:
        UserError: it is not a JSON object.
    """
    if not path.exists():
        return {}
    try:
        content = read_json(path)
    except UserError as error:
        raise UserError(f"{error}; remove it to measure again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} was not written by `goldfinch compare`; remove it to measure again")
    return content
