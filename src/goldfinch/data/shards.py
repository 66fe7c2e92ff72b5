"""Token shards: what a data directory holds, and reading it.

A data directory has, for the splits "train" and "validation",

    index.json             sizes and checksums of all the rest, which tokenizer, format version
    tokenizer.json         the tokenizer itself
    train-00000.bin        token ids, little-endian uint16 or uint32; every document ends with the end of text
    train-00000.docs       where in train-00000.bin documents begin: little-endian uint64, in tokens

A document may go on in the next shard. `shard_writer.py` writes it all.

Where index.json describes a stream (`stream.py`), there are no shards for training: the text is read, and tokenised,
while a model trains on it.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np

from goldfinch.data.stream import Stream
from goldfinch.data.tokenizers import load_tokenizer
from goldfinch.errors import UserError
from goldfinch.files import write_text
from goldfinch.settings import from_plain

FORMAT = "goldfinch-tokens"
VERSION = 2  # 2: streams; what has none is written as 1
INDEX = "index.json"
TOKENIZER = "tokenizer.json"

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = get_args(Split)

TOKEN_DTYPES: dict[str, np.dtype] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
START_DTYPE = np.dtype("<u8")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One .bin file and the .docs file beside it.

    Attributes:
        file: name of the .bin file.
        tokens: ids in it.
        documents: how many documents begin in it.
        text_bytes: UTF-8 bytes of the text whose tokens begin in it.
        sha256: of the .bin file, hex.
        starts_sha256: of the .docs file, hex.
    """

    file: str
    tokens: int
    documents: int
    text_bytes: int
    sha256: str
    starts_sha256: str

    def starts_file(self) -> str:
        """Name of the .docs file."""
        return str(Path(self.file).with_suffix(".docs"))


