"""`goldfinch export`: models for other programs."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from goldfinch.argument_checks import num_bytes
from goldfinch.cli.arguments import parse, require_source
from goldfinch.cli.convert import print_summary
from goldfinch.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Gguf:
    """Write a Finch as a GGUF file for llama.cpp, with its tokenizer and, if it has one, its chat template.

    goldfinch export gguf runs/finch -o finch.gguf

    goldfinch export gguf rwkv-6-world.pth -o rwkv-6-world.gguf --dtype q8_0

    llama.cpp runs Finch (RWKV-6), with the same logits and tokens; it has no architecture for GoldFinch or other kinds.
    Needs `pip install 'goldfinch[gguf]'`.
    """

    finch: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FOLDER|PTH")]]
    """A folder with a Finch, from `goldfinch train` or `goldfinch convert`, the .pth file of an RWKV-6 World model, or
    hf:OWNER/NAME."""
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
        finch = require_source(self.finch)

        from goldfinch.checkpoint.gguf import export_gguf

        exported = export_gguf(finch, self.output, self.dtype, overwrite=self.overwrite)
        print_summary(exported)
        print(f"wrote {self.output} with the {exported.tokenizer} tokenizer")
        print(f'next: llama-completion -m {shlex.quote(str(self.output))} -no-cnv -n 100 -p "Once upon a time"')


@dataclass(frozen=True, kw_only=True)
class Hf:
    """Write any model as a repository folder for the Hugging Face Hub, which transformers and gf.load read as well.

    goldfinch export hf runs/quickstart -o quickstart

    hf upload OWNER/NAME quickstart

    It holds the config, the weights as safetensors, the tokenizer, the chat template, a model card (README.md) with
    what the training run has recorded, and a small file that imports goldfinch for trust_remote_code=True.
    Needs `pip install 'goldfinch[hf]'`.
    """

    model: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="MODEL|PTH")]]
    """A model folder or a training run, the .pth file of an RWKV-6 World model or one that `goldfinch convert` wrote,
    or hf:OWNER/NAME."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")]
    """Output folder."""
    shard_size: Annotated[str, tyro.conf.arg(metavar="SIZE")] = "5GB"
    """Size above which the weights are split into several files, such as 500MB or 2GiB."""
    overwrite: bool = False
    """Overwrite the folder if it exists and holds only such a repository."""

    def run(self) -> None:
        """Export, and print a summary and the next commands.

        Raises:
            UserError: see `goldfinch.huggingface.repository`; then nothing is written.
        """
        shard_bytes = num_bytes("--shard-size", self.shard_size)
        if not shard_bytes:
            raise UserError("--shard-size must be above 0")
        source = require_source(self.model)
        try:
            from goldfinch.huggingface.repository import export_repository
        except ImportError as error:
            raise UserError(f"transformers is not installed ({error}): pip install 'goldfinch[hf]'") from error

        exported = export_repository(source, self.output, shard_bytes, overwrite=self.overwrite)
        print_summary(exported)
        folder = shlex.quote(str(self.output))
        print(f"wrote {self.output}: read its README.md, and add what it does not know, such as the licence")
        print(f"next: hf upload OWNER/NAME {folder}")


@dataclass(frozen=True, kw_only=True)
class Onnx:
    """Write one step of the recurrent layers as an ONNX file, for programs without PyTorch.

    goldfinch export onnx runs/finch -o finch.onnx

    Inputs are a token and the state of each layer, outputs the state after it and the logits of a Finch. Of a
    GoldFinch, whose GOLD layers are not in the file, they are the compressed key and the hidden state of the token:
    what reads a text into a context. Needs `pip install 'goldfinch[onnx]'`.
    """

    model: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="MODEL|PTH")]]
    """A model folder or a training run, the .pth file of an RWKV-6 World model or one that `goldfinch convert` wrote,
    or hf:OWNER/NAME."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE.onnx")]
    """Output file."""
    overwrite: bool = False
    """Overwrite the file if it exists."""

    def run(self) -> None:
        """Export, and print a summary and the next command.

        Raises:
            UserError: see `goldfinch.checkpoint.onnx`; then nothing is written.
        """
        source = require_source(self.model)

        from goldfinch.checkpoint.onnx import export_onnx

        exported = export_onnx(source, self.output, overwrite=self.overwrite)
        print_summary(exported)
        print(f"wrote {self.output}")
        program = f"import onnxruntime; print(*onnxruntime.InferenceSession({str(self.output)!r}).get_inputs())"
        print(f"next: python -c {shlex.quote(program)}")


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a model for other programs. (`goldfinch convert` writes RWKV's .pth.)"""

    command: tyro.conf.OmitSubcommandPrefixes[
        Annotated[Hf, tyro.conf.subcommand("hf")]
        | Annotated[Gguf, tyro.conf.subcommand("gguf")]
        | Annotated[Onnx, tyro.conf.subcommand("onnx")]
    ]


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    parse(Export, "export", args).command.run()
