"""`goldfinch read`: files are read once, what the model remembers of them is kept in a file."""

import dataclasses
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from goldfinch.cli.arguments import parse
from goldfinch.cli.contexts import ContextOptions, Rope, load_folder
from goldfinch.cli.progress import ReadingDisplay, SkippedDocuments, errors_console
from goldfinch.cli.units import clock, size
from goldfinch.errors import UserError

if TYPE_CHECKING:
    from goldfinch.data import documents
    from goldfinch.inference.context import Context


@dataclasses.dataclass(frozen=True, kw_only=True)
class Read:
    """Read files once and keep what the model remembers of them: goldfinch read book.txt -m runs/quickstart -o book.gfc

    Reading takes constant work for each token; the file holds a small compressed key for each. Then `goldfinch ask`
    answers questions at once, as often as you like, and `goldfinch chat` and `goldfinch generate` go on from the text.
    """

    files: tyro.conf.Positional[tuple[str, ...]]
    """Text files in UTF-8 of any kind, one document each; .jsonl, .jsonl.gz and .parquet, one a line or row; folders,
    for all text in them but hidden files; quoted patterns such as "src/**/*.py"; - for standard input."""
    model: Annotated[Path, tyro.conf.arg(aliases=["-m"], metavar="FOLDER")]
    """Folder of the model that reads: a run of `goldfinch train`, or what `goldfinch convert` wrote."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE.gfc")]
    """The file to write."""
    latents: Literal["float32", "bfloat16", "float16", "int8", "int4", "model"] = "bfloat16"
    """How compressed keys are stored. Integers take less space; how much they change is measured on your text and
    shown. model is the type of the weights, which rounds nothing."""
    overwrite: bool = False
    """Replace the file if it exists."""
    append: bool = False
    """Read on where the file that exists ends, with the latents it has."""
    text_field: str = "text"
    """Field (.jsonl) or column (.parquet) that holds the text."""
    dtype: str | None = None
    """Type of the weights, such as bfloat16; as they are stored if not given. Processors without bf16 instructions read
    several times faster in float32."""
    device: str = "cpu"
    """cpu, cuda, ..."""
    rope: Rope = None
    """Rotary positions to use in place of the model's, as `goldfinch ask` takes them. What the file keeps of a text
    depends on them only in models with attention layers other than GOLD."""

    def run(self) -> None:
        """Check all that can be checked, read, save, and print what it came to.

        Raises:
            UserError: the output exists, a file holds no text, or there is no model; nothing is read then.
        """
        from goldfinch.data.documents import STANDARD_INPUT, input_bytes, read_documents
        from goldfinch.data.find_files import find_texts

        self._check_output()
        found = find_texts(self.files)
        context = self._context()
        # After hours of reading is too late to learn that there is no place for the file.
        self.output.parent.mkdir(parents=True, exist_ok=True)
        errors = errors_console()
        if found.skipped:
            errors.print(f"skipped {found.skipped:,} files: empty, or no UTF-8 text")
        skipped = SkippedDocuments(errors)
        documents = read_documents(found.paths, self.text_field, skipped, any_text=True)
        total = None if STANDARD_INPUT in found.paths else input_bytes(found.paths)
        before = len(context.documents)
        with ReadingDisplay(total) as display:
            try:
                read_into(context, documents, display)
            except KeyboardInterrupt:
                errors.print(f"{display.tokens:,} tokens were read; {self.output} is not written")
                raise
        skipped.finish()
        count = len(context.documents) - before
        if not count:
            raise UserError(f"there is no document in {', '.join(self.files)}: give files with text")
        print(
            f"{display.tokens:,} tokens of {count:,} {'document' if count == 1 else 'documents'} "
            f"in {clock(display.seconds)}, {display.speed:,.0f} tokens/s"
        )
        context.save(self.output)
        self._print_summary(context)

    def _check_output(self) -> None:
        if self.append and not self.output.exists():
            raise UserError(f"{self.output} does not exist: leave out --append to write it")
        if self.output.is_dir():
            raise UserError(f"{self.output} is a folder: name the file to write, such as {self.output / 'text.gfc'}")
        if self.output.exists() and not (self.overwrite or self.append):
            raise UserError(f"{self.output} exists: --overwrite replaces it, --append reads on where it ends")

    def _context(self) -> "Context":
        if self.append:
            opening = ContextOptions(model=self.model, dtype=self.dtype, device=self.device, rope=self.rope)
            return opening.open_file(self.output)
        lm = load_folder(self.model, self.dtype, self.device, self.rope)
        return lm.context(None if self.latents == "model" else self.latents)

    def _print_summary(self, context: "Context") -> None:
        from goldfinch.model.accounting import account

        tokens, stored = len(context), self.output.stat().st_size
        transformer = account(context.model.config).transformer_bytes_per_token * tokens
        print(
            f"{self.output}: {size(stored)}, {stored / tokens:,.1f} bytes per token; a Transformer of this depth and "
            f"width keeps {size(transformer)} in bf16, {transformer / stored:,.1f} times as much"
        )
        certificate = context.measure_quantization()
        if certificate is not None:
            print(
                f"{certificate.latents} latents change predictions by {certificate.mean_kl:.2g} nats in the mean, "
                f"{certificate.max_kl:.2g} at most; the likeliest token is the same at "
                f"{certificate.top1_agreement:.0%} of {certificate.positions} places"
            )
        print(f'next: goldfinch ask {shlex.quote(str(self.output))} "What is it about?"')


def read_into(context: "Context", pieces: Iterable["documents.Document"], display: ReadingDisplay) -> None:
    """Read documents, which may come in pieces, into a context that remembers them by name.

    As in training, the end of text stands after each document that another one follows. Writing goes on from the last.
    """
    from goldfinch.inference.context_file.format import Document
    from goldfinch.inference.token_ids import require_tokenizer

    tokenizer = require_tokenizer(context.tokenizer)
    start: int | None = None
    position = 0.0
    for piece in pieces:
        ids = tokenizer.encode(piece.text)
        if start is None:
            separator = [tokenizer.end_of_text] if len(context) else []
            start = len(context) + len(separator)
            ids = separator + ids
        bytes_per_token = (piece.position - position) / len(ids)

        def advance(tokens: int, bytes_per_token: float = bytes_per_token) -> None:
            nonlocal position
            position += tokens * bytes_per_token
            display.advance(tokens, position)

        context.read(ids, progress=advance)
        if not piece.continues:
            context.documents.append(Document(name=piece.name, start=start, stop=len(context)))
            start = None


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    parse(Read, "read", args).run()
