"""`goldfinch convert`: published `.pth` checkpoints to our folders, and back."""

import dataclasses
import itertools
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from goldfinch.cli.arguments import parse, require_source
from goldfinch.cli.terminal import shown

if TYPE_CHECKING:
    from goldfinch.checkpoint.convert import Converted
    from goldfinch.config import ModelConfig
    from goldfinch.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert:
    """Convert a published RWKV .pth checkpoint to a goldfinch folder, or a folder back to a .pth file."""

    source: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="PTH|FOLDER")]]
    """A .pth file, or a model folder."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Output folder (from .pth) or .pth file (from folder)."""
    config: Annotated[tyro.conf.UseAppendAction[tuple[tuple[Path, ...], ...]], tyro.conf.arg(metavar="FILE ...")] = ()
    """YAML or JSON config files of the reference implementation that describe the .pth, later ones overriding earlier
    ones; or the config.json of a model folder. Default: the .yaml next to the .pth, if there is one. A pure Finch
    (RWKV-6 World) model needs none."""
    tokenizer: Annotated[str | None, tyro.conf.arg(metavar="world|bytes|FILE")] = None
    """Tokenizer of the folder: world, bytes or a tokenizer.json file. Default: the .tokenizer.json next to the .pth, or
    for 65,536 ids world."""
    overwrite: bool = False
    """Overwrite the output if it exists."""

    def run(self) -> None:
        """Convert, and print a summary and the next command.

        Raises:
            UserError: see `goldfinch.checkpoint.convert`; then nothing is written.
        """
        source = require_source(self.source)
        if source.is_dir():
            self._export(source)
        else:
            self._import()

    def _import(self) -> None:
        from goldfinch.checkpoint.convert import import_reference

        converted = import_reference(
            self.source, self._model_config(), self.output, self._tokenizer(), overwrite=self.overwrite
        )
        print_summary(converted)
        folder = shlex.quote(str(self.output))
        if converted.tokenizer is None:
            print(f"wrote {self.output} without a tokenizer: add its tokenizer.json to use it with text")
        else:
            print(f"wrote {self.output} with the {converted.tokenizer} tokenizer")
            print(f'next: goldfinch generate {folder} "Once upon a time"')

    def _export(self, folder: Path) -> None:
        from goldfinch.checkpoint.companions import CompanionPaths
        from goldfinch.checkpoint.convert import export_reference
        from goldfinch.errors import UserError

        if self.config or self.tokenizer is not None:
            raise UserError(f"--config and --tokenizer are for .pth files: the folder {folder} has its own")
        print_summary(export_reference(folder, self.output, overwrite=self.overwrite))
        others = [str(path) for path in CompanionPaths.of(self.output) if path.exists()]
        print(f"wrote {self.output}, and next to it {', '.join(others)}, which converting it back reads")

    def _model_config(self) -> "ModelConfig | None":
        from goldfinch.checkpoint.reference_config import described_config, ignored_keys, read_reference_config

        if not self.config:
            return None
        values = read_reference_config(list(itertools.chain.from_iterable(self.config)))
        ignored = ignored_keys(values)
        if ignored:
            print(f"ignored config keys, which do not affect the model: {shown(', '.join(ignored))}")
        return described_config(values)

    def _tokenizer(self) -> "Tokenizer | None":
        from goldfinch.data.tokenizers import named_tokenizer

        return None if self.tokenizer is None else named_tokenizer(self.tokenizer)


def print_summary(converted: "Converted") -> None:
    """Print the layers and parameters of a model that was converted or exported."""
    config = converted.config
    print(f"layers:     {converted.plan}; width {config.width}, vocabulary {config.vocab_size}")
    print(f"parameters: {converted.parameters:,} in {' and '.join(converted.dtypes)}")


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    parse(Convert, "convert", args).run()
