"""`goldfinch cache`: inspect, search and verify .gfc context files."""

import dataclasses
import random
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from goldfinch.cli.arguments import parse, require_path
from goldfinch.cli.contexts import Device
from goldfinch.cli.tables import Rows, print_json, print_table
from goldfinch.cli.terminal import print_text, shown
from goldfinch.cli.units import size
from goldfinch.errors import UserError

if TYPE_CHECKING:
    from goldfinch.inference.context_file.description import Description
    from goldfinch.inference.context_file.text import Hit, StoredText

File = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE.gfc")]]
Model = Annotated[Path | None, tyro.conf.arg(aliases=["-m"], metavar="MODEL")]
MAX_DOCUMENTS_SHOWN = 10


class NotFoundError(UserError):
    """Nothing found: exit code 1, as with grep."""

    exit_code = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Info:
    """Show what a context file holds and how large it is, next to a Transformer's cache of the same depth and width."""

    file: File
    """Context file, from `goldfinch read` or `Context.save`."""
    all: bool = False
    """List all documents, not only the first ten."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> None:
        """Print the table or the JSON object. Needs neither the model nor its tokenizer."""
        from goldfinch.inference.context_file.description import read_description

        description = read_description(self.file)
        sizes = _sizes(self.file, description)
        if self.json:
            print_json({"file": str(self.file), **dataclasses.asdict(description), "bytes": sizes})
            return
        sections = [
            _model_rows(self.file, description),
            _size_rows(description, sizes),
            _text_rows(description, self.all),
        ]
        print_table(str(self.file), [section for section in sections if section])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cat:
    """Print the text of a context file, or any range of it: the file holds every token."""

    file: File
    """Context file, from `goldfinch read` or `Context.save`."""
    start_token: int = 0
    """First token to print."""
    stop_token: int | None = None
    """First token not to print. Default: the end of the text."""
    document: str | None = None
    """Print this document; --start-token and --stop-token then count from its start."""
    model: Model = None
    """Folder of the model that wrote the file, for its tokenizer. Default: the one that the file names."""

    def run(self) -> None:
        """Print block by block, so that the start of a long text appears at once."""
        text = _stored_text(self.file, self.model)
        first, last = 0, len(text)
        if self.document is not None:
            document = text.document(self.document)
            first, last = document.start, document.stop
        start = first + self.start_token
        stop = last if self.stop_token is None else min(first + self.stop_token, last)
        if not first <= start <= stop:
            stop_name = "the end" if self.stop_token is None else self.stop_token
            raise UserError(f"no tokens {self.start_token} to {stop_name}: the range is 0 to {last - first}")
        for piece in text.read(start, stop):
            print_text(piece, end="")
        print()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grep:
    """Find a string and show in which document and at which token it starts: goldfinch cache grep FILE.gfc TEXT

    Prints a line per occurrence: document, token, and the text around it. Exits with 1 if there is none.
    """

    file: File
    """Context file, from `goldfinch read` or `Context.save`."""
    text: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TEXT")]
    """What to find, literally."""
    ignore_case: Annotated[bool, tyro.conf.arg(aliases=["-i"])] = False
    """Ignore case."""
    context: Annotated[int, tyro.conf.arg(aliases=["-C"], metavar="CHARACTERS")] = 40
    """Characters to show on either side."""
    model: Model = None
    """Folder of the model that wrote the file, for its tokenizer. Default: the one that the file names."""
    json: bool = False
    """Print one JSON array instead of lines."""

    def run(self) -> None:
        """Print the occurrences."""
        from rich.console import Console

        console = Console(highlight=False, soft_wrap=True)
        hits = []
        stored = _stored_text(self.file, self.model)
        for hit in stored.find(self.text, ignore_case=self.ignore_case, context_chars=self.context):
            hits.append(hit)
            if not self.json:
                console.print(_line(hit))
        if self.json:
            print_json([dataclasses.asdict(hit) for hit in hits])
        if not hits:
            raise NotFoundError(f"{self.text!r} is not in {self.file}")


def _line(hit: "Hit") -> Any:
    from rich.text import Text

    place = shown(f"{hit.document}:{hit.position}: " if hit.document else f"{hit.position}: ")
    before, text, after = (shown(" ".join(part.split("\n"))) for part in (hit.before, hit.text, hit.after))
    return Text.assemble((place, "dim"), before, (text, "bold red"), after)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verify:
    """Compare all checksums, then let the model recompute the latents of random blocks and compare them."""

    file: File
    """Context file, from `goldfinch read` or `Context.save`."""
    blocks: int = 1
    """Number of blocks to recompute; reading starts at the nearest snapshot before each. 0: checksums only, which needs
    no model."""
    seed: int | None = None
    """Random seed for the choice of blocks."""
    model: Model = None
    """Folder of the model that wrote the file. Default: the one that the file names."""
    device: Device = "auto"
    """cpu, cuda or cuda:N; auto is a GPU if there is one."""
    json: bool = False
    """Print one JSON object instead of lines."""

    def run(self) -> None:
        """Check; print what was verified.

        Raises:
            UserError: the file is corrupt, or its latents are not what the model computes.
        """
        from goldfinch.inference.context_file.description import read_description
        from goldfinch.inference.context_file.format import open_key_cache

        description = read_description(self.file)
        key_cache = open_key_cache(self.file, description)
        key_cache.verify()
        result: dict[str, Any] = {"num_tokens": description.num_tokens, "num_blocks": key_cache.num_blocks}
        lines = [
            f"checksums match: {description.num_tokens:,} tokens in {key_cache.num_blocks:,} blocks, and the states"
        ]
        spans = key_cache.spans()
        chosen = random.Random(self.seed).sample(spans, min(self.blocks, len(spans)))
        if chosen and key_cache.format is not None:
            difference, num_read = self._recompute(description, chosen)
            num_compared = sum(last - first for first, last in chosen)
            what = "are identical" if difference == 0 else "match within rounding error"
            lines.append(f"recomputed latents of {num_compared:,} tokens {what} ({num_read:,} tokens were read for it)")
            result |= {"num_recomputed": num_compared, "num_read": num_read, "largest_difference": difference}
        if self.json:
            print_json({"file": str(self.file), **result})
        else:
            print("\n".join(lines))

    def _recompute(self, description: "Description", spans: list[tuple[int, int]]) -> tuple[float, int]:
        """The largest difference, as a fraction of the tolerance, and how many tokens were read."""
        from goldfinch import load
        from goldfinch.cli.progress import ReadingDisplay
        from goldfinch.inference.context_file.text import require_model_folder
        from goldfinch.inference.context_file.verify import plan_recomputations, verify_latents

        folder = require_model_folder(self.file, description, self.model)
        context = load(folder, description.dtype, self.device).open(self.file, budget=0)
        plan = plan_recomputations(spans, description.snapshots)
        num_read = sum(each.last - each.start for each in plan)
        with ReadingDisplay(num_read) as display:
            difference = verify_latents(
                context, plan, str(self.file), lambda tokens: display.advance(tokens, display.tokens + tokens)
            )
        return difference, num_read


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
    """Inspect, search and verify .gfc context files from `goldfinch read`."""

    command: tyro.conf.OmitSubcommandPrefixes[
        Annotated[Info, tyro.conf.subcommand("info")]
        | Annotated[Cat, tyro.conf.subcommand("cat")]
        | Annotated[Grep, tyro.conf.subcommand("grep")]
        | Annotated[Verify, tyro.conf.subcommand("verify")]
    ]

    def run(self) -> None:
        """Run the subcommand."""
        require_path(self.command.file)
        self.command.run()


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    parse(Cache, "cache", args).run()


def _stored_text(path: Path, model: Path | None) -> "StoredText":
    from goldfinch.inference.context_file.description import read_description
    from goldfinch.inference.context_file.text import StoredText, require_stored_tokenizer

    description = read_description(path)
    return StoredText(path, description, require_stored_tokenizer(path, description, model))


def _sizes(path: Path, description: "Description") -> dict[str, int]:
    """Bytes of the file, of its parts, and of a Transformer's cache."""
    from goldfinch.inference.context_file.text import stored_bytes
    from goldfinch.model.accounting import account

    parts: Counter[str] = Counter()
    for name, count in stored_bytes(path).items():
        if not name.startswith("state."):
            parts["key_cache"] += count
        else:
            parts["state" if name == f"state.{description.num_tokens}" else "snapshots"] += count
    transformer = account(description.model).transformer_bytes_per_token * description.num_tokens
    return {"file": path.stat().st_size, **parts, "transformer": transformer}


