"""Token shards: the format of a data directory, and reading it.

A data directory has, for the splits "train" and "validation",

    index.json             sizes and checksums of the other files, the tokenizer's name, format version
    tokenizer.json         the tokenizer itself
    chat_template.jinja    how conversations are written, if there are any
    train-00000.bin        token ids, little-endian uint16 or uint32; every document ends with the end of text
    train-00000.sums       XXH3 of each 64 KiB of train-00000.bin: little-endian uint64
    train-00000.answers    one byte per token: 1 for those that the loss is on; only if it is on answers
    train-00000.answers.sums
    train-00000.docs       where documents start in train-00000.bin: little-endian uint64, in tokens

index.json has checksums of itself and of the .sums and .docs files. A block of a .bin file is verified when it is first
used, so that opening takes the same time however large the data is.

A document may continue in the next shard. `shard_writer.py` writes these files.

If index.json describes a stream (`stream.py`), there are no training shards: the text is read and tokenised while a
model trains on it.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np

from goldfinch.data.checksums import BLOCK_BYTES, CHECKSUM_DTYPE, VerifiedTokens, checksum
from goldfinch.data.stream import Stream
from goldfinch.data.tokenizers import Tokenizer, load_tokenizer
from goldfinch.errors import UserError
from goldfinch.file_kinds import hint
from goldfinch.files import write_text
from goldfinch.json_yaml import read_json
from goldfinch.settings import from_plain

FORMAT = "goldfinch-tokens"
VERSION = 3
INDEX = "index.json"
TOKENIZER = "tokenizer.json"

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = get_args(Split)

TOKEN_DTYPES: dict[str, np.dtype] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
START_DTYPE = np.dtype("<u8")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One .bin file and the .sums and .docs files next to it.

    Attributes:
        file: name of the .bin file.
        tokens: number of ids in it.
        documents: number of documents that start in it.
        text_bytes: UTF-8 bytes of the text whose tokens start in it.
        checksum: of the .sums file.
        starts_checksum: of the .docs file.
        answers_checksum: of the .answers.sums file; "" if the loss is on all tokens.
    """

    file: str
    tokens: int
    documents: int
    text_bytes: int
    checksum: str
    starts_checksum: str
    answers_checksum: str = ""

    def __post_init__(self) -> None:
        if Path(self.file).name != self.file or Path(self.file).suffix != ".bin":
            raise UserError(f"{self.file!r} is not the name of a .bin file")
        if self.tokens < 1 or self.documents < 0:
            raise UserError(f"{self.file} cannot have {self.tokens:,} tokens of {self.documents:,} documents")

    def checksums_file(self) -> str:
        """Name of the .sums file."""
        return str(Path(self.file).with_suffix(".sums"))

    def answers_file(self) -> str:
        """Name of the .answers file."""
        return str(Path(self.file).with_suffix(".answers"))

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
        dtype: of the ids.
        train: the shards of the training split, in order.
        validation: those of the validation split.
        stream: what to read for training instead of shards; None if there are shards.
    """

    tokenizer: str
    tokenizer_hash: str
    vocab_size: int
    end_of_text: int
    dtype: Literal["uint16", "uint32"]
    train: tuple[Shard, ...]
    validation: tuple[Shard, ...]
    stream: Stream | None = None

    def shards(self, split: Split) -> tuple[Shard, ...]:
        """The shards of a split, in order."""
        return self.train if split == "train" else self.validation

    def save(self, directory: Path) -> None:
        """Write `directory`/index.json."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self), "checksum": self.checksum()}
        write_text(directory / INDEX, json.dumps(content, indent=2) + "\n")

    def checksum(self) -> str:
        """Of the tokenizer and all tokens: those of other text, or of another tokenizer, have another one."""
        return checksum(json.dumps(asdict(self), sort_keys=True).encode())

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read `directory`/index.json.

        Raises:
            UserError: it is missing, corrupt or of another version.
        """
        path = directory / INDEX
        if not path.is_file():
            raise UserError(
                f"{directory} is not a data directory: {path.name} is missing"
                + (hint(directory) or f"; make one: goldfinch data prepare FILES -o {directory}")
            )
        content = read_json(path)
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise UserError(f"{path} is not the index of a data directory; prepare the data again")
        version = content.pop("version", None)
        if version != VERSION:
            raise UserError(f"{path} has version {version}, this program reads {VERSION}: prepare the data again")
        expected = content.pop("checksum", None)
        try:
            index = from_plain(cls, content)
        except UserError as error:
            raise UserError(f"{path} is corrupt ({error}); prepare the data again") from error
        if index.checksum() != expected:
            raise UserError(f"{path} is corrupt (its checksum does not match); prepare the data again")
        return index


class TokenDataset:
    """The tokens of one split, memory-mapped.

    Attributes:
        directory: the data directory.
        vocab_size: ids are below it.
        end_of_text: the id that ends every document.
        tokenizer_hash: `Tokenizer.hash` of the tokenizer.
        text_bytes: UTF-8 bytes of the text.
        has_answers: whether the loss is on answers only.
    """

    def __init__(self, directory: Path, split: Split, index: Index) -> None:
        self.directory = directory
        self._split = split
        self._shards = index.shards(split)
        if not self._shards and index.stream and split == "train":
            raise UserError(f"{directory} streams its training text: its tokens are not stored; use `data prepare`")
        if not self._shards:
            raise UserError(f"{directory} has no {split} tokens; prepare the data again")
        self.vocab_size = index.vocab_size
        self.end_of_text = index.end_of_text
        self.tokenizer_hash = index.tokenizer_hash
        self.text_bytes = sum(shard.text_bytes for shard in self._shards)

        self._dtype = TOKEN_DTYPES[index.dtype]
        for shard in self._shards:
            nbytes = shard.tokens * self._dtype.itemsize
            self._check_size(shard.file, nbytes)
            self._check_size(shard.checksums_file(), -(-nbytes // BLOCK_BYTES) * CHECKSUM_DTYPE.itemsize)
            self._check_size(shard.starts_file(), shard.documents * START_DTYPE.itemsize)
            if shard.answers_checksum:
                self._check_size(shard.answers_file(), shard.tokens)
        self.has_answers = any(shard.answers_checksum for shard in self._shards)
        self._opened: dict[tuple[int, bool], VerifiedTokens] = {}
        # _borders[i] is where shard i starts; the last one is the length of the split.
        self._borders = np.cumsum([0, *(shard.tokens for shard in self._shards)])

    @classmethod
    def open(cls, directory: Path, split: Split) -> Self:
        """Open one split of a data directory. Sizes are checked now, contents when they are used.

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
            UserError: a block of these tokens is corrupt, or has an id outside the vocabulary.
        """
        return self._read(start, count, np.int64, answers=False)

    def answers(self, start: int, count: int) -> np.ndarray:
        """Whether the loss is on each of these tokens: (count,) bool; all of them, unless `has_answers`.

        Raises:
            IndexError, UserError: as `tokens`.
        """
        return self._read(start, count, bool, answers=True) if self.has_answers else np.ones(count, dtype=bool)

    def _read(self, start: int, count: int, dtype: type, *, answers: bool) -> np.ndarray:
        if start < 0 or count < 0 or start + count > len(self):
            raise IndexError(f"tokens {start}..{start + count} of a split of {len(self)}")
        result: np.ndarray = np.empty(count, dtype=dtype)
        shard = int(np.searchsorted(self._borders, start, side="right")) - 1
        done = 0
        while done < count:
            offset = start + done - int(self._borders[shard])
            part = self._open(shard, answers).read(offset, min(offset + count - done, self._shards[shard].tokens))
            result[done : done + len(part)] = part
            done += len(part)
            shard += 1
        return result

    @cached_property
    def document_starts(self) -> np.ndarray:
        """Where each document starts in the split: (documents,) int64, increasing from 0.

        Raises:
            UserError: a file with them is corrupt.
        """
        parts = [
            np.frombuffer(self._verified_file(shard.starts_file(), shard.starts_checksum), dtype=START_DTYPE) + border
            for shard, border in zip(self._shards, self._borders.astype(START_DTYPE), strict=False)
        ]
        return np.concatenate(parts).astype(np.int64)

    def verify(self) -> None:
        """Read every byte and compare the checksums.

        Raises:
            UserError: a file is corrupt.
        """
        for number, shard in enumerate(self._shards):
            self._verified_file(shard.starts_file(), shard.starts_checksum)
            self._open(number).verify()
            if shard.answers_checksum:
                self._open(number, answers=True).verify()

    def _open(self, number: int, answers: bool = False) -> VerifiedTokens:
        """The tokens or the answers of a shard, which is opened when it is first used."""
        if (number, answers) not in self._opened:
            shard = self._shards[number]
            file, dtype, vocab_size = shard.file, self._dtype, self.vocab_size
            sums, expected = shard.checksums_file(), shard.checksum
            if answers:
                file, dtype, vocab_size = shard.answers_file(), np.dtype(np.uint8), 2
                sums, expected = file + ".sums", shard.answers_checksum
            checksums = self._verified_file(sums, expected)
            self._opened[number, answers] = VerifiedTokens(self.directory / file, dtype, checksums, vocab_size)
        return self._opened[number, answers]

    def _verified_file(self, name: str, expected: str) -> bytes:
        """The content of a small file, whose checksum is in the index."""
        path = self.directory / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; prepare the data again") from error
        if checksum(content) != expected:
            raise UserError(f"{path} is corrupt: its checksum does not match; prepare the data again")
        return content

    def _check_size(self, name: str, expected: int) -> None:
        path = self.directory / name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; prepare the data again") from error
        if size != expected:
            raise UserError(f"{path} has {size:,} bytes instead of {expected:,}; prepare the data again")


def load_data_tokenizer(directory: Path, index: Index) -> Tokenizer:
    """The tokenizer of a data directory.

    Raises:
        UserError: its file is missing, corrupt or not that of the tokens.
    """
    path = directory / TOKENIZER
    tokenizer = load_tokenizer(path)
    described = (index.tokenizer_hash, index.vocab_size, index.end_of_text)
    if (tokenizer.hash, tokenizer.vocab_size, tokenizer.end_of_text) != described:
        raise UserError(f"{path} is not the tokenizer of these tokens; prepare the data again")
    return tokenizer


def verify(directory: Path) -> Iterator[tuple[Split, TokenDataset]]:
    """Check every file of a data directory; yields each split that passes. A stream has no files.

    Raises:
        UserError: a file is missing, corrupt or of another tokenizer.
    """
    index = Index.load(directory)
    load_data_tokenizer(directory, index)
    for split in SPLITS:
        if index.stream and split == "train":
            continue
        dataset = TokenDataset(directory, split, index)
        dataset.verify()
        yield split, dataset
