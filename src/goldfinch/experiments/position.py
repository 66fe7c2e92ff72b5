"""Loss by position far beyond the trained length, on a held-out text, with and without interpolated positions."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from goldfinch.checkpoint.model_folder import WEIGHTS, load_model, read_config, read_tokenizer
from goldfinch.config import RopeConfig
from goldfinch.errors import UserError
from goldfinch.experiments.loss_by_position import (
    linear_bins,
    logarithmic_bins,
    loss_by_position,
    plot_loss_by_position,
)
from goldfinch.experiments.markdown import markdown_table
from goldfinch.files import write_text
from goldfinch.json_yaml import read_json
from goldfinch.plots import draw
from goldfinch.settings import from_plain
from goldfinch.training.loss import PositionLoss
from goldfinch.training.run.folder import trained_length

CURVES, RESULTS, PLOT = "curves.json", "results.md", "loss_by_position.png"


# The fields of a curve that say what was measured; the others are results.
_IDENTITY = ("run", "weights", "text", "length", "rope", "windows")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """The loss of one model, with one setting, over one text."""

    run: str
    """Folder of the model."""
    weights: str
    """SHA-256 of its weights."""
    text: str
    """SHA-256 of the text."""
    length: int
    """T, tokens in a window."""
    rope: RopeConfig | None
    """Rotary positions of the model."""
    windows: int
    """Number of windows, from the start of the text."""
    trained_length: int | None = None
    """Sequence length that it was trained with, if known."""
    logarithmic: tuple[PositionLoss, ...] = ()
    """Losses in bins whose size doubles."""
    linear: tuple[PositionLoss, ...] = ()
    """Losses in bins of equal size."""

    @property
    def name(self) -> str:
        """The folder, and how its positions are interpolated."""
        if self.rope is None or (self.rope.rescale, self.rope.rebase) == (1.0, 1.0):
            return self.run
        changed = [f"{field}={getattr(self.rope, field):g}" for field in ("rescale", "rebase")]
        return f"{self.run}, {', '.join(text for text in changed if not text.endswith('=1'))}"


def split_windows(ids: Tensor, length: int, max_windows: int = 0) -> list[Tensor]:
    """Cut a text into windows that overlap by one token: (n,) int64 -> (1, length + 1) each; the rest is left out.

    Args:
        ids: of the text.
        length: T.
        max_windows: maximum number of windows; 0 for all.

    Raises:
        UserError: the text is shorter than one window.
    """
    count = (len(ids) - 1) // length
    if count < 1:
        raise UserError(f"the text has {len(ids):,} tokens, one window needs {length + 1:,}: give a shorter --length")
    count = min(count, max_windows or count)
    return [ids[None, start : start + length + 1] for start in range(0, count * length, length)]


def measure_curves(
    runs: Sequence[Path],
    text: str,
    length: int,
    max_windows: int,
    interpolations: Sequence[RopeConfig],
    output: Path,
    progress: Callable[[Curve, int, int], None],
) -> list[Curve]:
    """Read the text with every model: as trained and, if it has rotary positions, with each interpolation.

    Args:
        runs: folders of models.
        text: in windows of `length` tokens, each from an empty state.
        length: T, at least 1.
        max_windows: maximum number of windows, from the start of the text; 0 for all.
        interpolations: `rescale` and `rebase` that replace those of a model.
        output: folder whose curves.json keeps what was measured.
        progress: called with (curve, windows done, number of windows).

    Raises:
        UserError: a folder holds no model or no tokenizer, the text is too short, or there are interpolations and no
            model has rotary positions.
    """
    path = output / CURVES
    known = _read(path)
    text_hash = hashlib.sha256(text.encode()).hexdigest()
    configs = [read_config(run) for run in runs]
    if interpolations and all(config.rope is None for config in configs):
        raise UserError("--rope interpolates rotary positions, and no model here has any")
    curves = []
    for run, config in zip(runs, configs, strict=True):
        tokenizer = read_tokenizer(run, config)
        if tokenizer is None:
            raise UserError(f"{run} has no tokenizer, so it cannot read a text")
        weights_hash = _sha256(run / WEIGHTS)
        parts = split_windows(torch.tensor(tokenizer.encode(text)), length, max_windows)
        own = config.rope
        ropes = [own]
        if own is not None:
            ropes += [dataclasses.replace(own, rescale=other.rescale, rebase=other.rebase) for other in interpolations]
        for rope in dict.fromkeys(ropes):
            curve = Curve(
                run=str(run), weights=weights_hash, text=text_hash, length=length, rope=rope, windows=len(parts)
            )
            found = next((each for each in known if _same(each, curve)), None)
            if found is None:
                found = _measure(curve, parts, progress)
                known.append(found)
                write_text(path, json.dumps([dataclasses.asdict(each) for each in known], indent=1) + "\n")
            curves.append(found)
    return curves


def _measure(curve: Curve, parts: Sequence[Tensor], progress: Callable[[Curve, int, int], None]) -> Curve:
    run, length = Path(curve.run), curve.length
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(run, torch.float32, device, curve.rope).eval()

    def parts_with_progress() -> Iterator[Tensor]:
        for number, part in enumerate(parts):
            progress(curve, number, len(parts))
            yield part

    losses = loss_by_position(model, parts_with_progress(), length)
    progress(curve, len(parts), len(parts))
    return dataclasses.replace(
        curve,
        trained_length=trained_length(run),
        logarithmic=tuple(losses.bins(logarithmic_bins(length))),
        linear=tuple(losses.bins(linear_bins(length))),
    )


def _same(first: Curve, second: Curve) -> bool:
    return all(getattr(first, name) == getattr(second, name) for name in _IDENTITY)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; train the model first") from error


def _read(path: Path) -> list[Curve]:
    if not path.exists():
        return []
    try:
        return [from_plain(Curve, content) for content in read_json(path)]
    except (TypeError, UserError) as error:
        raise UserError(f"{error}; remove {path} to measure again") from error


def write_position_report(curves: Sequence[Curve], text_name: str, output: Path) -> None:
    """Write `results.md` and `loss_by_position.png` into `output`."""
    names = _short_names(curves)

    def table(bins: Sequence[Sequence[PositionLoss]]) -> str:
        lines = ((_positions(same[0]), *(f"{each.loss:.4f}" for each in same)) for same in zip(*bins, strict=True))
        return markdown_table(("tokens read", *names), lines)

    counts = {curve.windows for curve in curves}
    trained = {f"{curve.trained_length:,}" for curve in curves if curve.trained_length}
    numbers = " or ".join(map(str, sorted(counts)))
    explanation = [
        f"{text_name} in {numbers} windows of {curves[0].length:,} tokens, each read from an empty state.",
        "Nats per token, averaged over windows and over the tokens of a bin.",
    ]
    if trained:
        explanation.append(f"Sequence length of the training: {', '.join(sorted(trained))}.")
    if len(counts) > 1:
        explanation.append("**The models have different tokenizers: their losses cannot be compared.**")
    parts = [
        "# Loss by position in a long text",
        " ".join(explanation),
        table([curve.logarithmic for curve in curves]),
        table([curve.linear for curve in curves]),
        f"![Loss by position]({PLOT})",
    ]
    write_text(output / RESULTS, "\n\n".join(parts) + "\n")
    losses = {name: curve.logarithmic for name, curve in zip(names, curves, strict=True)}
    lengths = [curve.trained_length for curve in curves if curve.trained_length]
    draw(output / PLOT, lambda axes: plot_loss_by_position(axes, losses, lengths))


def _positions(part: PositionLoss) -> str:
    return f"{part.first:,}-{part.last:,}" if part.last > part.first else f"{part.first:,}"


def _short_names(curves: Sequence[Curve]) -> list[str]:
    """Names without the folders that all runs share."""
    parts = [Path(curve.run).parts for curve in curves]
    common = 0
    while len({part[:-1][: common + 1] for part in parts}) == 1 and common + 1 < min(map(len, parts)):
        common += 1
    return [
        curve.name.replace(curve.run, "/".join(part[common:]), 1) for curve, part in zip(curves, parts, strict=True)
    ]
