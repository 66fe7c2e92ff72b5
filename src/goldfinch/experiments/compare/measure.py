"""What a trained model is measured on after its training: loss by position, and the bytes it remembers a text with."""

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
from goldfinch.experiments.loss_by_position import logarithmic, loss_by_position
from goldfinch.files import write_text
from goldfinch.inference.context import Context
from goldfinch.model import Decoder
from goldfinch.settings import from_plain
from goldfinch.training.config import TrainConfig
from goldfinch.training.loss import PositionLoss
from goldfinch.training.parallel.processes import SINGLE_PROCESS
from goldfinch.training.run.data import RunData

FILE = "measurements.json"
POSITION_TOKENS = 65_536
"""Validation tokens that the loss by position is a mean over, at most: windows from all over the split."""
WINDOWS_AT_ONCE = 8
READ_TOKENS = 512
"""n: memory is measured after n and after 2n tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """Of one run's final weights."""

    loss_by_position: tuple[PositionLoss, ...]
    """In windows as long as those of the training, on validation tokens."""
    cache_bytes_per_token: float
    """What each token adds, in bf16: the compressed key and the token id of a GoldFinch, keys and values of other
    attention layers."""
    state_bytes: int
    """What does not grow, in bf16 but for the recurrent layers' S, which is fp32."""


def measure_runs(
    runs: Sequence[Run], output: Path, data: tuple[str, ...], progress: Callable[[Run], None]
) -> dict[str, Measurement]:
    """Measure finished runs, each once: what is known is in `output`/measurements.json.

    Args:
        runs: all finished.
        output: folder of that file.
        data: where their data is; () for what each run's settings say.
        progress: told of each run before it is measured.

    Returns:
        "NAME/seed-N" -> its measurement.

    Raises:
        UserError: the data directory is not where a run says, or a run's weights are broken.
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
    """Measure one run's final weights; `data` as in `measure_runs`."""
    length = run.settings["sequence_length"]
    windows = _validation_windows(run, data)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    losses = loss_by_position(load_model(run.folder, torch.float32, device).eval(), windows, length)
    text = torch.cat([part[:, :-1].flatten() for part in windows])
    ids = text.repeat(-(-2 * READ_TOKENS // len(text)))[: 2 * READ_TOKENS]
    per_token, state = remembered_bytes(load_model(run.folder, torch.bfloat16).eval(), ids)
    return Measurement(
        loss_by_position=tuple(losses.bins(logarithmic(length))), cache_bytes_per_token=per_token, state_bytes=state
    )


def remembered_bytes(model: Decoder, ids: Tensor) -> tuple[float, int]:
    """What a model needs to go on with a text: bytes that each token adds, and bytes that do not grow.

    Counted from the tensors of a `Context` that has read the first half of a text, and all of it.

    Args:
        model: of any kind.
        ids: (2n,) int64; n a multiple of 64, the rows in which memories grow.
    """
    context = Context(model, None)
    counts = []
    for part in ids.chunk(2):
        context.read(part)
        context.sequence.compute_logits()  # runs the GOLD layers, whose token shifts are part of the state
        usage = context.memory_usage()
        # Other models do not need the ids that a context keeps for `trim`.
        counts.append(usage.state + (usage.key_cache if model.config.num_gold_layers else 0))
    half, whole = counts
    return (whole - half) / (len(ids) // 2), 2 * half - whole


def _validation_windows(run: Run, data: tuple[str, ...]) -> list[Tensor]:
    """(B, T + 1) int64 each, as long as those of the training, evenly spread over the validation split."""
    values = {
        "model": run.model.to_dict(),
        "data": list(data) or run.settings["data"],
        "output": str(run.folder),
        "sequence_length": run.settings["sequence_length"],
        "batch_size": WINDOWS_AT_ONCE,
        "steps": 1,
    }
    try:
        sources = RunData(TrainConfig.from_dict(values), SINGLE_PROCESS).validation_windows(0)
    except UserError as error:
        if data:
            raise
        raise UserError(f"{run.folder}: {error}; if its data has moved, give --data") from error
    rows = [row for part in itertools.chain.from_iterable(sources.values()) for row in part]
    most = max(1, POSITION_TOKENS // run.settings["sequence_length"])
    chosen = [rows[index * len(rows) // most] for index in range(most)] if len(rows) > most else rows
    length = max(map(len, chosen))
    whole = [row for row in chosen if len(row) == length]  # without the rest at the end of each source
    return list(torch.stack(whole).split(WINDOWS_AT_ONCE))


def _read(path: Path) -> dict[str, Any]:
    """The content of measurements.json; empty where there is none.

    Raises:
        UserError: it is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; remove it to measure again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not what `goldfinch compare` writes; remove it to measure again")
    return content
