"""The training data of a run: one data directory, or several mixed by weight."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from goldfinch.data.batches import Batches, ShuffledWindows, Windows
from goldfinch.data.chat_template import ChatTemplate
from goldfinch.data.mixture import Mixture, Source, parse_sources
from goldfinch.data.shards import TOKENIZER, Index, TokenDataset, load_data_tokenizer
from goldfinch.data.stream import Stream
from goldfinch.data.stream_windows import StreamWindows
from goldfinch.data.tokenizers import Tokenizer
from goldfinch.errors import UserError


@dataclass(frozen=True)
class TrainingData:
    """The opened data sources of a run.

    Attributes:
        sources: folders and weights.
        indices: the content of their index.json files.
        train: the training tokens of each source, or the stream to read them from.
        validation: validation tokens by name of the source, of sources that have some.
        tokenizer: the same for all sources.
        chat_template: of the first source that has conversations, if any.
    """

    sources: list[Source]
    indices: list[Index]
    train: list[TokenDataset | Stream]
    validation: dict[str, TokenDataset]
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None

    @classmethod
    def open(cls, texts: Sequence[str]) -> Self:
        """Open data directories: "FOLDER" each, or "FOLDER=WEIGHT" each.

        Raises:
            UserError: a folder is not a data directory, or has another tokenizer than the others; see `parse_sources`.
        """
        sources = parse_sources(texts)
        indices = [Index.load(Path(source.folder)) for source in sources]
        for source, index in zip(sources, indices, strict=True):
            if (index.tokenizer_hash, index.vocab_size) != (indices[0].tokenizer_hash, indices[0].vocab_size):
                raise UserError(
                    f"{source.folder} has another tokenizer ({index.tokenizer}, {index.vocab_size:,} ids) than "
                    f"{sources[0].folder} ({indices[0].tokenizer}, {indices[0].vocab_size:,} ids): prepare one again "
                    f"with --tokenizer and the tokenizer.json of the other"
                )
        folders = {name: Path(source.folder) for name, source in zip(_names(sources), sources, strict=True)}
        validation = {
            name: TokenDataset(folder, "validation", index)
            for (name, folder), index in zip(folders.items(), indices, strict=True)
            if index.validation
        }
        if not validation:
            raise UserError(f"{sources[0].folder} has no validation tokens; prepare the data again")
        train = [
            index.stream or TokenDataset(folder, "train", index)
            for folder, index in zip(folders.values(), indices, strict=True)
        ]
        tokenizer = load_data_tokenizer(Path(sources[0].folder), indices[0])
        templates = filter(None, map(ChatTemplate.load, folders.values()))
        return cls(sources, indices, train, validation, tokenizer, next(templates, None))

    def fingerprint(self) -> list[dict[str, str]]:
        """What tells this data from other data, for each source: checksums of its tokenizer and of its tokens."""
        return [{"tokenizer": index.tokenizer_hash, "tokens": index.checksum()} for index in self.indices]

    def batches(
        self,
        sequence_length: int,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
    ) -> Batches:
        """The training batches of windows of `sequence_length` + 1 tokens, mixed by weight or by number of windows.

        Args:
            sequence_length: targets per window.
            batch_size: windows per step, over all processes.
            seed: random seed of the order.
            rank, world_size: this process and the number of processes.
            num_workers: processes that tokenise each stream ahead.

        Raises:
            UserError: a source is shorter than one window, or a stream is mixed without a weight.
        """
        windows: list[Windows] = []
        for number, (source, train) in enumerate(zip(self.sources, self.train, strict=True)):
            if isinstance(train, Stream):
                tokenizer = Path(source.folder) / TOKENIZER
                windows.append(StreamWindows(train, tokenizer, sequence_length, seed, number, num_workers))
            else:
                windows.append(ShuffledWindows(train, sequence_length, seed, number))
        alone = len(windows) == 1
        weights = [
            source.weight or each.num_windows or alone for source, each in zip(self.sources, windows, strict=True)
        ]
        if not all(weights):
            stream = self.sources[weights.index(False)].folder
            raise UserError(f"the stream {stream} has no known length: give each source a weight, FOLDER=WEIGHT")
        return Batches(windows, Mixture(weights), batch_size, rank=rank, world_size=world_size)


def _names(sources: list[Source]) -> list[str]:
    """The last component of each folder; the whole path if two are the same."""
    short = [Path(source.folder).name for source in sources]
    return short if len(set(short)) == len(short) else [source.folder for source in sources]
