"""`goldfinch cache`: look into the files that `goldfinch read` writes."""

import dataclasses
import json
import random
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from goldfinch.cli.arguments import parse
from goldfinch.cli.tables import Rows, print_table
from goldfinch.cli.units import size
from goldfinch.errors import UserError

if TYPE_CHECKING:
    from goldfinch.inference.context_file.format import Description
    from goldfinch.inference.context_file.text import StoredText

File = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE.gfc")]]
Model = Annotated[Path | None, tyro.conf.arg(aliases=["-m"], metavar="FOLDER")]
SHOWN_DOCUMENTS = 10


class NotFoundError(UserError):
    """As with grep, nothing found is exit code 1, no mistake."""

    exit_code = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Info:
    """What a file holds and what it takes, against the cache of a Transformer of the same depth and width."""

    file: File
    """What `goldfinch read` or `Context.save` wrote."""
    all: bool = False
    """Name all documents, not only the first ten."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> None:
        """Print the table or the JSON object. Needs neither the model nor its tokenizer."""
        from goldfinch.inference.context_file.format import read_description

        description = read_description(self.file)
        sizes = _sizes(self.file, description)
        if self.json:
            print(json.dumps({"file": str(self.file), **dataclasses.asdict(description), "bytes": sizes}, indent=2))
            return
        sections = [
            _model_rows(self.file, description),
            _size_rows(description, sizes),
            _text_rows(description, self.all),
        ]
        print_table(str(self.file), [section for section in sections if section])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cat:
    """Print the text, or any range of it: the file holds every token."""

    file: File
    """What `goldfinch read` or `Context.save` wrote."""
    start: int = 0
    """First token to print."""
    stop: int | None = None
    """First token not to print; the end of the text if not given."""
    document: str | None = None
    """Print this document; --start and --stop then count from its beginning."""
    model: Model = None
    """Folder of the model that wrote the file, for its tokenizer; the one the file remembers if not given."""

    def run(self) -> None:
        """Print, block by block, so that the beginning of a long text is there at once."""
        text = _stored_text(self.file, self.model)
        first, last = 0, len(text)
        if self.document is not None:
            document = text.document(self.document)
            first, last = document.start, document.stop
        start = first + self.start
        stop = last if self.stop is None else min(first + self.stop, last)
        if not first <= start <= stop:
            raise UserError(f"there are no tokens {self.start} to {self.stop}: give some of 0 to {last - first}")
        for piece in text.read(start, stop):
            print(piece, end="")
        print()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grep:
    """Find a string in the text and tell in which document and at which token it begins: goldfinch cache grep FILE TEXT

    Every hit is a line: document, position, and the text around it. Exits with 1 where there is none.
    """

    file: File
    """What `goldfinch read` or `Context.save` wrote."""
    text: tyro.conf.Positional[str]
    """What to find, as it is written."""
    ignore_case: Annotated[bool, tyro.conf.arg(aliases=["-i"])] = False
    """Small letters for capitals and the other way round."""
    context: Annotated[int, tyro.conf.arg(aliases=["-C"])] = 40
    """Characters to show on either side."""
    model: Model = None
    """Folder of the model that wrote the file, for its tokenizer; the one the file remembers if not given."""

    def run(self) -> None:
        """Print the hits."""
        from rich.console import Console
        from rich.text import Text

        console = Console(highlight=False, soft_wrap=True)
        found = False
        stored = _stored_text(self.file, self.model)
        for hit in stored.find(self.text, ignore_case=self.ignore_case, surroundings=self.context):
            found = True
            place = f"{hit.document}:{hit.position}: " if hit.document else f"{hit.position}: "
            before, text, after = (" ".join(part.split("\n")) for part in (hit.before, hit.text, hit.after))
            console.print(Text.assemble((place, "dim"), before, (text, "bold red"), after))
        if not found:
            raise NotFoundError(f"{self.text!r} is not in {self.file}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verify:
    """Compare all checksums; then let the model read random blocks again and compare what it makes of them."""

    file: File
    """What `goldfinch read` or `Context.save` wrote."""
    blocks: int = 1
    """How many blocks of 4,096 tokens to read again; reading begins at the nearest snapshot before each. 0 compares
    checksums only, for which no model is needed."""
    seed: int | None = None
    """The same seed chooses the same blocks; without one they differ each time."""
    model: Model = None
    """Folder of the model that wrote the file; the one the file remembers if not given."""
    device: str = "cpu"
    """cpu, cuda, ..."""

    def run(self) -> None:
        """Check; one line for each thing that is right."""
        from goldfinch.inference.context_file.format import open_memory, read_description

        description = read_description(self.file)
        memory = open_memory(self.file, description)
        memory.verify()
        print(f"checksums of {description.tokens:,} tokens in {memory.blocks():,} blocks and of the states match")
        spans = memory.spans()
        chosen = random.Random(self.seed).sample(spans, min(self.blocks, len(spans)))
        if chosen and memory.format is not None:
            self._read_again(description, chosen)

    def _read_again(self, description: "Description", spans: list[tuple[int, int]]) -> None:
        from goldfinch import load
        from goldfinch.cli.progress import ReadingDisplay
        from goldfinch.inference.context_file.text import require_model_folder
        from goldfinch.inference.context_file.verify import plan_replays, verify_latents

        folder = require_model_folder(self.file, description, self.model)
        context = load(folder, description.dtype, self.device).open(self.file, budget=0)
        replays = plan_replays(spans, description.snapshots)
        total = sum(replay.last - replay.start for replay in replays)
        with ReadingDisplay(total) as display:
            difference = verify_latents(
                context, replays, str(self.file), lambda tokens: display.advance(tokens, display.tokens + tokens)
            )
        compared = sum(last - first for first, last in spans)
        what = "are equal" if difference == 0 else "differ by no more than rounding explains"
        print(f"latents of {compared:,} tokens {what}; {total:,} tokens were read again for them")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
    """Look into what `goldfinch read` wrote: its documents and sizes, its text, whether it is whole."""

    command: tyro.conf.OmitSubcommandPrefixes[
        Annotated[Info, tyro.conf.subcommand("info")]
        | Annotated[Cat, tyro.conf.subcommand("cat")]
        | Annotated[Grep, tyro.conf.subcommand("grep")]
        | Annotated[Verify, tyro.conf.subcommand("verify")]
    ]


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    parse(Cache, "cache", args).command.run()


def _stored_text(path: Path, model: Path | None) -> "StoredText":
    from goldfinch.inference.context_file.format import read_description
    from goldfinch.inference.context_file.text import StoredText, require_stored_tokenizer

    description = read_description(path)
    return StoredText(path, description, require_stored_tokenizer(path, description, model))


def _sizes(path: Path, description: "Description") -> dict[str, int]:
    """Bytes of the file, of what is in it, and of a Transformer's cache."""
    from goldfinch.inference.context_file.text import stored_bytes
    from goldfinch.model.accounting import account

    parts: Counter[str] = Counter()
    for name, count in stored_bytes(path).items():
        if not name.startswith("state."):
            parts["memory"] += count
        else:
            parts["state" if name == f"state.{description.tokens}" else "snapshots"] += count
    transformer = account(description.model).transformer_bytes_per_token * description.tokens
    return {"file": path.stat().st_size, **parts, "transformer": transformer}


