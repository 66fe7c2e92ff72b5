"""`goldfinch export`: models in the formats of other programs."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from goldfinch.cli.arguments import parse, require_path
from goldfinch.cli.convert import print_summary


@dataclass(frozen=True, kw_only=True)
class Gguf:
    """Write a Finch as a GGUF file for llama.cpp, with its tokenizer and, if it has one, its chat template.

    goldfinch export gguf runs/finch -o finch.gguf

    goldfinch export gguf rwkv-6-world.pth -o rwkv-6-world.gguf --dtype q8_0

    llama.cpp runs Finch (RWKV-6), with the same logits and tokens; it has no architecture for GoldFinch or other kinds.
    Needs `pip install 'goldfinch[gguf]'`.
    """

    finch: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FOLDER|PTH")]]
    """A folder with a Finch, from `goldfinch train` or `goldfinch convert`, or the .pth file of an RWKV-6 World
    model."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE.gguf")]
    """Output file."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "q8_0"] = "auto"
    """How the matrices are stored; auto: as in the model. q8_0 takes 8.5 bits per number. For fewer, give a file in
    another dtype to llama.cpp's llama-quantize."""
    overwrite: bool = False
    """Overwrite the file if it exists."""

    def run(self) -> None:
        """Export, and print a summary and the next command.

        Raises:
            UserError: see `goldfinch.checkpoint.gguf`; then nothing is written.
        """
        require_path(self.finch)

        from goldfinch.checkpoint.gguf import export_gguf

        exported = export_gguf(self.finch, self.output, self.dtype, overwrite=self.overwrite)
        print_summary(exported)
        print(f"wrote {self.output} with the {exported.tokenizer} tokenizer")
        print(f'next: llama-completion -m {shlex.quote(str(self.output))} -no-cnv -n 100 -p "Once upon a time"')


# Subcommands are a union for tyro, which needs two members: the second is hidden.
_Command = Annotated[Gguf, tyro.conf.subcommand("gguf")] | Annotated[None, tyro.conf.Suppress]


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a model in the format of another program: GGUF for llama.cpp. (`goldfinch convert` writes RWKV's .pth.)"""

    command: tyro.conf.OmitSubcommandPrefixes[_Command]


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    command = parse(Export, "export", args).command
    assert command is not None
    command.run()
