"""What the commands that generate after a text share: options for opening it, and opening it."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from goldfinch.cli.arguments import require_model, require_path
from goldfinch.cli.rope import parse_rope
from goldfinch.cli.terminal import print_text, shown
from goldfinch.cli.units import plural, size
from goldfinch.devices import check_device_name, check_dtype_name
from goldfinch.errors import UserError

if TYPE_CHECKING:
    from goldfinch.inference.context import Context
    from goldfinch.inference.generation import GenerationStream
    from goldfinch.inference.language_model import LanguageModel

Rope = Annotated[str | None, tyro.conf.arg(metavar="rescale=4,rebase=1")]
Dtype = Annotated[str, tyro.conf.arg(metavar="auto|DTYPE")]
Device = Annotated[str, tyro.conf.arg(metavar="auto|DEVICE")]
ModelOrContextPath = Annotated[Path, tyro.conf.arg(metavar="MODEL|FILE.gfc")]
DEFAULT_MAX_TOKENS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextOptions:
    """How a model, or a .gfc file of `goldfinch read`, is opened."""

    model: Annotated[Path | None, tyro.conf.arg(aliases=["-m"], metavar="MODEL")] = None
    """Model folder for a .gfc file, if it is no longer where the file says."""
    cache_budget: Annotated[str, tyro.conf.arg(metavar="auto|SIZE")] = "auto"
    """Memory for expanded keys and values, such as 2GiB, 500MB or 0; auto is half of the free memory. Lower values are
    slower; the output is the same."""
    dtype: Dtype = "auto"
    """Weight dtype: float32, bfloat16 or float16; auto: the one recorded in the .gfc file; for a model, bfloat16 where
    the processor or GPU multiplies it natively, else float32."""
    device: Device = "auto"
    """cpu, cuda or cuda:N; auto is a GPU if there is one."""
    rope: Rope = None
    """Rotary positions for texts longer than the model was trained on: rescale divides the angles, rebase multiplies
    their base. Omitted fields keep the model's values."""
    max_draft_tokens: int = 8
    """Prompt-lookup speculative decoding: maximum draft tokens per step (0 disables). Does not change the output."""

    def open(self, source: Path) -> "Context":
        """An empty context of the model in a folder, or the content of a .gfc file, announced in a line on stderr.

        Raises:
            UserError: there is neither, or the file's model is missing or another one.
        """
        return self.open_file(source) if source.is_file() or source.suffix == ".gfc" else self._open_folder(source)

    def open_file(self, path: Path) -> "Context":
        """The content of a .gfc file; see `open`."""
        require_path(path)
        check_dtype_and_device(self.dtype, self.device)
        if self.model is not None:
            require_model(self.model)
        from goldfinch.inference.context_file.description import read_description
        from goldfinch.inference.context_file.text import require_model_folder

        description = read_description(path)
        folder = require_model_folder(path, description, self.model)
        dtype = description.dtype if self.dtype == "auto" else self.dtype
        context = load_folder(folder, dtype, self.device, self.rope).open(path, self.cache_budget)
        print(
            f"{shown(str(path), sys.stderr)}: {plural(len(context), 'token')}{_cache_level(context)}", file=sys.stderr
        )
        if context.sequence.key_value_cache is not None:
            from goldfinch.cli.progress import FirstPassDisplay

            context.sequence.key_value_cache.progress = FirstPassDisplay().advance
        return context

    def _open_folder(self, folder: Path) -> "Context":
        if self.model is not None:
            raise UserError(f"-m is for .gfc files, and {folder} is not one: omit -m")
        return load_folder(folder, self.dtype, self.device, self.rope).context(budget=self.cache_budget)


def load_folder(folder: Path, dtype: str, device: str, rope: str | None) -> "LanguageModel":
    """`goldfinch.load`, with rotary positions as `--rope` gives them.

    Raises:
        UserError: as `goldfinch.load`, or `rope` has an unknown field.
    """
    folder = require_model(folder)
    check_dtype_and_device(dtype, device)

    from goldfinch import load

    if rope is None:
        return load(folder, dtype, device)
    from goldfinch.checkpoint.model_folder import read_config

    positions = parse_rope(rope, read_config(folder).rope)
    if positions is None:
        raise UserError("--rope none: positions can be changed, not removed; give fields such as rescale=4")
    return load(folder, dtype, device, positions)


def check_dtype_and_device(dtype: str, device: str) -> None:
    """Refuse names that do not exist before PyTorch is loaded."""
    check_dtype_name(dtype)
    check_device_name(device)


def text_argument(argument: str) -> str:
    """The argument itself, or standard input if it is "-".

    Raises:
        UserError: standard input is not UTF-8.
    """
    if argument != "-":
        return argument
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 text: {error}") from error


def print_stream(stream: "GenerationStream", strip: bool = False, prompt: str = "") -> None:
    """Print pieces of text as they come.

    Args:
        stream: the pieces.
        strip: whether to drop the space that a chat template puts before an answer.
        prompt: printed before the first piece, when that is there: nothing is printed if the model fails.
    """
    for piece in stream:
        print_text(prompt + (piece.lstrip(" ") if strip else piece), end="")
        strip, prompt = False, ""
    print_text(prompt, end="")


def _cache_level(context: "Context") -> str:
    """What the budget allows at the present length."""
    cache = context.sequence.key_value_cache
    if cache is None:
        return ""
    level, tokens, budget = cache.level, len(context), size(cache.budget)
    if level == "latents":
        needed = size(cache.nbytes_at("shared_keys", tokens))
        return f"; keys and values are rebuilt at every step (keeping some takes {needed}, the budget is {budget})"
    return f"; cache level {level} ({size(cache.nbytes_at(level, tokens))} of {budget})"
