"""`goldfinch convert`: published `.pth` checkpoints to our folders, and back."""

import dataclasses
import itertools
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from goldfinch.cli.arguments import parse

if TYPE_CHECKING:
    from goldfinch.checkpoint.convert import Converted
    from goldfinch.config import ModelConfig
    from goldfinch.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert:
    """Convert a published .pth checkpoint to a folder that goldfinch loads, or such a folder back to a .pth."""

    source: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="PTH|FOLDER")]]
    """A .pth file, which becomes a folder, or a folder, which becomes a .pth file."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """What to write: the other one of the two."""
    config: Annotated[tyro.conf.UseAppendAction[tuple[tuple[Path, ...], ...]], tyro.conf.arg(metavar="FILE ...")] = ()
    """The reference's own yaml or json files that describe the .pth, later ones over earlier ones. A pure Finch
    (RWKV-6 World) model needs none."""
    tokenizer: Annotated[str | None, tyro.conf.arg(metavar="world|bytes|FILE")] = None
    """world, bytes or a tokenizer.json, to go with the folder. A vocabulary of 65536 gets world by itself."""
    overwrite: bool = False
    """Replace the output if it exists."""

    def run(self) -> None:
        """Convert, and print what was found and the next command.

        Raises:
            UserError: see `goldfinch.checkpoint.convert`; nothing is written then.
        """
        if self.source.is_dir():
            self._export()
        else:
            self._import()

    def _import(self) -> None:
        from goldfinch.checkpoint.convert import import_reference

        converted = import_reference(
            self.source, self._model_config(), self.output, self._tokenizer(), overwrite=self.overwrite
        )
        _print_summary(converted)
        folder = shlex.quote(str(self.output))
        if converted.tokenizer is None:
            print(f"{self.output} is written, without a tokenizer: put its tokenizer.json there to use it with text")
        else:
            print(f"{self.output} is written, with the {converted.tokenizer} tokenizer")
            print(f'next: goldfinch generate {folder} "Once upon a time"')

    def _export(self) -> None:
        from goldfinch.checkpoint.convert import export_reference
        from goldfinch.errors import UserError

        if self.config or self.tokenizer is not None:
            raise UserError(f"{self.source} is a folder, which has its config: leave out --config and --tokenizer")
        _print_summary(export_reference(self.source, self.output, overwrite=self.overwrite))
        print(f"{self.output} is written")

    def _model_config(self) -> "ModelConfig | None":
        from goldfinch.checkpoint.reference_config import (
            ignored_keys,
            model_config_from_reference,
            read_reference_config,
        )

        if not self.config:
            return None
        values = read_reference_config(list(itertools.chain.from_iterable(self.config)))
        ignored = ignored_keys(values)
        if ignored:
            print(f"config keys that do not shape the model, ignored: {', '.join(ignored)}")
        return model_config_from_reference(values)

    def _tokenizer(self) -> "Tokenizer | None":
        from goldfinch.data.tokenizers import ByteTokenizer, WorldTokenizer, load_tokenizer

        match self.tokenizer:
            case None:
                return None
            case "world":
                return WorldTokenizer()
            case "bytes":
                return ByteTokenizer()
            case path:
                return load_tokenizer(Path(path))


def _print_summary(converted: "Converted") -> None:
    config = converted.config
    plan = ", then ".join(f"{len(list(run))} {kind}" for kind, run in itertools.groupby(config.time_mixes))
    print(f"layers:     {plan}; width {config.width}, vocabulary {config.vocab_size}")
    print(f"parameters: {converted.parameters:,} in {' and '.join(converted.dtypes)}")


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    parse(Convert, "convert", args).run()
