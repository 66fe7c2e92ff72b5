"""Token shards: the format of a data directory, and reading it.

A data directory has, for the splits "train" and "validation",

    index.json             sizes and checksums of the other files, the tokenizer's name, format version
    tokenizer.json         the tokenizer itself
    train-00000.bin        token ids, little-endian uint16 or uint32; every document ends with the end of text
    train-00000.docs       where documents start in train-00000.bin: little-endian uint64, in tokens

A document may continue in the next shard. `shard_writer.py` writes these files.

If index.json describes a stream (`stream.py`), there are no training shards: the text is read and tokenised while a
model trains on it.
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
VERSION = 2
INDEX = "index.json"
TOKENIZER = "tokenizer.json"

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = get_args(Split)

TOKEN_DTYPES: dict[str, np.dtype] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
START_DTYPE = np.dtype("<u8")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One .bin file and the .docs file next to it.

    Attributes:
        file: name of the .bin file.
        tokens: number of ids in it.
        documents: number of documents that start in it.
        text_bytes: UTF-8 bytes of the text whose tokens start in it.
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
        stream: what to read for training instead of shards; None if there are shards.
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
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_text(directory / INDEX, json.dumps(content, indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read `directory`/index.json.

        Raises:
            UserError: it is missing, corrupt or of another version.
        """
        path = directory / INDEX
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT:
                raise ValueError("unknown format")
            version = content.pop("version")
            if version != VERSION:
                raise UserError(f"{path} has version {version}, this program reads {VERSION}: prepare the data again")
            splits, stream = content.pop("splits"), content.pop("stream")
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
            raise UserError(f"{path} is corrupt ({error}); prepare the data again") from error
        return index


class TokenDataset:
    """The tokens of one split, memory-mapped.

    Attributes:
        directory: the data directory.
        vocab_size: ids are below it.
        end_of_text: the id that ends every document.
        tokenizer_hash: `Tokenizer.hash` of the tokenizer.
        text_bytes: UTF-8 bytes of the text.
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
        # _borders[i] is where shard i starts; the last one is the length of the split.
        self._borders = np.cumsum([0, *(shard.tokens for shard in self._shards)])

    @classmethod
    def open(cls, directory: Path, split: Split) -> Self:
        """Open one split of a data directory. Sizes are checked now, checksums by `verify`.

        Raises:
            UserError: a file is missing, corrupt, of the wrong size or of another version.
        """
        return cls(directory, split, Index.load(directory))

    def __len__(self) -> int:
        return int(self._borders[-1])

    def tokens(self, start: int, count: int) -> np.ndarray:
        """Tokens start .. start + count - 1: (count,) int64, across shard borders.

        Raises:
            IndexError: the range is outside the split.
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
        """Where each document starts in the split: (documents,) int64, increasing from 0."""
        parts = [
            np.fromfile(self.directory / shard.starts_file(), dtype=START_DTYPE).astype(np.int64) + border
            for shard, border in zip(self._shards, self._borders, strict=False)
        ]
        return np.concatenate(parts)

    def verify(self) -> None:
        """Read every byte and compare the checksums.

        Raises:
            UserError: a file is corrupt.
        """
        for shard in self._shards:
            for name, expected in ((shard.file, shard.sha256), (shard.starts_file(), shard.starts_sha256)):
                with (self.directory / name).open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                        raise UserError(
                            f"{self.directory / name} is corrupt (its checksum does not match); prepare the data again"
                        )

    def _check_size(self, name: str, expected: int) -> None:
        path = self.directory / name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; prepare the data again") from error
        if size != expected:
            raise UserError(f"{path} has {size:,} bytes instead of {expected:,}; prepare the data again")


def verify(directory: Path) -> Iterator[tuple[Split, TokenDataset]]:
    """Check every file of a data directory; yields each split that passes. A stream has no files.

    Raises:
        UserError: a file is missing, corrupt or of another tokenizer.
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
