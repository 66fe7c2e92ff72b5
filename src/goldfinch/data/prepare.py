"""Preparing a data directory of token shards from text files or indexed datasets."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from goldfinch.data.chat_template import ChatTemplate
from goldfinch.data.documents import Document, read_documents
from goldfinch.data.indexed_dataset import is_index_file
from goldfinch.data.ray_source import RaySource
from goldfinch.data.shard_writer import check_output, write_dataset
from goldfinch.data.shards import SPLITS, Split
from goldfinch.data.sources import IndexedSource, Source, TextSource, in_batches
from goldfinch.data.stream import Stream, first_documents
from goldfinch.data.tokenizers import BpeTokenizer, Tokenizer
from goldfinch.data.train_validation_split import Splitter
from goldfinch.errors import UserError
from goldfinch.ray_cluster import connected_to_ray


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of `prepare`: bytes of the input files as stored, and tokens written."""

    bytes_read: int
    bytes_total: int
    tokens: int


@dataclass
class SplitReport:
    """What was written for one split; `text_bytes` are UTF-8."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class PrepareReport:
    """The result of `prepare`.

    Attributes:
        splits: what was written for each split.
        skipped: number of bad documents that were skipped.
        cut: the document, by name, whose end is in the validation split and the rest in the training split, if any.
    """

    splits: dict[Split, SplitReport]
    skipped: int
    cut: str | None

    @property
    def documents(self) -> int:
        """Documents of both splits; one that was cut is one."""
        return sum(split.documents for split in self.splits.values()) - (self.cut is not None)

    @property
    def tokens(self) -> int:
        """Tokens of both splits, with the end of text after each document."""
        return sum(split.tokens for split in self.splits.values())

    @property
    def bytes_per_token(self) -> float:
        """Mean bytes of text per token."""
        return sum(split.text_bytes for split in self.splits.values()) / self.tokens


def train_tokenizer(
    files: Sequence[Path],
    vocab_size: int,
    *,
    text_field: str = "text",
    encodings: Mapping[Path, str] | None = None,
    chat_template: ChatTemplate | None = None,
    sample_bytes: int = 100_000_000,
) -> BpeTokenizer:
    """Train a BPE tokenizer on the first `sample_bytes` of text, with an equal share from the start of each file.

    Bad documents are skipped; `prepare` reports them.

    Raises:
        UserError: a file cannot be read, or `vocab_size` is too small.
    """
    read_documents(files)  # reports a missing file before the first is read
    share = sample_bytes // max(1, len(files))
    texts = itertools.chain.from_iterable(
        _sample(read_documents([file], text_field, lambda _: None, encodings, chat_template), share) for file in files
    )
    return BpeTokenizer.train(texts, vocab_size)


def prepare(
    files: Sequence[Path],
    output: Path,
    tokenizer: Tokenizer,
    *,
    validation_fraction: float = 0.01,
    seed: int = 0,
    text_field: str = "text",
    encodings: Mapping[Path, str] | None = None,
    chat_template: ChatTemplate | None = None,
    loss_on: Literal["all", "answers"] = "all",
    overwrite: bool = False,
    ray: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_error: Callable[[str], None] | None = None,
) -> PrepareReport:
    """Encode the documents of `files` and write the data directory `output`, atomically.

    The tokens of indexed datasets (.idx, see `indexed_dataset`) are copied; their documents are split by the same rule.

    Documents are split by `Splitter`: the same for the same input and seed. For that, the first ten thousand documents
    are read twice. Memory does not grow with the input.

    Args:
        files: see `read_documents`; or .idx files, each with its .bin file next to it.
        output: the directory to write.
        tokenizer: also saved in `output`; for indexed datasets, the one that they were made with.
        validation_fraction: between 0 and 1.
        seed: random seed for the choice of validation documents.
        text_field: the field or column with the text.
        encodings: of the text files that are not UTF-8, as `find_text_files` finds them.
        chat_template: how conversations are written; saved in `output` if there are any. None: as RWKV's chat models.
        loss_on: answers: models that train on this data learn the answers of conversations, and all other text.
        overwrite: replace `output` if it is a data directory.
        ray: read and encode the files on Ray, each by a process: the address of a cluster that sees them under the same
            paths, or "local" for processes of this machine. What is written is the same, and is written here.
        on_progress: called after each batch of documents.
        on_error: called with "file:line: reason" for each document that is skipped. None: the first one raises.

    Raises:
        UserError: a file cannot be read, there are no documents, or `output` exists.
    """
    if not 0 < validation_fraction < 1:
        raise UserError(f"--validation-fraction must be between 0 and 1, such as 0.01, not {validation_fraction}")
    check_output(output, overwrite=overwrite)
    skipped = 0

    def skip(message: str) -> None:
        nonlocal skipped
        skipped += 1
        if on_error is None:
            raise UserError(message)
        on_error(message)

    chat_template = chat_template or ChatTemplate()
    source: Source = (
        IndexedSource(files, tokenizer)
        if any(map(is_index_file, files))
        else TextSource(files, text_field, encodings, chat_template, tokenizer, loss_on == "answers")
    )
    splitter = _plan(source, validation_fraction, seed, strict=on_error is None)
    report: dict[Split, SplitReport] = {split: SplitReport() for split in SPLITS}
    # As the beginning shows, which has been read.
    saved_template = chat_template if source.has_chat else None
    if loss_on == "answers" and not source.has_chat:
        raise UserError("--loss-on answers needs conversations, and the files begin without any: leave it out")
    if ray is not None:
        source = _on_ray(source, splitter)
    with (
        nullcontext() if ray is None else connected_to_ray(ray),
        write_dataset(
            output, tokenizer, overwrite=overwrite, chat_template=saved_template, has_answers=loss_on == "answers"
        ) as writers,
    ):
        for batch in in_batches(splitter.assign(source.read(skip)), lambda item: item[1].length):
            encoded = source.encode([document for _, document in batch])
            for (split, document), (ids, text_bytes, answers) in zip(batch, encoded, strict=True):
                report[split].tokens += writers[split].append(
                    ids, text_bytes, continues=document.continues, answers=answers
                )
                report[split].text_bytes += text_bytes
                report[split].documents += not document.continues
            if on_progress:
                tokens = sum(split.tokens for split in report.values())
                on_progress(Progress(bytes_read=batch[-1][1].position, bytes_total=source.size, tokens=tokens))
    return PrepareReport(splits=report, skipped=skipped, cut=splitter.cut.name if splitter.cut else None)


def prepare_stream(
    stream: Stream, output: Path, tokenizer: Tokenizer, *, validation_documents: int, overwrite: bool = False
) -> PrepareReport:
    """Write a data directory whose training text is streamed; the first documents are the validation split.

    Args:
        stream: what to read; its `skip` is set here.
        output: the directory to write.
        tokenizer: also saved in `output`.
        validation_documents: number of documents at the start for validation.
        overwrite: replace `output`, if it is a data directory.

    Raises:
        UserError: the stream cannot be read or has no more documents than that, or `output` exists.
    """
    if validation_documents < 1:
        raise UserError(f"--validation-documents must be at least 1, not {validation_documents}")
    check_output(output, overwrite=overwrite)
    texts, rows = first_documents(replace(stream, skip=0), validation_documents)
    report = SplitReport(documents=len(texts), text_bytes=sum(len(text.encode()) for text in texts))
    with write_dataset(output, tokenizer, overwrite=overwrite, stream=replace(stream, skip=rows)) as writers:
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            report.tokens += writers["validation"].append(ids, len(text.encode()))
    return PrepareReport(splits={"validation": report}, skipped=0, cut=None)


def _on_ray(source: Source, splitter: Splitter) -> RaySource:
    if not isinstance(source, TextSource):
        raise UserError("--ray is for text: the tokens of .idx files are only copied, so leave it out")
    return RaySource(source, splitter.cut.name if splitter.cut else None)


def _sample(documents: Iterable[Document], characters: int) -> Iterator[str]:
    for document in documents:
        yield document.text[:characters]
        characters -= len(document.text)
        if characters <= 0:
            return


def _plan(source: Source, fraction: float, seed: int, *, strict: bool) -> Splitter:
    bad: list[str] = []
    splitter = Splitter.plan(source.read(None if strict else bad.append), fraction, seed)
    if splitter is None:
        reason = f": all {len(bad)} are bad, the first one: {bad[0]}" if bad else ""
        raise UserError(f"no documents found in {', '.join(map(str, source.files))}{reason}")
    return splitter
