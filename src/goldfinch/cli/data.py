"""`goldfinch data`: prepare, verify and export training data."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from goldfinch.cli.arguments import parse
from goldfinch.cli.terminal import shown
from goldfinch.cli.text_files import TextFileOptions
from goldfinch.cli.units import plural
from goldfinch.errors import UserError

if TYPE_CHECKING:
    from goldfinch.data.chat_template import ChatTemplate
    from goldfinch.data.find_files import FoundFiles
    from goldfinch.data.prepare import PrepareReport
    from goldfinch.data.tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Turn text, or tokens that others made, into a directory of token shards for `goldfinch train --data`.

    goldfinch data prepare books/*.txt -o data/books

    goldfinch data prepare minipile.idx -o data/minipile --tokenizer world
    """

    files: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE ...")]]
    """Text files of any kind, one document each; .jsonl, .jsonl.gz and .parquet, one document per line or row; folders,
    for all text files in them except hidden ones and what .gitignore excludes; quoted patterns such as "src/**/*.py"; -
    for standard input. Or the .idx files of indexed datasets of RWKV or Megatron, each with its .bin next to it, whose
    tokens are copied."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Output directory."""
    tokenizer: str = "bpe"
    """bytes, world (RWKV World, 65,536 ids), bpe (trained on these files), or a byte-level tokenizer.json file.
    For indexed datasets, the one that they were made with."""
    vocab_size: int = 4096
    """Vocabulary size of a trained tokenizer (bpe)."""
    chat_template: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """How conversations are written, {"messages": [{"role": ..., "content": ...}, ...]} in .jsonl or .parquet: a Jinja
    file as of Hugging Face, or a model folder that has one. By default, as RWKV's chat models write them."""
    loss_on: Literal["all", "answers"] = "all"
    """answers: models that train on this data learn the answers of conversations only, and all of other texts."""
    validation_fraction: float = 0.01
    """Fraction of the text for validation: whole documents, and where they do not fit, the end of one."""
    seed: int = 0
    """Random seed for the choice of validation documents."""
    overwrite: bool = False
    """Overwrite the data directory if it exists."""
    ray: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """Read and encode the files on this Ray cluster, a file at a time on each processor: local for this machine, auto
    for the cluster that it belongs to, HOST:PORT, or ray://HOST:PORT. The same is written, and by this process. Needs
    `pip install 'goldfinch[replicas]'`, and the files under the same paths on all machines."""
    text: Annotated[TextFileOptions, tyro.conf.arg(name="")] = TextFileOptions()
    """Which files are read, and how."""

    def run(self) -> None:
        """Prepare with a progress bar, report bad documents on stderr, and print a summary."""
        from goldfinch.cli.progress import errors_console
        from goldfinch.data.find_files import FoundFiles, stored_standard_input
        from goldfinch.data.indexed_dataset import is_indexed
        from goldfinch.data.shard_writer import check_output

        check_output(self.output, overwrite=self.overwrite)
        with stored_standard_input(self.files) as names:
            paths = [Path(name) for name in names]
            if any(map(is_indexed, paths)):
                self._prepare(FoundFiles(paths))
            else:
                self._prepare(self.text.find(names, errors_console()))

    def _prepare(self, found: "FoundFiles") -> None:
        from goldfinch.cli.progress import PreparingDisplay, SkippedDocuments, errors_console
        from goldfinch.data.chat_template import ChatTemplate
        from goldfinch.data.prepare import prepare

        template = ChatTemplate() if self.chat_template is None else ChatTemplate.read(self.chat_template)
        skipped = SkippedDocuments(errors_console())
        with PreparingDisplay() as display:
            display.start(f"tokenizer {self.tokenizer}")
            tokenizer = self._tokenizer(found, template)
            display.start("encoding")
            report = prepare(
                found.paths,
                self.output,
                tokenizer,
                validation_fraction=self.validation_fraction,
                seed=self.seed,
                text_field=self.text.text_field,
                encodings=found.encodings,
                chat_template=template,
                loss_on=self.loss_on,
                overwrite=self.overwrite,
                ray=self.ray,
                on_progress=display.advance,
                on_error=skipped,
            )
        skipped.finish()
        self._print_summary(report, tokenizer)

    def _tokenizer(self, found: "FoundFiles", template: "ChatTemplate") -> "Tokenizer":
        from goldfinch.data.indexed_dataset import is_index_file
        from goldfinch.data.prepare import train_tokenizer
        from goldfinch.data.tokenizers import named_tokenizer

        if self.tokenizer != "bpe":
            return named_tokenizer(self.tokenizer)
        index = next(filter(is_index_file, found.paths), None)
        if index:
            raise UserError(
                f"{index} needs the tokenizer that it was made with: --tokenizer world, or a tokenizer.json"
            )
        return train_tokenizer(
            found.paths,
            self.vocab_size,
            text_field=self.text.text_field,
            encodings=found.encodings,
            chat_template=template,
        )

    def _print_summary(self, report: "PrepareReport", tokenizer: "Tokenizer") -> None:
        lines = [
            f"{self.output}: {plural(report.documents, 'document')}, {report.tokens:,} tokens, "
            f"{report.bytes_per_token:.2f} bytes per token ({tokenizer.name}, {tokenizer.vocab_size:,} ids)"
        ]
        for name, split in report.splits.items():
            share = f"{split.tokens / report.tokens:.2%}"
            lines.append(f"  {name}: {plural(split.documents, 'document')}, {split.tokens:,} tokens ({share})")
        if report.cut:
            lines.append(f"  {shown(report.cut)} is in both: its end is held out for validation")
        if report.skipped:
            lines.append(f"  skipped: {plural(report.skipped, 'bad document')}")
        lines.append(f"next: goldfinch train --data {shlex.quote(str(self.output))} -o runs/NAME")
        print("\n".join(lines))


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Write a data directory that streams a Hugging Face dataset: training reads and tokenises it as it goes.

    goldfinch data stream JeanKaddour/minipile -o data/minipile --tokenizer world

    goldfinch data stream path/to/folder -o data/mine --tokenizer data/books/tokenizer.json

    For datasets that are too large to store twice. If it fits on the disk, or if many processes train on it, prepare it
    instead. Needs `pip install 'goldfinch[datasets]'`; only datasets on the Hub need a network connection.
    """

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Folder or file of parquet, JSON lines, arrow, csv or text (one document per line), a folder from save_to_disk, or
    a name on the Hub."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Output directory."""
    tokenizer: str = "world"
    """bytes, world (RWKV World, 65,536 ids), or a byte-level tokenizer.json file."""
    config: str = ""
    """Configuration of the dataset; if empty, its only or default one."""
    split: str = "train"
    """Split of the dataset."""
    revision: str = ""
    """Commit, tag or branch on the Hub. With a commit, a long run always reads the same text."""
    text_field: str = "text"
    """Column with the text."""
    validation_documents: int = 500
    """Number of documents at the start that are stored for validation and not trained on."""
    shuffle_windows: int = 2048
    """Size of the shuffle buffer, in training windows. Larger buffers mix better; each checkpoint stores the buffer, at
    4 bytes per token."""
    overwrite: bool = False
    """Overwrite the data directory if it exists."""

    def run(self) -> None:
        """Read the first documents and print a summary."""
        from goldfinch.data import stream
        from goldfinch.data.prepare import prepare_stream
        from goldfinch.data.tokenizers import named_tokenizer

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
            named_tokenizer(self.tokenizer),
            validation_documents=self.validation_documents,
            overwrite=self.overwrite,
        )
        print(
            f"{self.output}: streams {described.dataset} for training\n"
            f"  validation: its first {plural(report.documents, 'document')}, {report.tokens:,} tokens\n"
            f"next: goldfinch train --data {shlex.quote(str(self.output))} -o runs/NAME --steps STEPS"
        )


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Check every file of a data directory against its checksum."""

    directory: tyro.conf.Positional[Path]
    """Data directory from `goldfinch data prepare` or `data stream`."""

    def run(self) -> None:
        """Read everything and print a line per split."""
        from goldfinch.data.shards import Index, verify

        for split, dataset in verify(self.directory):
            print(f"{split}: {len(dataset):,} tokens, checksums match")
        if stream := Index.load(self.directory).stream:
            print(f"train: streamed from {stream.dataset}")


@dataclass(frozen=True, kw_only=True)
class Export:
    """Export a data directory as indexed datasets (.idx and .bin) for RWKV's and Megatron's tools.

    goldfinch data export data/minipile -o exported/minipile
    """

    directory: tyro.conf.Positional[Path]
    """Data directory from `goldfinch data prepare`."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="PREFIX")]
    """Writes PREFIX-train.idx, PREFIX-train.bin and the same for validation."""
    overwrite: bool = False
    """Overwrite the files if they exist."""

    def run(self) -> None:
        """Write both splits and print a line for each."""
        from goldfinch.data.export import export_indexed

        exported = export_indexed(self.directory, self.output, overwrite=self.overwrite)
        for path, dataset in exported.items():
            print(f"{path}, {path.with_suffix('.bin').name}: {len(dataset):,} tokens")
        if any(dataset.has_answers for dataset in exported.values()):
            print("not exported: which tokens are answers (--loss-on answers); the format has no place for it")


@dataclass(frozen=True, kw_only=True)
class Data:
    """Data directories for `goldfinch train --data`: prepare them from text or indexed datasets, stream a Hugging Face
    dataset while training, verify checksums, or export to indexed datasets."""

    command: tyro.conf.OmitSubcommandPrefixes[
        Annotated[Prepare, tyro.conf.subcommand("prepare")]
        | Annotated[Stream, tyro.conf.subcommand("stream")]
        | Annotated[Verify, tyro.conf.subcommand("verify")]
        | Annotated[Export, tyro.conf.subcommand("export")]
    ]


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    parse(Data, "data", args).command.run()
