"""The .gfc format: one safetensors file with the key cache block by block, the states, and what they depend on.

| tensors | content |
|---|---|
| `ids.00000`, `latents.00000`, `scales.00000`, ... | the key cache, `block_size` tokens each |
| `state.<position>.*` | the state of the layers below GOLD, at the end of the text and at every snapshot |
| `checksums` | CRC-32 of each block |

The metadata holds a description in JSON (`Description`) and a CRC-32 of it and of all tensors but the blocks. What the
GOLD layers and the head compute is not stored, so files stay valid when these are tuned.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from goldfinch.cache.growing_tensor import GrowingTensor
from goldfinch.cache.key_cache import KeyCache, is_plausible
from goldfinch.cache.latents import latent_format
from goldfinch.checkpoint.safetensors_file import write_safetensors
from goldfinch.data.tokenizers import Tokenizer
from goldfinch.devices import dtype_name
from goldfinch.errors import UserError
from goldfinch.files import FileVersion, Replaced
from goldfinch.inference.context_file.description import (
    FORMAT,
    READ_AGAIN,
    VERSION,
    Description,
    Document,
    read_description,
    states_checksum,
)
from goldfinch.inference.context_file.fingerprint import context_hash, prediction_hash, rotates_below_gold
from goldfinch.inference.prefill import LowerState, tail_length
from goldfinch.inference.sequence import TokenSequence
from goldfinch.inference.snapshots import Snapshots
from goldfinch.mixers import TIME_MIXES
from goldfinch.model import Decoder
from goldfinch.pretrained import recorded_name
from goldfinch.state import BlockState

MAX_BYTES_CHECKED_AT_OPEN = 64 << 20  # the checksums of smaller files are all compared when they are opened


def save_context(
    path: Path,
    sequence: TokenSequence,
    documents: Sequence[Document] = (),
    tokenizer: Tokenizer | None = None,
    model_folder: Path | None = None,
    replaced: Replaced = "any",
) -> FileVersion | None:
    """Write a file that `open_context` reads; see `Context.save`, and `write_safetensors` for the rest."""
    current = sequence.current_state()
    if current is None:
        raise UserError(f"the context is empty: read a text before saving it to {path}")
    model, key_cache = sequence.model, sequence.key_cache
    description = Description(
        model=model.config,
        context_hash=context_hash(model),
        dtype=dtype_name(model.dtype),
        model_folder=_recorded(model_folder, path.parent) if model_folder else "",
        tokenizer=tokenizer.hash if tokenizer is not None else "",
        latents=key_cache.format.name if key_cache.format is not None else "",
        num_tokens=len(sequence),
        block_size=key_cache.block_size,
        documents=tuple(documents),
        snapshots=tuple(sequence.snapshots.states),
        pinned=tuple(sequence.snapshots.pinned),
        quantization=sequence.measure_quantization(),
    ).to_json()
    key_cache.verify()  # a block that was never used may be corrupt: it must not get a new, matching checksum
    checksums = [key_cache.checksum(block) for block in range(key_cache.num_blocks)]
    others = {"checksums": torch.tensor(checksums, dtype=torch.int64)}
    for position, state in (sequence.snapshots.states | {len(sequence): current}).items():
        others |= _state_tensors(position, state)
    blocks = {
        _block_name(name, block): column.block(block)
        for name, column in key_cache.columns.items()
        for block in range(key_cache.num_blocks)
    }
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "description": description,
        "checksum": str(states_checksum(description, others)),
    }
    return write_safetensors(path, blocks | others, metadata, replaced)


def open_context(path: Path, sequence: TokenSequence, tokenizer: Tokenizer | None = None) -> list[Document]:
    """Fill an empty sequence from a file and return the named parts of the text; see `LanguageModel.open`."""
    description = read_description(path)
    model = sequence.model
    _check_belongs(path, description, model, tokenizer)
    tensors = {name: tensor.to(model.device) for name, tensor in _read_tensors(path).items()}
    key_cache = _take_key_cache(path, tensors, description, model.device)
    states = {
        position: _take_state(path, tensors, position, model)
        for position in {*description.snapshots, description.num_tokens}
    }
    if tensors:
        raise UserError(f"{path} is corrupt: it has an unknown tensor {min(tensors)}; {READ_AGAIN}")
    if path.stat().st_size <= MAX_BYTES_CHECKED_AT_OPEN:
        key_cache.verify()
    snapshots = Snapshots({position: states[position] for position in description.snapshots}, description.pinned)
    quantization = description.quantization
    if quantization is not None and quantization.prediction_hash != prediction_hash(model):
        quantization = None  # measured on other predictions than this model's
    sequence.restore(key_cache, states[description.num_tokens], snapshots, quantization)
    return list(description.documents)


def _check_belongs(path: Path, description: Description, model: Decoder, tokenizer: Tokenizer | None) -> None:
    """Raise a UserError if the model or the tokenizer is not the file's."""
    ours, theirs = model.config, description.model
    if (theirs.width, theirs.time_mixes) != (ours.width, ours.time_mixes):
        raise UserError(
            f"{path} was written by a model of {theirs.num_layers} layers ({theirs.num_gold_layers} GOLD), width "
            f"{theirs.width}, not one of {ours.num_layers} layers ({ours.num_gold_layers} GOLD), width {ours.width}: "
            "open it with its own model"
        )
    if description.dtype != dtype_name(model.dtype):
        raise UserError(
            f"{path} was written with weights in {description.dtype}, these are in {dtype_name(model.dtype)}: "
            f"load the model with dtype={description.dtype!r} (--dtype {description.dtype})"
        )
    if rotates_below_gold(model) and theirs.rope != ours.rope:
        raise UserError(
            f"{path} was written with {theirs.rope or 'no positions'}, this model has {ours.rope or 'none'}, and the "
            "keys in the file depend on them: load the model with the file's (rope=, --rope)"
        )
    if description.context_hash != context_hash(model):
        raise UserError(
            f"{path} was written by other weights: below the GOLD layers this model differs; open it with its own "
            f"model, or {READ_AGAIN}"
        )
    if tokenizer is not None and description.tokenizer and description.tokenizer != tokenizer.hash:
        raise UserError(f"{path} was written with another tokenizer: its ids mean other text here")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors, memory-mapped: nothing is read before it is used."""
    with safe_open(path, "pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dictionary)


def open_key_cache(path: Path, description: Description) -> KeyCache:
    """The key cache alone, memory-mapped, without the model; the checksum of a block is compared when it is used."""
    return _take_key_cache(path, _read_tensors(path), description, torch.device("cpu"))


def _take_key_cache(path: Path, tensors: dict[str, Tensor], description: Description, device: torch.device) -> KeyCache:
    """Take the key cache out of the file's tensors."""
    config, block_size = description.model, description.block_size
    latents = latent_format(description.latents, config.latent_width) if config.num_gold_layers else None
    key_cache = KeyCache(config, latents, device, block_size)
    starts = range(0, description.num_tokens, block_size)
    sizes = [min(block_size, description.num_tokens - start) for start in starts]
    for name, column in key_cache.columns.items():
        shape = column.rows(0, 0).shape[1:]
        blocks = [
            _take(path, tensors, _block_name(name, block), (size, *shape), column.dtype)
            for block, size in enumerate(sizes)
        ]
        key_cache.columns[name] = GrowingTensor.from_blocks(blocks, block_size)
    checksums = _take(path, tensors, "checksums", (len(sizes),), torch.int64).tolist()
    key_cache.expect_checksums(checksums, str(path))
    return key_cache


