"""Text files that the processes of a Ray cluster read and encode, each a file at a time."""

import dataclasses
import functools
import itertools
import logging
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from goldfinch.data.documents import Document
from goldfinch.data.sources import Encoded, TextSource, in_batches
from goldfinch.errors import UserError

BLOCK_BYTES = 4 << 20
"""Of what processes send back at once: a few of them wait for the one that writes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedDocument:
    """A document, or a piece of a long one, that is encoded already; else as `Document`."""

    name: str
    continues: bool
    length: int
    position: int
    encoded: Encoded
    can_be_cut: bool = False

    def cut(self, at: int, margin: int) -> tuple["EncodedDocument", None]:
        """It cannot be: the document that is cut comes as text."""
        raise AssertionError(f"{self.name} is encoded already: it cannot be cut at {at}")


@dataclasses.dataclass(frozen=True)
class _Part:
    """What a process sends back: some documents of a file, in order."""

    documents: list[EncodedDocument | Document]
    problems: list[str]
    """Of documents that cannot be used."""
    failure: str | None = None
    """Why the file cannot be read any further."""


class RaySource:
    """The same documents and tokens as those of a `TextSource`, in the same order.

    This process must be connected to Ray, whose machines see the files under the same paths.

    Args:
        source: what is read.
        cut: the name of the document that will be cut, which is not encoded before, if there is one.
    """

    def __init__(self, source: TextSource, cut: str | None) -> None:
        self._source, self._cut = source, cut
        self.files, self.size, self.has_chat = source.files, source.size, source.has_chat

    def read(self, on_error: Callable[[str], None] | None) -> Iterator[EncodedDocument | Document]:
        """The documents in order, encoded; they are read and encoded ahead.

        Raises:
            UserError: a file cannot be read, or a document is bad and `on_error` is None.
        """
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        before = itertools.accumulate((file.stat().st_size for file in self.files), initial=0)
        rows = [{"file": str(file), "before": start} for file, start in zip(self.files, before, strict=False)]
        files = ray.data.from_items(rows, override_num_blocks=len(rows))
        encode: Any = functools.partial(_encode_file, source=self._source, cut=self._cut, folder=Path.cwd())
        parts = files.map_batches(encode, batch_size=1, num_cpus=1)
        parts.context.execution_options.preserve_order = True
        parts.context.enable_progress_bars = False
        parts.context.target_max_block_size = BLOCK_BYTES
        for row in _named_failures(parts.iter_rows()):
            part: _Part = pickle.loads(row["part"])  # of our own processes, as all that Ray passes on
            for problem in part.problems:
                if on_error is None:
                    raise UserError(problem)
                on_error(problem)
            if part.failure is not None:
                raise UserError(part.failure)
            yield from part.documents

    def encode(self, documents: Sequence[EncodedDocument | Document]) -> Iterator[Encoded]:
        """The tokens of each, of which nearly all have come with their documents."""
        for document in documents:
            yield from self._source.encode([document]) if isinstance(document, Document) else [document.encoded]


def _named_failures(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The same rows; what goes wrong in Ray itself, such as a process without memory, becomes a UserError."""
    from ray.exceptions import RayError

    try:
        yield from rows
    except RayError as error:
        last = str(error).strip().splitlines()[-1]
        raise UserError(f"Ray has failed ({last}): look into its logs, or prepare the data without --ray") from error


def _encode_file(
    batch: dict[str, Any], source: TextSource, cut: str | None, folder: Path
) -> Iterator[dict[str, list[bytes]]]:
    """Read and encode a file, in a process of Ray's.

    Args:
        batch: one file, and the bytes of those before.
        source: all files.
        cut: as in `RaySource`.
        folder: where relative paths begin.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for each processor
    os.chdir(folder)
    file, problems = source.only(Path(batch["file"][0])), list[str]()
    before = int(batch["before"][0])
    try:
        for documents in in_batches(file.read(problems.append), lambda document: document.length):
            placed = [dataclasses.replace(each, position=before + each.position) for each in documents]
            encoded = iter(file.encode([each for each in placed if each.name != cut]))
            yield _row(
                _Part([each if each.name == cut else _encoded(each, next(encoded)) for each in placed], problems)
            )
            problems.clear()
    except UserError as error:
        yield _row(_Part([], problems, str(error)))
    else:
        yield _row(_Part([], problems))


def _row(part: _Part) -> dict[str, list[bytes]]:
    return {"part": [pickle.dumps(part)]}


def _encoded(document: Document, encoded: Encoded) -> EncodedDocument:
    return EncodedDocument(
        name=document.name,
        continues=document.continues,
        length=document.length,
        position=document.position,
        encoded=encoded._replace(ids=np.asarray(encoded.ids, np.uint32)),  # smaller on its way than a list
    )
