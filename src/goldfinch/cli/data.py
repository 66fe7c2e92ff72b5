"""`goldfinch data`: make, check and export what models train on."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from goldfinch.cli.arguments import parse
from goldfinch.errors import UserError

if TYPE_CHECKING:
    from goldfinch.data.prepare import PrepareReport
    from goldfinch.data.tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Turn text, or tokens that others made, into a directory of token shards for `goldfinch train --data`.

    goldfinch data prepare books/*.txt -o data/books

    goldfinch data prepare minipile.idx -o data/minipile --tokenizer world
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    """.txt and .md (one document a file), .jsonl, .jsonl.gz and .parquet (one a line or row); or .idx of RWKV or
    Megatron token pairs, each with its .bin beside it, whose tokens are taken over."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Directory to write."""
    tokenizer: str = "bpe"
    """bytes, world (RWKV World, 65,536 ids), bpe (trained on these files), or a byte-level tokenizer.json file.
    For token pairs, the one that made them."""
    vocab_size: int = 4096
    """Ids of the tokenizer that is trained (bpe)."""
    validation_fraction: float = 0.01
    """Part of the documents that is kept for validation; of a single document, its end."""
    text_field: str = "text"
    """Field (.jsonl) or column (.parquet) that holds the text."""
    seed: int = 0
    """Another seed chooses other documents for validation."""
    overwrite: bool = False
    """Replace the data directory if it exists."""

    def run(self) -> None:
        """Prepare, with a progress bar; bad documents on stderr; a summary on stdout."""
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Bar

        from goldfinch.cli.progress import SkippedDocuments, errors_console
        from goldfinch.data.prepare import Progress, prepare
        from goldfinch.data.shard_writer import check_output

        check_output(self.output, overwrite=self.overwrite)
        errors = errors_console()
        skipped = SkippedDocuments(errors)

        with Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=errors,
            transient=True,
            disable=not errors.is_terminal,
        ) as bar:
            task = bar.add_task(f"tokenizer {self.tokenizer}", total=None)
            tokenizer = self._tokenizer()
            bar.reset(task, description="encoding")

            def show_progress(progress: Progress) -> None:
                bar.update(task, completed=progress.bytes_read, total=progress.bytes_total)

            report = prepare(
                self.files,
                self.output,
                tokenizer,
                validation_fraction=self.validation_fraction,
                seed=self.seed,
                text_field=self.text_field,
                overwrite=self.overwrite,
                on_progress=show_progress,
                on_error=skipped,
            )
        skipped.finish()
        self._print_summary(report, tokenizer)

    def _tokenizer(self) -> "Tokenizer":
        from goldfinch.data.indexed_dataset import is_index_file
        from goldfinch.data.prepare import train_tokenizer

        if self.tokenizer != "bpe":
            return _named_tokenizer(self.tokenizer)
        pair = next(filter(is_index_file, self.files), None)
        if pair:
            raise UserError(f"name the tokenizer that made {pair}: --tokenizer world, or a tokenizer.json file")
        return train_tokenizer(self.files, self.vocab_size, text_field=self.text_field)

    def _print_summary(self, report: "PrepareReport", tokenizer: "Tokenizer") -> None:
        lines = [
            f"{self.output}: {report.documents:,} documents, {report.tokens:,} tokens, "
            f"{report.bytes_per_token:.2f} bytes per token ({tokenizer.name}, {tokenizer.vocab_size:,} ids)"
        ]
        for name, split in report.splits.items():
            lines.append(f"  {name}: {split.documents:,} documents, {split.tokens:,} tokens")
        if report.cut:
            lines.append("  the files hold a single document: its last part is the validation split")
        if report.skipped:
            lines.append(f"  {report.skipped:,} bad documents were skipped")
        lines.append(f"next: goldfinch train --data {shlex.quote(str(self.output))} -o runs/NAME")
        print("\n".join(lines))


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Write a data directory that streams a Hugging Face dataset: training reads and tokenises it as it goes.

    goldfinch data stream JeanKaddour/minipile -o data/minipile --tokenizer world

    goldfinch data stream path/to/folder -o data/mine --tokenizer data/books/tokenizer.json

    For what is too large to store twice. What fits on the disk, and what many processes train on, is better prepared.
    Needs `pip install 'goldfinch[datasets]'`, and a network for datasets on the Hub alone.
    """

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Folder or file of parquet, json lines, arrow, csv or text (each line a document), what save_to_disk wrote, or a
    name on the Hub."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Directory to write."""
    tokenizer: str = "world"
    """bytes, world (RWKV World, 65,536 ids), or a byte-level tokenizer.json file."""
    config: str = ""
    """Which configuration of the dataset; its only or default one if empty."""
    split: str = "train"
    """Which split of the dataset."""
    revision: str = ""
    """Commit, tag or branch on the Hub. A commit keeps a long run from reading a dataset that has changed."""
    text_field: str = "text"
    """Column that holds the text."""
    validation_documents: int = 500
    """Documents at the start that are stored for validation and not trained on."""
    shuffle_windows: int = 2048
    """How many windows of training tokens wait to be drawn at random. More are mixed better; each checkpoint has them,
    with 4 bytes a token."""
    overwrite: bool = False
    """Replace the data directory if it exists."""

    def run(self) -> None:
        """Read the first documents; a summary."""
        from goldfinch.data import stream
        from goldfinch.data.prepare import prepare_stream

        local = Path(self.dataset)
        described = stream.Stream(
            dataset=str(local.resolve()) if local.exists() else self.dataset,
            config=self.config,
            split=self.split,
            revision=self.revision,
            text_field=self.text_field,
            shuffle_windows=self.shuffle_windows,
        )
        report = prepare_stream(
            described,
            self.output,
            _named_tokenizer(self.tokenizer),
            validation_documents=self.validation_documents,
            overwrite=self.overwrite,
        )
        print(
            f"{self.output}: streams {described.dataset} for training\n"
            f"  validation: its first {report.documents:,} documents, {report.tokens:,} tokens\n"
            f"next: goldfinch train --data {shlex.quote(str(self.output))} -o runs/NAME --steps STEPS"
        )


