"""What a .gfc file says about itself: its model, its tokenizer, its documents and the sizes of its parts."""

import dataclasses
import json
import os
import unicodedata
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from safetensors import SafetensorError, safe_open
from torch import Tensor

from goldfinch.cache.key_cache import crc32
from goldfinch.config import ModelConfig
from goldfinch.errors import UserError
from goldfinch.file_kinds import hint
from goldfinch.files import read_unchanged
from goldfinch.inference.context_file.quantization import QuantizationReport
from goldfinch.json_yaml import parse_json
from goldfinch.pretrained import pretrained_folder
from goldfinch.pretrained.hub import PREFIX, cached_folder
from goldfinch.settings import from_plain

FORMAT, VERSION = "goldfinch-context", 3
MAX_HEADER_BYTES = 100_000_000  # of the safetensors format
READ_AGAIN = "read the text again"
UNSHOWN = ("Cc", "Cs")  # Unicode categories: control characters and lone surrogates


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """A named part of a text: the tokens start .. stop - 1."""

    name: str
    start: int
    stop: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What a file says about itself."""

    model: ModelConfig
    """The model that read the text."""
    context_hash: str
    """`fingerprint.context_hash` of it."""
    dtype: str
    """Of its weights."""
    model_folder: str = ""
    """Where it was loaded from, relative to the file's folder; the name of a pretrained model or of one on the Hub;
    empty if unknown."""
    tokenizer: str = ""
    """`Tokenizer.hash`; empty if the text was given as ids."""
    latents: str = ""
    """Format of the latents; empty in models without GOLD layers."""
    num_tokens: int
    """Length of the text."""
    block_size: int
    """Tokens of a block."""
    documents: tuple[Document, ...] = ()
    """The named parts of the text."""
    snapshots: tuple[int, ...] = ()
    """Positions of the snapshots."""
    pinned: tuple[int, ...] = ()
    """Those of them that were asked for."""
    quantization: QuantizationReport | None = None
    """What integer latents change, for the weights and positions that `QuantizationReport.prediction_hash` names."""

    def to_json(self) -> str:
        """The inverse of `from_json`."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse and check.

        Raises:
            UserError: a field is missing, unknown or of another type.
            ValueError: a position is outside the text, or the block size is not positive.
        """
        description = from_plain(cls, parse_json(text))
        positions = (description.num_tokens, *description.snapshots)
        if description.num_tokens < 1 or any(not 0 < each <= description.num_tokens for each in positions):
            raise ValueError("positions outside the text")
        if not set(description.pinned) <= set(description.snapshots):
            raise ValueError("a pinned snapshot that is not there")
        end = 0
        for document in description.documents:
            if not end <= document.start < document.stop <= description.num_tokens:
                raise ValueError(f"a document at tokens {document.start} to {document.stop - 1}")
            end = document.stop
            check_document_name(document.name)
        if description.block_size < 1:
            raise ValueError(f"a block size of {description.block_size}")
        return description


def check_document_name(name: str) -> str:
    """The name, if it can be shown and written.

    Raises:
        UserError: it is empty, or has control characters or lone surrogates.
    """
    if not name or any(unicodedata.category(character) in UNSHOWN for character in name):
        raise UserError(f"a document cannot be named {name!r}: use visible characters")
    return name


def read_description(path: Path) -> Description:
    """Read what a file says about itself, and check its small parts; its blocks are not read.

    Raises:
        UserError: the file is missing, corrupt, of another version, or not a context file.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise UserError(f"{path} is not a .gfc context file{hint(path)}")
    return read_unchanged(path, lambda: _read_description(path))


def _read_description(path: Path) -> Description:
    try:
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if not 0 < header <= min(MAX_HEADER_BYTES, path.stat().st_size - 8):
            other = hint(path)
            raise UserError(
                f"{path} is not a .gfc context file{other}" if other else f"{path} is truncated; {READ_AGAIN}"
            )
        with safe_open(path, "pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise UserError(f"{path} is not a .gfc context file{hint(path)}")
            if metadata.get("version") != str(VERSION):
                raise UserError(
                    f"{path} has format version {metadata.get('version')}, this program reads version {VERSION}: "
                    f"{READ_AGAIN}, or use the goldfinch version that wrote it"
                )
            blocks = {"ids", "latents", "scales"}
            others = {
                name: stored.get_tensor(name)
                for name in stored.keys()  # noqa: SIM118 (not a dictionary)
                if name.partition(".")[0] not in blocks
            }
        text = metadata.get("description", "")
        if str(states_checksum(text, others)) != metadata.get("checksum"):
            raise UserError(f"{path} is corrupt: the checksum of its states does not match; {READ_AGAIN}")
        try:
            description = Description.from_json(text)
        except UserError as error:
            raise UserError(f"{path} is corrupt: {error}; {READ_AGAIN}") from error
        if description.num_tokens > path.stat().st_size:
            raise UserError(f"{path} is corrupt: it is too small for {description.num_tokens:,} tokens; {READ_AGAIN}")
        return description
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a .gfc context file, or it is corrupt ({error}); {READ_AGAIN}") from error


def model_folder(path: Path, description: Description) -> Path | None:
    """The folder of the file's model when it was written; None if unknown."""
    if not description.model_folder:
        return None
    if description.model_folder.startswith(PREFIX):
        return cached_folder(description.model_folder) or Path(description.model_folder)
    folder = Path(os.path.normpath(path.parent / description.model_folder))
    return folder if folder.exists() else pretrained_folder(description.model_folder) or folder


def states_checksum(description: str, tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of the description and of these tensors, names included."""
    value = zlib.crc32(description.encode())
    for name, tensor in sorted(tensors.items()):
        value = crc32(tensor, zlib.crc32(name.encode(), value))
    return value
