"""What commands that write after a text share: the options of opening it, and opening it."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from goldfinch.cli.rope import parse_rope
from goldfinch.cli.units import size
from goldfinch.errors import UserError

if TYPE_CHECKING:
    from goldfinch.inference.context import Context
    from goldfinch.inference.language_model import LanguageModel
    from goldfinch.inference.speculation import Speculation

Rope = Annotated[str | None, tyro.conf.arg(metavar="rescale=4,rebase=1")]
ModelOrContextPath = Annotated[Path, tyro.conf.arg(metavar="FOLDER|FILE.gfc")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextOptions:
    """How a model, or a file of `goldfinch read`, is opened."""

    model: Annotated[Path | None, tyro.conf.arg(aliases=["-m"], metavar="FOLDER")] = None
    """Folder of the model of a .gfc file, where it is no longer at the place that the file remembers."""
    cache_budget: Annotated[str, tyro.conf.arg(metavar="auto|SIZE")] = "auto"
    """Memory for keys and values that are kept between steps, such as 2GiB, 500MB or 0; auto is half of what is free.
    Less memory makes each step slower and changes no word."""
    dtype: str | None = None
    """Type of the weights, such as bfloat16; as they are stored, or as they were for the .gfc file, if not given."""
    device: str = "cpu"
    """cpu, cuda, ..."""
    rope: Rope = None
    """Rotary positions to use in place of the model's, for texts longer than it was trained on: rescale divides the
    angles, rebase multiplies their base; what is left out is the model's own."""
    guess: int = 8
    """Most tokens to guess at once, from what followed the last words where they stood before; 0 for none. The model
    looks at all guesses in one step and drops what it would not have written: that saves time where a text repeats
    itself, and changes no word."""

    def speculation(self) -> "Speculation":
        """For `Context.generate`, by the options."""
        from goldfinch.inference.speculation import Speculation

        return Speculation(most=self.guess)

    def open(self, source: Path) -> "Context":
        """An empty context of the model in a folder, or what a file holds; then one line on stderr says what that is.

        Raises:
            UserError: there is neither, or the file's model is not there or another one.
        """
        return self.open_file(source) if source.is_file() or source.suffix == ".gfc" else self._open_folder(source)

    def open_file(self, path: Path) -> "Context":
        """What a file of `goldfinch read` holds; see `open`."""
        from goldfinch.inference.context_file.format import read_description
        from goldfinch.inference.context_file.text import require_model_folder

        description = read_description(path)
        folder = require_model_folder(path, description, self.model)
        lm = load_folder(folder, self.dtype or description.dtype, self.device, self.rope)
        context = lm.open(path, self.cache_budget)
        print(f"{path}: {len(context):,} tokens{_kept(context)}", file=sys.stderr)
        return context

    def _open_folder(self, folder: Path) -> "Context":
        if self.model is not None:
            raise UserError(f"{folder} is no .gfc file, which -m is for: leave out -m, or the folder")
        return load_folder(folder, self.dtype, self.device, self.rope).context(budget=self.cache_budget)


def load_folder(folder: Path, dtype: str | None, device: str, rope: str | None) -> "LanguageModel":
    """`goldfinch.load`, with positions as `--rope` gives them.

    Raises:
        UserError: as `goldfinch.load`, or `rope` says nothing of positions.
    """
    from goldfinch import load

    if rope is None:
        return load(folder, dtype, device)
    from goldfinch.checkpoint.model_folder import read_config

    positions = parse_rope(rope, read_config(folder).rope)
    if positions is None:
        raise UserError("--rope none: positions can be changed, not left out; give fields such as rescale=4")
    return load(folder, dtype, device, positions)


def text_argument(argument: str) -> str:
    """The text itself; of "-", what standard input holds.

    Raises:
        UserError: that is not UTF-8.
    """
    if argument != "-":
        return argument
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 text: {error}") from error


def _kept(context: "Context") -> str:
    """What the budget is enough for at the present length."""
    expansion = context.sequence.key_value_cache
    if expansion is None:
        return ""
    level, tokens, budget = expansion.level, len(context), size(expansion.budget)
    if level == "latents":
        needed = size(expansion.bytes_at("shared_keys", tokens))
        return f"; keys and values rebuilt at every step (keeping some takes {needed}, the budget is {budget})"
    return f"; {level} kept ({size(expansion.bytes_at(level, tokens))} of {budget})"