def _named_tokenizer(name: str) -> "Tokenizer":
    from goldfinch.data.tokenizers import ByteTokenizer, WorldTokenizer, load_tokenizer

    match name:
        case "bytes":
            return ByteTokenizer()
        case "world":
            return WorldTokenizer()
        case path:
            return load_tokenizer(Path(path))


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check every file of a data directory against its checksum."""

    directory: tyro.conf.Positional[Path]
    """What `goldfinch data prepare` or `data stream` wrote."""

    def run(self) -> None:
        """Read everything; one line per split that is whole."""
        from goldfinch.data.shards import Index, verify

        for split, dataset in verify(self.directory):
            print(f"{split}: {len(dataset):,} tokens, checksums match")
        if stream := Index.load(self.directory).stream:
            print(f"train: streamed from {stream.dataset}, nothing is stored")


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a data directory as token pairs, which RWKV's and Megatron's tools read.

    goldfinch data export data/minipile -o exported/minipile
    """

    directory: tyro.conf.Positional[Path]
    """What `goldfinch data prepare` wrote."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="PREFIX")]
    """PREFIX-train.idx, PREFIX-train.bin and the same for validation are written."""
    overwrite: bool = False
    """Replace such files if they exist."""

    def run(self) -> None:
        """Write both pairs; a line for each."""
        from goldfinch.data.export import export_indexed

        for path, dataset in export_indexed(self.directory, self.output, overwrite=self.overwrite).items():
            print(f"{path}, {path.with_suffix('.bin').name}: {len(dataset):,} tokens")


@dataclass(frozen=True, kw_only=True)
class Data:
    """Make data directories for `goldfinch train --data`: from text or token pairs (prepare), from a Hugging Face
    dataset that is read while training (stream). Check them (verify), or write them as token pairs (export)."""

    command: tyro.conf.OmitSubcommandPrefixes[
        Annotated[Prepare, tyro.conf.subcommand("prepare")]
        | Annotated[Stream, tyro.conf.subcommand("stream")]
        | Annotated[Verify, tyro.conf.subcommand("verify")]
        | Annotated[Export, tyro.conf.subcommand("export")]
    ]


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    parse(Data, "data", args).command.run()
