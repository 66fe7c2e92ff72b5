"""`goldfinch read`: prefill files once and save the context."""

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from goldfinch.cli.arguments import parse, require_model
from goldfinch.cli.contexts import ContextOptions, Device, Dtype, Rope, load_folder
from goldfinch.cli.progress import ReadingDisplay, SkippedDocuments, errors_console
from goldfinch.cli.tables import print_json
from goldfinch.cli.terminal import shown
from goldfinch.cli.text_files import TextFileOptions
from goldfinch.cli.units import clock, plural, size
from goldfinch.devices import check_device_name, check_dtype_name
from goldfinch.errors import UserError

if TYPE_CHECKING:
    from goldfinch.inference.context import Context


@dataclasses.dataclass(frozen=True, kw_only=True)
class Read:
    """Prefill files once and save the context: goldfinch read book.txt -m runs/quickstart -o book.gfc

    Reading takes constant work per token; the file holds one small compressed key per token. Then `goldfinch ask`,
    `goldfinch chat` and `goldfinch generate` open the file at once, as often as you like, and continue from the text.
    """

    files: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE ...")]]
    """Text files of any kind, one document each; .jsonl, .jsonl.gz and .parquet, one document per line or row; folders,
    for all text files in them except hidden ones and what .gitignore excludes; quoted patterns such as "src/**/*.py"; -
    for standard input."""
    model: Annotated[Path, tyro.conf.arg(aliases=["-m"], metavar="MODEL")]
    """Model folder, from `goldfinch train` or `goldfinch convert`, or hf:OWNER/NAME, one on the Hub."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE.gfc")]
    """Context file to write."""
    latents: Literal["float32", "bfloat16", "float16", "int8", "int4", "model"] = "bfloat16"
    """How compressed keys are stored. Integers take less space; how much they change is measured on your text and
    printed. model: the dtype of the weights, which rounds nothing."""
    overwrite: bool = False
    """Overwrite the file if it exists."""
    append: bool = False
    """Append to an existing file, with the latents that it has."""
    text: Annotated[TextFileOptions, tyro.conf.arg(name="")] = TextFileOptions()
    """Which files are read, and how."""
    dtype: Dtype = "auto"
    """Weight dtype: float32, bfloat16 or float16; auto: bfloat16 where the processor or GPU multiplies it natively,
    else float32; with --append, the one recorded in the file."""
    device: Device = "auto"
    """cpu, cuda or cuda:N; auto is a GPU if there is one."""
    rope: Rope = None
    """Rotary positions in place of the model's, as for `goldfinch ask`. The file depends on them only in models with
    attention layers other than GOLD."""
    json: bool = False
    """Print one JSON object instead of text."""

    def run(self) -> None:
        """Check everything that can be checked, read, save, and print a summary.

        Raises:
            UserError: the output exists, a file has no text, or there is no model; then nothing is read.
        """
        from goldfinch.data.chat_template import ChatTemplate
        from goldfinch.data.documents import STANDARD_INPUT, input_bytes, read_documents

        self._check_output()
        model = require_model(self.model)
        check_dtype_name(self.dtype)
        check_device_name(self.device)
        errors = errors_console()
        found = self.text.find(self.files, errors)

        from goldfinch.inference.documents import read_documents as read_into_context

        context = self._context()
        if not self.output.parent.is_dir():  # better now than after hours of reading
            self.output.parent.mkdir(parents=True)
            errors.print(f"made the folder {shown(str(self.output.parent), sys.stderr)}")
        skipped = SkippedDocuments(errors)
        template = ChatTemplate.load(model) or ChatTemplate()
        documents = read_documents(found.paths, self.text.text_field, skipped, found.encodings, template)
        total = None if STANDARD_INPUT in found.paths else input_bytes(found.paths)
        with ReadingDisplay(total) as display:
            try:
                num_documents = read_into_context(context, documents, display.advance)
            except KeyboardInterrupt:
                errors.print(f"interrupted after {display.tokens:,} tokens; {self.output} was not written")
                raise
        skipped.finish()
        if not num_documents:
            raise UserError(f"no documents found in {', '.join(self.files)}")
        context.save(self.output, overwrite=self.overwrite)
        self._print_summary(context, num_documents, display)

    def _check_output(self) -> None:
        if self.append and not self.output.exists():
            raise UserError(f"{self.output} does not exist: omit --append to create it")
        if self.output.is_dir():
            raise UserError(f"{self.output} is a folder: name the file to write, such as {self.output / 'text.gfc'}")
        if self.output.suffix != ".gfc":
            raise UserError(f"{self.output} must end in .gfc, such as {self.output.with_suffix('.gfc')}")
        if self.output.exists() and not (self.overwrite or self.append):
            raise UserError(f"{self.output} exists: use --overwrite to replace it, or --append to append to it")

    def _context(self) -> "Context":
        if self.append:
            options = ContextOptions(model=self.model, dtype=self.dtype, device=self.device, rope=self.rope)
            return options.open_file(self.output)
        lm = load_folder(self.model, self.dtype, self.device, self.rope)
        return lm.context(None if self.latents == "model" else self.latents)

    def _print_summary(self, context: "Context", num_documents: int, display: ReadingDisplay) -> None:
        from goldfinch.cache.key_cache import bytes_per_token
        from goldfinch.model.accounting import account

        num_tokens, stored = len(context), self.output.stat().st_size
        per_token = bytes_per_token(context.model.config, context.sequence.key_cache.format)
        transformer = account(context.model.config).transformer_bytes_per_token * num_tokens
        report = context.measure_quantization()
        if self.json:
            print_json(
                {
                    "file": str(self.output),
                    "documents": num_documents,
                    "tokens_read": display.tokens,
                    "seconds": display.seconds,
                    "tokens_per_second": display.speed,
                    "num_tokens": num_tokens,
                    "bytes": stored,
                    "transformer_bytes": transformer,
                    "quantization": dataclasses.asdict(report) if report is not None else None,
                }
            )
            return
        print(
            f"read {plural(display.tokens, 'token')} of {plural(num_documents, 'document')} "
            f"in {clock(display.seconds)}, {display.speed:,.0f} tokens/s"
        )
        print(
            f"saved {self.output}: {size(stored)}, {per_token} bytes per token and the states; a Transformer of this "
            f"depth and width would keep {size(transformer)} in bf16, {transformer / stored:,.1f} times as much"
        )
        if report is not None:
            print(
                f"{report.latents} latents change predictions by {report.mean_kl:.2g} nats on average, at most "
                f"{report.max_kl:.2g}; the most likely token is the same at {report.top1_agreement:.0%} of "
                f"{report.num_positions} positions"
            )
        print(f'next: goldfinch ask {shlex.quote(str(self.output))} "What is it about?"')


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    parse(Read, "read", args).run()