def _take(path: Path, tensors: dict[str, Tensor], name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Take a tensor out of the file's, if it has the right shape and dtype."""
    tensor = tensors.pop(name, None)
    if tensor is None or tuple(tensor.shape) != shape or tensor.dtype != dtype:
        found = "missing" if tensor is None else f"{tuple(tensor.shape)} {tensor.dtype}"
        raise UserError(f"{path} is corrupt: {name} is {found}, not {shape} {dtype}; {READ_AGAIN}")
    if name.startswith("state.") and not is_plausible(tensor):
        raise UserError(f"{path} is corrupt: {name} holds numbers that no model computes; {READ_AGAIN}")
    return tensor


def _state_tensors(position: int, state: LowerState) -> dict[str, Tensor]:
    prefix = f"state.{position}"
    tensors = {f"{prefix}.tail": state.tail}
    for layer, block in enumerate(state.blocks):
        fields = vars(block.time_mix) | {"channel_mix": block.channel_mix}
        tensors |= {f"{prefix}.{layer}.{name}": tensor for name, tensor in fields.items() if tensor is not None}
    return tensors


def _take_state(path: Path, tensors: dict[str, Tensor], position: int, model: Decoder) -> LowerState:
    """Take the state after `position` tokens out of the file's tensors."""
    prefix = f"state.{position}"
    config, dtype = model.config, model.dtype
    wide = torch.promote_types(dtype, torch.float32)
    row = (1, config.width)
    blocks = []
    for layer, kind in enumerate(config.time_mixes[: config.first_gold_layer]):

        def take(name: str, shape: tuple[int, ...], dtype: torch.dtype = dtype, layer: int = layer) -> Tensor:
            return _take(path, tensors, f"{prefix}.{layer}.{name}", shape, dtype)

        state_type, shapes = TIME_MIXES[kind].state(config, position)
        fp32 = getattr(state_type, "FP32_FIELDS", ())
        fields = {
            name: None if shape is None else take(name, (1, *shape), wide if name in fp32 else dtype)
            for name, shape in shapes.items()
        }
        channel_mix = take("channel_mix", row) if config.channel_mix == "rwkv" else None
        blocks.append(BlockState(time_mix=state_type(**fields), channel_mix=channel_mix))
    count = min(position, tail_length(model) + 1)
    tail = _take(path, tensors, f"{prefix}.tail", (1, count, config.width), dtype)
    return LowerState(blocks=blocks, tail=tail)


def _block_name(column: str, block: int) -> str:
    return f"{column}.{block:05}"


def _recorded(folder: Path, start: Path) -> str:
    """As `Description.model_folder` has it: other machines have a pretrained model elsewhere."""
    return recorded_name(folder) or os.path.relpath(folder.resolve(), start.resolve())
