"""Safetensors files of ours: written atomically, equal for equal tensors, and with checksums where these are wanted."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from goldfinch.data.checksums import checksum
from goldfinch.errors import UserError
from goldfinch.files import FileVersion, Replaced, atomic_file
from goldfinch.json_yaml import parse_json

CHECKSUMS = "checksums"  # in the metadata: XXH3 of each tensor, as JSON


def write_safetensors(
    path: Path,
    tensors: dict[str, Tensor],
    metadata: dict[str, str] | None = None,
    replaced: Replaced = "any",
) -> FileVersion | None:
    """Write one safetensors file atomically; `replaced` as in `atomic_file`. Returns the version that was written.

    Raises:
        UserError: it cannot be written, for example because the disk is full; then `path` is unchanged.
    """
    try:
        with atomic_file(path, replaced) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)
            if metadata:
                _sort_metadata(temporary)
            return FileVersion.of(temporary)  # renaming changes none of it, and others may write right after
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {error}; the existing file is unchanged") from error


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order, in place: the library writes it in a random one.

    Equal models are equal files then.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(content) <= length:  # always, unless the library changes how it writes JSON
            file.seek(8)
            file.write(content.ljust(length))


def tensor_checksum(tensor: Tensor) -> str:
    """XXH3 of a tensor's bytes, 64 bits in hex."""
    return checksum(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def checksums_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Metadata for `write_safetensors` by which `check_checksums` finds what has changed."""
    return {CHECKSUMS: json.dumps({name: tensor_checksum(tensors[name]) for name in sorted(tensors)})}


def check_checksums(path: Path, weights: dict[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Compare weights with the checksums in their file. Files of other programs have none, and are believed.

    Raises:
        UserError: a tensor is not what was written.
    """
    if CHECKSUMS not in metadata:
        return
    try:
        checksums = dict(parse_json(metadata[CHECKSUMS]))
    except (ValueError, TypeError):
        checksums = {}
    for name, tensor in weights.items():
        if checksums.get(name) != tensor_checksum(tensor):
            raise UserError(f"{path} is corrupt: the checksum of {name} does not match; copy or write the file again")
