"""Contexts as files: one safetensors file with the key memory block by block, the states, and what they belong to.

| tensors | what |
|---|---|
| `ids.00000`, `latents.00000`, `scales.00000`, ... | the key memory, 4,096 tokens each |
| `state.<position>.*` | what the layers below GOLD carry on, at the end of the text and at every snapshot |
| `checksums` | CRC-32 of each block |

The metadata holds a description in JSON (`Description`) and a CRC-32 of it and of all tensors but the blocks. What GOLD
layers and head make of the text is not stored: it is worked out anew, so that tuning them leaves files valid.
"""

import dataclasses
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from goldfinch.cache.growing_tensor import GrowingTensor
from goldfinch.cache.key_cache import KeyCache, crc32
from goldfinch.cache.latents import latent_format
from goldfinch.checkpoint.model_folder import write_safetensors
from goldfinch.config import ModelConfig
from goldfinch.data.tokenizers import Tokenizer
from goldfinch.errors import UserError
from goldfinch.inference.context_file.fingerprint import context_hash, prediction_hash, turns_below_gold
from goldfinch.inference.context_file.quantization import QuantizationReport
from goldfinch.inference.prefill import LowerState, tail_length
from goldfinch.inference.sequence import TokenSequence
from goldfinch.model import Decoder
from goldfinch.settings import from_plain
from goldfinch.state import AttentionState, BlockState, RecurrentState

FORMAT, VERSION = "goldfinch-context", 2
CHECKED_AT_ONCE = 64 << 20  # bytes: the checksums of smaller files are compared when they are opened
HEADER_LIMIT = 100_000_000  # bytes, that of the safetensors format


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
    weights: str
    """`context_hash` of it."""
    dtype: str
    """Of its weights."""
    model_folder: str = ""
    """Where it was loaded from, relative to the file's folder; empty if that is not known."""
    tokenizer: str = ""
    """`Tokenizer.hash`; empty where the texts were ids."""
    latents: str = ""
    """Format of the latents; empty in models without GOLD layers."""
    tokens: int
    """Length of the text."""
    documents: tuple[Document, ...] = ()
    """Its named parts."""
    snapshots: tuple[int, ...] = ()
    """Positions of the snapshots."""
    chosen: tuple[int, ...] = ()
    """Those of them that were asked for."""
    quantization: QuantizationReport | None = None
    """What integer latents change, as long as nothing above them does."""

    def to_json(self) -> str:
        """The inverse of `from_json`."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse and check; a UserError says what is wrong."""
        description = from_plain(cls, json.loads(text))
        counts = (description.tokens, *description.snapshots)
        if description.tokens < 1 or any(not 0 < count <= description.tokens for count in counts):
            raise ValueError("positions outside the text")
        return description


def save_context(
    path: Path,
    sequence: TokenSequence,
    documents: Sequence[Document] = (),
    tokenizer: Tokenizer | None = None,
    model_folder: Path | None = None,
) -> None:
    """Write a file that `open_context` reads; see `Context.save`."""
    if sequence.state is None:
        raise UserError(f"the context is empty: read a text before saving it to {path}")
    model, memory = sequence.model, sequence.key_cache
    sequence.measure_quantization()
    description = Description(
        model=model.config,
        weights=context_hash(model),
        dtype=_dtype_name(model),
        model_folder=_relative(model_folder, path.parent) if model_folder else "",
        tokenizer=tokenizer.hash if tokenizer is not None else "",
        latents=memory.format.name if memory.format is not None else "",
        tokens=len(sequence),
        documents=tuple(documents),
        snapshots=tuple(sequence.snapshots),
        chosen=tuple(sequence.chosen),
        quantization=sequence.quantization,
    ).to_json()
    memory.verify()  # what was never used may be damaged: it must not get a new, matching checksum
    checksums = [memory.checksum(block) for block in range(memory.blocks())]
    others = {"checksums": torch.tensor(checksums, dtype=torch.int64)}
    for position, state in (sequence.snapshots | {len(sequence): sequence.state}).items():
        others |= _state_tensors(position, state)
    blocks = {
        _block_name(name, block): column.block(block)
        for name, column in memory.columns.items()
        for block in range(memory.blocks())
    }
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "description": description,
        "checksum": str(_checksum(description, others)),
    }
    write_safetensors(path, blocks | others, metadata)


