"""Streaming the documents of a Hugging Face dataset, resumable at any position.

The only module that imports the package `datasets` (extra `datasets`).
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goldfinch.errors import UserError

if TYPE_CHECKING:
    from datasets import IterableDataset

# Formats whose readers run no code of the dataset and unpickle nothing.
FORMATS = ("parquet", "json", "arrow", "csv", "text")

Position = dict[str, Any]
"""Position of a reader: plain JSON types."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A dataset to read while training, as `goldfinch data stream` writes it into index.json.

    Attributes:
        dataset: a name on the Hub, or the absolute path of a folder or file.
        config: configuration of the dataset; "" for the only or default one.
        split: split of the dataset.
        revision: commit, tag or branch of a dataset on the Hub; "" for the newest.
        text_field: column with the text.
        skip: rows at its start that are the validation split.
        shuffle_windows: size of the shuffle buffer in windows; see `StreamWindows`.
    """

    dataset: str
    config: str = ""
    split: str = "train"
    revision: str = ""
    text_field: str = "text"
    skip: int = 0
    shuffle_windows: int = 2048

    def __post_init__(self) -> None:
        if self.shuffle_windows < 1:
            raise UserError(f"shuffle_windows must be above 0, not {self.shuffle_windows}")


class StreamReader:
    """Iterates endlessly over the documents of a stream. Rows without text are skipped.

    Attributes:
        rows: number of rows read in this epoch, with those without text.
        epoch: number of complete passes.

    Args:
        stream: what to read.
        position: where to continue, from `position()`; None for the start.

    Raises:
        UserError: it cannot be opened or read, has no such column, or no text.
    """

    def __init__(self, stream: Stream, position: Position | None = None) -> None:
        self._stream = stream
        self._open(position or {"epoch": 0, "rows": 0, "documents": 0, "state": None})

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while True:
            try:
                row = next(self._rows, None)
            except Exception as error:  # whatever the network, the file system or the format's reader raises
                raise self._unreadable(error) from error
            if row is None:
                if not self._documents:
                    raise UserError(f"{self._stream.dataset} has no text after its first {self._stream.skip:,} rows")
                self._open({"epoch": self.epoch + 1, "rows": 0, "documents": 0, "state": None})
                continue
            self.rows += 1
            if text := self._text(row):
                self._documents += 1
                return text

    def position(self) -> Position:
        """The position of the next document: plain JSON types."""
        state = self._dataset.state_dict()
        return {"epoch": self.epoch, "rows": self.rows, "documents": self._documents, "state": state}

    def _open(self, position: Position) -> None:
        stream = self._stream
        self.epoch, self.rows, self._documents = (position[name] for name in ("epoch", "rows", "documents"))
        try:
            dataset = _open(stream)
        except UserError:
            raise
        except (
            Exception
        ) as error:  # `datasets` raises all kinds for a wrong name, split, file or a network that is down
            raise self._unreadable(error) from error
        columns = dataset.column_names
        if columns is not None and stream.text_field not in columns:
            raise UserError(
                f"{stream.dataset} has no column {stream.text_field!r} but {', '.join(columns)}; give --text-field"
            )
        self._dataset = dataset.select_columns([stream.text_field]).skip(stream.skip)
        if position["state"] is not None:
            self._dataset.load_state_dict(position["state"])
        self._rows = iter(self._dataset)

    def _text(self, row: dict[str, Any]) -> str:
        text = row[self._stream.text_field]
        if text is not None and not isinstance(text, str):
            raise UserError(
                f"{self._stream.dataset}, row {self.rows:,}: {self._stream.text_field!r} is not text but "
                f"{type(text).__name__}; give --text-field"
            )
        return text or ""

    def _unreadable(self, error: Exception) -> UserError:
        reason = " ".join(str(error).split()) or type(error).__name__
        return UserError(f"the dataset {self._stream.dataset} cannot be read: {reason}")


def _open(stream: Stream) -> "IterableDataset":
    try:
        import datasets
    except ImportError as error:
        raise UserError("streaming needs the package datasets: pip install 'goldfinch[datasets]'") from error
    path = Path(stream.dataset)
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():  # what Dataset.save_to_disk writes
        saved = datasets.load_from_disk(path)
        if isinstance(saved, datasets.DatasetDict):
            saved = saved[stream.split]
        return saved.to_iterable_dataset()
    # Names on the Hub are NAME or OWNER/NAME.
    if not path.exists() and (stream.dataset.startswith((".", "/", "~")) or len(path.parts) > 2):
        raise UserError(f"{stream.dataset} does not exist; give a folder, a file or a name on the Hub")
    # A file by its folder: `datasets` would otherwise ask the Hub about the format.
    file = path.is_file()
    builder = datasets.load_dataset_builder(
        str(path.parent if file else path) if path.exists() else stream.dataset,
        stream.config or None,
        data_files=[path.name] if file else None,
        revision=stream.revision or None,
    )
    if builder.name not in FORMATS:
        raise UserError(f"{stream.dataset} is of the format {builder.name}; {', '.join(FORMATS)} can be streamed")
    dataset = builder.as_streaming_dataset(split=stream.split)
    assert isinstance(dataset, datasets.IterableDataset)
    return dataset


def first_documents(stream: Stream, count: int) -> tuple[list[str], int]:
    """The first `count` documents, and the number of rows that they take.

    Raises:
        UserError: there are no more documents after them; see `StreamReader`.
    """
    reader = StreamReader(stream)
    texts = list(itertools.islice(reader, count))
    rows = reader.rows
    next(reader)
    if reader.epoch:
        raise UserError(
            f"{stream.dataset} has only {count:,} documents or fewer, all for validation: "
            "give a smaller --validation-documents, or use `goldfinch data prepare`"
        )
    return texts, rows
