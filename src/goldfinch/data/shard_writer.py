"""Writing token shards in one pass, holding one piece of text in memory."""

import contextlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from goldfinch.data.chat_template import ChatTemplate
from goldfinch.data.checksums import BlockChecksums, checksum
from goldfinch.data.shards import SPLITS, START_DTYPE, TOKEN_DTYPES, TOKENIZER, Index, Shard, Split
from goldfinch.data.stream import Stream
from goldfinch.data.tokenizers import Tokenizer
from goldfinch.errors import UserError
from goldfinch.files import atomic_directory

SHARD_TOKENS = 1 << 27


class _BlockFile:
    """A file that is being written, and the checksums of its blocks."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._checksums = BlockChecksums()

    def write(self, values: np.ndarray) -> None:
        data = values.tobytes()
        self._file.write(data)
        self._checksums.update(data)

    def abandon(self) -> None:
        """Close it, whether or not what is left can still be written."""
        with contextlib.suppress(OSError):
            self._file.close()

    def close(self) -> bytes:
        """Close it; returns the checksums."""
        self._file.close()
        return self._checksums.finish()


class _OpenShard:
    """The shard that is being written."""

    def __init__(self, path: Path, has_answers: bool) -> None:
        self.tokens = self.documents = self.text_bytes = 0
        self._path = path
        self._ids = _BlockFile(path)
        self._answers = _BlockFile(path.with_suffix(".answers")) if has_answers else None
        self._starts = array("Q")

    def start_document(self) -> None:
        self._starts.append(self.tokens)
        self.documents += 1

    def append(self, tokens: np.ndarray, answers: np.ndarray) -> None:
        self._ids.write(tokens)
        if self._answers is not None:
            self._answers.write(answers)
        self.tokens += len(tokens)

    def abandon(self) -> None:
        for file in (self._ids, self._answers):
            if file is not None:
                file.abandon()

    def close(self) -> Shard:
        checksums = self._ids.close()
        answers = self._answers.close() if self._answers is not None else None
        starts = np.array(self._starts, dtype=START_DTYPE).tobytes()
        shard = Shard(
            file=self._path.name,
            tokens=self.tokens,
            documents=self.documents,
            text_bytes=self.text_bytes,
            checksum=checksum(checksums),
            starts_checksum=checksum(starts),
            answers_checksum=checksum(answers) if answers is not None else "",
        )
        if answers is not None:
            self._path.with_name(shard.answers_file() + ".sums").write_bytes(answers)
        self._path.with_name(shard.checksums_file()).write_bytes(checksums)
        self._path.with_name(shard.starts_file()).write_bytes(starts)
        return shard


class SplitWriter:
    """Appends documents to one split, shard after shard."""

    def __init__(
        self, directory: Path, split: Split, dtype: str, end_of_text: int, shard_tokens: int, has_answers: bool = False
    ) -> None:
        self._directory = directory
        self._split = split
        self._dtype = TOKEN_DTYPES[dtype]
        self._end_of_text = end_of_text
        self._shard_tokens = shard_tokens
        self._has_answers = has_answers
        self._finished: list[Shard] = []
        self._shard: _OpenShard | None = None
        self._inside_document = False

    def append(
        self,
        ids: Sequence[int] | np.ndarray,
        text_bytes: int,
        *,
        continues: bool = False,
        answers: np.ndarray | None = None,
    ) -> int:
        """Write the next document, or a piece that the next call continues; returns the number of tokens written.

        Args:
            ids: the tokens without the end of text, which is added at the end of the document.
            text_bytes: UTF-8 bytes of their text.
            continues: whether more of this document follows.
            answers: whether the loss is on each id, if the data has that; None: on all.
        """
        end = [] if continues else [self._end_of_text]
        tokens = np.concatenate([np.asarray(part, dtype=self._dtype) for part in (ids, end)])
        counted = np.ones(len(tokens), dtype=np.uint8)
        if answers is not None:
            counted[: len(answers)] = answers
        shard = self._shard_with_room()
        if not self._inside_document:
            shard.start_document()
        shard.text_bytes += text_bytes
        written = 0
        while written < len(tokens):
            shard = self._shard_with_room()
            part = tokens[written : written + self._shard_tokens - shard.tokens]
            shard.append(part, counted[written : written + len(part)])
            written += len(part)
        self._inside_document = continues
        return written

    def close(self) -> list[Shard]:
        """Close the files; returns the shards in order."""
        if self._shard:
            self._finished.append(self._shard.close())
            self._shard = None
        return self._finished

    def abandon(self) -> None:
        """Close what is open, of a directory that will not be complete; nothing after `close`."""
        if self._shard is not None:
            self._shard.abandon()
            self._shard = None

    def _shard_with_room(self) -> _OpenShard:
        if self._shard and self._shard.tokens >= self._shard_tokens:
            self.close()
        if not self._shard:
            self._shard = _OpenShard(self._directory / f"{self._split}-{len(self._finished):05}.bin", self._has_answers)
        return self._shard


def check_output(output: Path, *, overwrite: bool) -> None:
    """Check that `write_dataset` may write to `output`, before long work is done.

    Raises:
        UserError: it exists without `overwrite`, or it is not a data directory, which is never overwritten.
    """
    if not output.exists():
        return
    if not overwrite:
        raise UserError(f"{output} exists: choose another directory, or give --overwrite")
    if not output.is_dir() or any(output.iterdir()):
        try:
            Index.load(output)
        except UserError as error:
            raise UserError(f"{output} is not a data directory, so it is not overwritten: choose another") from error


@contextlib.contextmanager
def write_dataset(
    output: Path,
    tokenizer: Tokenizer,
    *,
    overwrite: bool = False,
    shard_tokens: int = SHARD_TOKENS,
    stream: Stream | None = None,
    chat_template: ChatTemplate | None = None,
    has_answers: bool = False,
) -> Iterator[dict[Split, SplitWriter]]:
    """Yield a writer for each split; when the block succeeds, `output` is the complete data directory.

    When the block raises, `output` is unchanged. An `output` that is overwritten stays until the new one is complete.
    With `stream`, training reads that instead of shards. `chat_template` is saved for the models that train on it. With
    `has_answers`, it is stored which tokens the loss is on.

    Raises:
        UserError: see `check_output`; or a file cannot be written, for example because the disk is full.
    """
    check_output(output, overwrite=overwrite)
    dtype: Literal["uint16", "uint32"] = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    with atomic_directory(output, replace=overwrite) as directory:
        writers = {
            split: SplitWriter(directory, split, dtype, tokenizer.end_of_text, shard_tokens, has_answers)
            for split in SPLITS
        }
        try:
            yield writers
            shards = {split: writer.close() for split, writer in writers.items()}
        except OSError as error:
            if error.filename is not None:
                raise
            raise UserError(f"cannot write {output}: {error.strerror or error}") from error
        finally:
            for writer in writers.values():
                writer.abandon()
        tokenizer.save(directory / TOKENIZER)
        if chat_template is not None:
            chat_template.save(directory)
        Index(
            tokenizer=tokenizer.name,
            tokenizer_hash=tokenizer.hash,
            vocab_size=tokenizer.vocab_size,
            end_of_text=tokenizer.end_of_text,
            dtype=dtype,
            train=tuple(shards["train"]),
            validation=tuple(shards["validation"]),
            stream=stream,
        ).save(directory)