def open_context(path: Path, sequence: TokenSequence, tokenizer: Tokenizer | None = None) -> list[Document]:
    """Fill an empty sequence from a file and return the named parts of the text; see `LanguageModel.open`."""
    description = read_description(path)
    model = sequence.model
    _check_belongs(path, description, model, tokenizer)
    device = model.device
    tensors = {name: tensor.to(device) for name, tensor in _read_tensors(path).items()}
    memory = _take_memory(path, tensors, description, device)
    states = {
        position: _take_state(path, tensors, position, model)
        for position in {*description.snapshots, description.tokens}
    }
    if tensors:
        raise UserError(f"{path} is damaged: {min(tensors)} does not belong there; read the text again")
    if path.stat().st_size <= CHECKED_AT_ONCE:
        memory.verify()
    snapshots = {position: states[position] for position in description.snapshots}
    certificate = description.quantization
    if certificate is not None and certificate.weights not in ("", prediction_hash(model)):
        certificate = None  # measured on other predictions than this model's
    sequence.resume(memory, states[description.tokens], snapshots, set(description.chosen), certificate)
    return list(description.documents)


def read_description(path: Path) -> Description:
    """What a file says about itself; its small parts are checked, its blocks are not read.

    Raises:
        UserError: the file is missing, damaged, of a newer version, or no context.
    """
    again = "read the text again"
    try:
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if not 0 < header <= min(HEADER_LIMIT, path.stat().st_size - 8):
            raise UserError(f"{path} is no whole context file: its header cannot be {header:,} bytes long; {again}")
        with safe_open(path, "pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise UserError(f"{path} is no context file; `goldfinch read FILES -m MODEL -o {path}` writes one")
            if not metadata.get("version", "").isdecimal() or int(metadata["version"]) > VERSION:
                raise UserError(
                    f"{path} has version {metadata.get('version')}, this program reads {VERSION}: update goldfinch"
                )
            blocks = {_block_name(column, 0).partition(".")[0] for column in ("ids", "latents", "scales")}
            others = {
                name: stored.get_tensor(name)
                for name in stored.keys()  # noqa: SIM118 (not a dictionary)
                if name.partition(".")[0] not in blocks
            }
        text = metadata.get("description", "")
        if str(_checksum(text, others)) != metadata.get("checksum"):
            raise UserError(f"{path} is damaged: the checksum of its states does not match; {again}")
        description = Description.from_json(text)
        if description.tokens > path.stat().st_size:
            raise UserError(f"{path} is damaged: it is too small for {description.tokens:,} tokens; {again}")
        return description
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no whole context file: {error}; {again}") from error


def _check_belongs(path: Path, description: Description, model: Decoder, tokenizer: Tokenizer | None) -> None:
    """Raise a UserError where the model or the tokenizer is not the file's."""
    ours, theirs = model.config, description.model
    if (theirs.width, theirs.time_mixes) != (ours.width, ours.time_mixes):
        raise UserError(
            f"{path} was written by a model of {theirs.num_layers} layers ({theirs.num_gold_layers} GOLD), width "
            f"{theirs.width}, not one of {ours.num_layers} layers ({ours.num_gold_layers} GOLD), width {ours.width}: "
            "open it with its own"
        )
    if description.dtype != _dtype_name(model):
        raise UserError(
            f"{path} was written with weights in {description.dtype}, these are in {_dtype_name(model)}: "
            f"load the model with dtype={description.dtype!r} (--dtype {description.dtype})"
        )
    if turns_below_gold(model) and theirs.rope != ours.rope:
        raise UserError(
            f"{path} was written with {theirs.rope or 'no positions'}, this model has {ours.rope or 'none'}, and they "
            "are in the keys that the file keeps: load the model with the file's (rope=, --rope)"
        )
    if description.weights != context_hash(model):
        raise UserError(
            f"{path} was written by other weights: below the GOLD layers this model differs; open it with its own "
            "model, or read the text again"
        )
    if tokenizer is not None and description.tokenizer and description.tokenizer != tokenizer.hash:
        raise UserError(f"{path} was written with another tokenizer: its ids mean other text here")


def model_folder(path: Path, description: Description) -> Path | None:
    """Where the file's model was when it was written; None if that is not known."""
    if not description.model_folder:
        return None
    return Path(os.path.normpath(path.parent / description.model_folder))


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors, memory-mapped: nothing is read before it is used."""
    with safe_open(path, "pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dictionary)


def open_memory(path: Path, description: Description) -> KeyCache:
    """The key memory alone, memory-mapped, without the model; each block's checksum is compared at its first use."""
    return _take_memory(path, _read_tensors(path), description, torch.device("cpu"))


def _take_memory(path: Path, tensors: dict[str, Tensor], description: Description, device: torch.device) -> KeyCache:
    """The key memory, out of the file's tensors."""
    config = description.model
    latents = latent_format(description.latents, config.latent_width) if config.num_gold_layers else None
    memory = KeyCache(config, latents, device)
    starts = range(0, description.tokens, GrowingTensor.BLOCK)
    sizes = [min(GrowingTensor.BLOCK, description.tokens - start) for start in starts]
    for name, column in memory.columns.items():
        shape = column.rows(0, 0).shape[1:]
        blocks = [
            _take(path, tensors, _block_name(name, block), (size, *shape), column.dtype)
            for block, size in enumerate(sizes)
        ]
        memory.columns[name] = GrowingTensor.of(blocks)
    memory.expect(_take(path, tensors, "checksums", (len(sizes),), torch.int64).tolist(), str(path))
    return memory


def _take(path: Path, tensors: dict[str, Tensor], name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Take a tensor out of the file's, if it is what it must be."""
    tensor = tensors.pop(name, None)
    if tensor is None or tuple(tensor.shape) != shape or tensor.dtype != dtype:
        found = "missing" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"
        raise UserError(f"{path} is damaged: {name} is {found}, not {shape} {dtype}; read the text again")
    return tensor


def _state_tensors(position: int, state: LowerState) -> dict[str, Tensor]:
    prefix = f"state.{position}"
    tensors = {f"{prefix}.recent": state.recent}
    for layer, block in enumerate(state.blocks):
        fields = vars(block.time_mix) | {"channel_mix": block.channel_mix}
        tensors |= {f"{prefix}.{layer}.{name}": tensor for name, tensor in fields.items() if tensor is not None}
    return tensors


def _take_state(path: Path, tensors: dict[str, Tensor], position: int, model: Decoder) -> LowerState:
    """The state after so many tokens, out of the file's tensors."""
    prefix = f"state.{position}"
    config, dtype = model.config, model.dtype
    wide = torch.promote_types(dtype, torch.float32)
    last = (1, config.width)
    blocks = []
    for layer, kind in enumerate(config.time_mixes[: config.first_gold_layer]):

        def take(name: str, shape: tuple[int, ...], dtype: torch.dtype = dtype, layer: int = layer) -> Tensor:
            return _take(path, tensors, f"{prefix}.{layer}.{name}", shape, dtype)

        time_mix: RecurrentState | AttentionState
        if kind in ("gptalpha", "llama"):
            shape = (1, config.num_heads, position, config.head_size)
            time_mix = AttentionState(
                last=take("last", last) if kind == "gptalpha" else None,
                keys=take("keys", shape),
                values=take("values", shape),
            )
        else:
            shape = (1, config.num_heads, config.head_size, config.head_size)
            time_mix = RecurrentState(last=take("last", last), wkv=take("wkv", shape, wide))
        channel_mix = take("channel_mix", last) if config.channel_mix == "rwkv" else None
        blocks.append(BlockState(time_mix=time_mix, channel_mix=channel_mix))
    count = min(position, tail_length(model) + 1)
    recent = _take(path, tensors, f"{prefix}.recent", (1, count, config.width), dtype)
    return LowerState(blocks=blocks, recent=recent)


def _block_name(column: str, block: int) -> str:
    return f"{column}.{block:05}"


def _checksum(description: str, tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of the description and of these tensors, names included."""
    value = zlib.crc32(description.encode())
    for name, tensor in sorted(tensors.items()):
        value = crc32(tensor, zlib.crc32(name.encode(), value))
    return value


def _dtype_name(model: Decoder) -> str:
    return str(model.dtype).removeprefix("torch.")


def _relative(folder: Path, start: Path) -> str:
    return os.path.relpath(folder.resolve(), start.resolve())