def _model_rows(path: Path, description: "Description") -> Rows:
    from goldfinch.inference.context_file.description import model_folder

    config, folder = description.model, model_folder(path, description)
    layers = f"{config.num_layers} layers ({config.num_gold_layers} GOLD)"
    rows = [
        ("model", f"{layers}, width {config.width:,}, {description.dtype}"),
        ("  folder", "unknown" if folder is None else f"{folder}{'' if folder.is_dir() else ' (not found)'}"),
        ("  weights", description.context_hash[:16]),
    ]
    if description.latents:
        rows.append(("compressed keys", f"{config.latent_width} numbers each, stored as {description.latents}"))
    return rows


def _size_rows(description: "Description", sizes: dict[str, int]) -> Rows:
    num_tokens, ratio = description.num_tokens, sizes["transformer"] / sizes["file"]
    rows = [
        ("tokens", f"{num_tokens:,}"),
        ("file", f"{size(sizes['file'])}, {sizes['file'] / num_tokens:,.1f} B per token"),
        ("  key cache", f"{size(sizes['key_cache'])}, {sizes['key_cache'] / num_tokens:,.1f} B per token"),
        ("  state", size(sizes["state"])),
    ]
    earlier = [position for position in description.snapshots if position != num_tokens]
    if earlier:
        each = size(sizes["snapshots"] // len(earlier))
        rows.append(("  snapshots", f"{len(earlier)} of {each}, at {', '.join(f'{place:,}' for place in earlier)}"))
    rows.append(("Transformer's cache, bf16", f"{size(sizes['transformer'])}, {ratio:,.1f} times the file"))
    return rows + _quantization_rows(description)


def _quantization_rows(description: "Description") -> Rows:
    report = description.quantization
    if report is None:
        return []
    return [
        (
            f"{report.latents} error",
            f"KL {report.mean_kl:.2g} nats on average, at most {report.max_kl:.2g}; same most likely token at "
            f"{report.top1_agreement:.0%} of {report.num_positions} positions (of {report.num_tokens:,} tokens)",
        )
    ]


def _text_rows(description: "Description", all_documents: bool) -> Rows:
    documents = list(description.documents)
    shown = documents if all_documents else documents[:MAX_DOCUMENTS_SHOWN]
    rows = [(document.name, f"tokens {document.start:,} to {document.stop - 1:,}") for document in shown]
    if len(documents) > len(shown):
        rows.append((f"and {len(documents) - len(shown):,} more", "--all lists them"))
    return rows
