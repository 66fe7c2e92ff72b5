"""Export a data directory as an indexed dataset."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from goldfinch.data.indexed_dataset import BLOCK, write_indexed
from goldfinch.data.shards import SPLITS, TokenDataset
from goldfinch.errors import UserError


def export_indexed(directory: Path, prefix: str, *, overwrite: bool = False) -> dict[Path, TokenDataset]:
    """Write PREFIX-train.idx and PREFIX-validation.idx, each with its .bin (see `indexed_dataset`).

    Documents keep their order and end with the end of text. Prepared again, a pair gives the same documents.

    Args:
        directory: a data directory.
        prefix: how the names of the files begin, with their folder.
        overwrite: replace files that exist.

    Returns:
        What was written, by .idx file.

    Raises:
        UserError: the data is damaged, or a file exists.
    """
    datasets = {Path(f"{prefix}-{split}.idx"): TokenDataset.open(directory, split) for split in SPLITS}
    for path in datasets:
        for file in (path, path.with_suffix(".bin")):
            if file.exists() and not overwrite:
                raise UserError(f"{file} exists; choose another prefix or give --overwrite")
    for path, dataset in datasets.items():
        write_indexed(path, _documents(dataset), dataset.vocab_size)
    return datasets


def _documents(dataset: TokenDataset) -> Iterator[Iterator[np.ndarray]]:
    starts = dataset.document_starts.tolist()
    for start, end in zip(starts, [*starts[1:], len(dataset)], strict=True):
        yield (dataset.tokens(at, min(BLOCK, end - at)) for at in range(start, end, BLOCK))