@dataclass(frozen=True, kw_only=True)
class Index:
    """The content of index.json.

    Attributes:
        tokenizer: name of the tokenizer.
        tokenizer_hash: `Tokenizer.hash`.
        vocab_size: ids are below it.
        end_of_text: the id that ends documents.
        dtype: "uint16" or "uint32".
        splits: the shards of each split, in order.
        stream: what to read for training, in place of shards; None where there are shards.
    """

    tokenizer: str
    tokenizer_hash: str
    vocab_size: int
    end_of_text: int
    dtype: str
    splits: dict[str, list[Shard]]
    stream: Stream | None = None

    def save(self, directory: Path) -> None:
        """Write `directory`/index.json."""
        content = {"format": FORMAT, "version": VERSION if self.stream else 1, **asdict(self)}
        if self.stream is None:
            del content["stream"]
        write_text(directory / INDEX, json.dumps(content, indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read `directory`/index.json.

        Raises:
            UserError: it is missing, malformed or of a newer version.
        """
        path = directory / INDEX
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT:
                raise ValueError("it is of another format")
            version = content.pop("version")
            if version > VERSION:
                raise UserError(f"{path} has version {version}, newer than {VERSION}: upgrade goldfinch")
            splits, stream = content.pop("splits"), content.pop("stream", None)
            index = cls(
                **content,
                splits={name: [Shard(**shard) for shard in splits[name]] for name in SPLITS},
                stream=None if stream is None else from_plain(Stream, stream, "stream."),
            )
            if index.dtype not in TOKEN_DTYPES:
                raise ValueError(f"unknown dtype {index.dtype!r}")
        except OSError as error:
            raise UserError(
                f"{directory} is not a data directory ({path.name}: {error.strerror}); "
                f"make one: goldfinch data prepare FILES -o {directory}"
            ) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}); prepare the data again") from error
        return index


class TokenDataset:
    """The tokens of one split, read from disk as they are asked for.

    Attributes:
        directory: the data directory.
        vocab_size: ids are below it.
        end_of_text: the id that ends every document.
        tokenizer_hash: `Tokenizer.hash` of the tokenizer that made it.
        text_bytes: UTF-8 bytes of the text that the tokens stand for.
    """

    def __init__(self, directory: Path, split: Split, index: Index) -> None:
        self.directory = directory
        self._split = split
        self._shards = index.splits[split]
        if not self._shards and index.stream and split == "train":
            raise UserError(f"{directory} streams its training text: its tokens are not stored; use `data prepare`")
        if not self._shards:
            raise UserError(f"{directory} has no {split} tokens; prepare the data again")
        self.vocab_size = index.vocab_size
        self.end_of_text = index.end_of_text
        self.tokenizer_hash = index.tokenizer_hash
        self.text_bytes = sum(shard.text_bytes for shard in self._shards)

        dtype = TOKEN_DTYPES[index.dtype]
        for shard in self._shards:
            self._check_size(shard.file, shard.tokens * dtype.itemsize)
            self._check_size(shard.starts_file(), shard.documents * START_DTYPE.itemsize)
        self._memory = [np.memmap(directory / shard.file, dtype=dtype, mode="r") for shard in self._shards]
        # _borders[i] is where shard i begins; the last one is the length of the split.
        self._borders = np.cumsum([0, *(shard.tokens for shard in self._shards)])

    @classmethod
    def open(cls, directory: Path, split: Split) -> Self:
        """Open one split of a data directory. Sizes are checked now, checksums by `verify`.

        Raises:
            UserError: a file is missing, damaged, of the wrong size, or written by a newer version.
        """
        return cls(directory, split, Index.load(directory))

    def __len__(self) -> int:
        return int(self._borders[-1])

    def tokens(self, start: int, count: int) -> np.ndarray:
        """Tokens start .. start + count - 1: (count,) int64, across shard borders.

        Raises:
            IndexError: they are not all within the split.
        """
        if start < 0 or count < 0 or start + count > len(self):
            raise IndexError(f"tokens {start}..{start + count} of a split of {len(self)}")
        result = np.empty(count, dtype=np.int64)
        shard = int(np.searchsorted(self._borders, start, side="right")) - 1
        done = 0
        while done < count:
            offset = start + done - int(self._borders[shard])
            part = self._memory[shard][offset : offset + count - done]
            result[done : done + len(part)] = part
            done += len(part)
            shard += 1
        return result

    @cached_property
    def document_starts(self) -> np.ndarray:
        """Where each document begins in the split: (documents,) int64, rising, the first 0."""
        parts = [
            np.fromfile(self.directory / shard.starts_file(), dtype=START_DTYPE).astype(np.int64) + border
            for shard, border in zip(self._shards, self._borders, strict=False)
        ]
        return np.concatenate(parts)

    def verify(self) -> None:
        """Read every byte and compare the checksums.

        Raises:
            UserError: a file is not what was written.
        """
        for shard in self._shards:
            for name, expected in ((shard.file, shard.sha256), (shard.starts_file(), shard.starts_sha256)):
                with (self.directory / name).open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                        raise UserError(f"{self.directory / name} is damaged (checksum); prepare the data again")

    def _check_size(self, name: str, expected: int) -> None:
        path = self.directory / name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; prepare the data again") from error
        if size != expected:
            raise UserError(f"{path} has {size:,} bytes where {expected:,} were written; prepare the data again")


def verify(directory: Path) -> Iterator[tuple[Split, TokenDataset]]:
    """Check every file of a data directory, split by split; yield each when it has passed. A stream has no files.

    Raises:
        UserError: a file is missing, damaged or of another tokenizer.
    """
    index = Index.load(directory)
    if load_tokenizer(directory / TOKENIZER).hash != index.tokenizer_hash:
        raise UserError(f"{directory / TOKENIZER} is not the tokenizer of these tokens; prepare the data again")
    for split in SPLITS:
        if index.stream and split == "train":
            continue
        dataset = TokenDataset(directory, split, index)
        dataset.verify()
        yield split, dataset