def _model_rows(path: Path, description: "Description") -> Rows:
    from goldfinch.inference.context_file.format import model_folder

    config, folder = description.model, model_folder(path, description)
    rows = [
        (
            "model",
            f"{config.num_layers} layers ({config.num_gold_layers} GOLD), {config.width:,} wide, {description.dtype}",
        ),
        ("  folder", "not known" if folder is None else f"{folder}{'' if folder.is_dir() else ' (not there)'}"),
        ("  weights", description.weights[:16]),
    ]
    if description.latents:
        rows.append(("compressed keys", f"{config.latent_width} numbers each, stored as {description.latents}"))
    return rows


def _size_rows(description: "Description", sizes: dict[str, int]) -> Rows:
    tokens, ratio = description.tokens, sizes["transformer"] / sizes["file"]
    rows = [
        ("tokens", f"{tokens:,}"),
        ("file", f"{size(sizes['file'])}, {sizes['file'] / tokens:,.1f} B a token"),
        ("  key memory", f"{size(sizes['memory'])}, {sizes['memory'] / tokens:,.1f} B a token"),
        ("  state", size(sizes["state"])),
    ]
    earlier = [position for position in description.snapshots if position != tokens]
    if earlier:
        each = size(sizes["snapshots"] // len(earlier))
        rows.append(("  snapshots", f"{len(earlier)} of {each}, at {', '.join(f'{place:,}' for place in earlier)}"))
    rows.append(("Transformer's cache, bf16", f"{size(sizes['transformer'])}, {ratio:,.1f} times the file"))
    return rows + _certificate_rows(description)


def _certificate_rows(description: "Description") -> Rows:
    certificate = description.quantization
    if certificate is None:
        return []
    return [
        (
            f"what {certificate.latents} changes",
            f"KL {certificate.mean_kl:.2g} nats in the mean, {certificate.max_kl:.2g} at most; same likeliest token at "
            f"{certificate.top1_agreement:.0%} of {certificate.positions} places in the first "
            f"{certificate.tokens:,} tokens",
        )
    ]


def _text_rows(description: "Description", all_documents: bool) -> Rows:
    documents: list[Any] = list(description.documents)
    shown = documents if all_documents else documents[:SHOWN_DOCUMENTS]
    rows = [(document.name, f"tokens {document.start:,} to {document.stop - 1:,}") for document in shown]
    if len(documents) > len(shown):
        rows.append((f"and {len(documents) - len(shown):,} more", "--all names them"))
    return rows
