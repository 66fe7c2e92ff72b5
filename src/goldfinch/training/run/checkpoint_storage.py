"""How `torch.distributed.checkpoint` puts a checkpoint on disk: safetensors and JSON, nothing pickled.

A checkpoint is a folder,

    index.json              every tensor: dtype, shape, which part of it is in which file, with its checksum; sizes of
                            the files; a checksum of this description and of progress.json
    progress.json           how far the run has come
    shard-00000.safetensors tensors of process 0, or its parts of them, under the tensor's name
    shard-00001.safetensors ...

written as `.NAME.tmp` and renamed when each file is on the disk. PyTorch's own writer pickles its index.
"""

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint import (
    LoadPlan,
    LoadPlanner,
    Metadata,
    SavePlan,
    SavePlanner,
    StorageReader,
    StorageWriter,
)
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from goldfinch.checkpoint.safetensors_file import tensor_checksum, write_safetensors
from goldfinch.data.checksums import checksum
from goldfinch.errors import UserError
from goldfinch.files import one_line, swap_directory, sync, write_text
from goldfinch.json_yaml import parse_json

FORMAT, VERSION = "goldfinch-checkpoint", 2
INDEX, PROGRESS = "index.json", "progress.json"
# By their names in safetensors.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}


class CheckpointWriter(StorageWriter):
    """Writes one checkpoint.

    Args:
        folder: the checkpoint; replaced if it exists.
        rank: this process's; names its file.
        progress: content of `progress.json`.
        committed: called in process 0 once the checkpoint is complete.
    """

    def __init__(self, folder: Path, rank: int, progress: dict[str, Any], committed: Callable[[], None]) -> None:
        self._folder = folder
        self._temporary = temporary_folder(folder)
        self._file = f"shard-{rank:05d}.safetensors"
        self._progress = progress
        self._committed = committed

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is left from an earlier checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Create the temporary folder, in process 0, before any process writes."""
        if is_coordinator:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary.mkdir(parents=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Plan: every process writes what it holds."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """The planner has assigned what several processes hold to one of them."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write and sync this process's file."""
        tensors, results = {}, []
        for item in plan.items:
            if item.tensor_data is None:
                raise ValueError(f"{item.index} is not a tensor")
            shape = list(item.tensor_data.chunk.sizes)
            if 0 in shape:
                continue  # fewer rows than processes
            name, offset = item.index.fqn, list(item.tensor_data.chunk.offsets)
            if name in tensors:
                raise ValueError(f"{name} has two parts in one process")
            data = planner.resolve_data(item)
            assert isinstance(data, torch.Tensor)
            tensors[name] = data.detach().cpu()
            tensors[name] = tensors[name].contiguous()
            part = {"file": self._file, "offset": offset, "shape": shape, "checksum": tensor_checksum(tensors[name])}
            results.append(WriteResult(item.index, tensors[name].nbytes, part))
        if tensors:
            write_safetensors(self._temporary / self._file, tensors)
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index of all files and rename the folder: called in process 0, at the end."""
        tensors: dict[str, dict[str, Any]] = {}
        for result in (result for process in results for result in process):
            name = result.index.fqn
            stored = metadata.state_dict_metadata[name]
            assert isinstance(stored, TensorStorageMetadata)
            dtype = str(stored.properties.dtype).removeprefix("torch.")
            entry = tensors.setdefault(name, {"dtype": dtype, "shape": list(stored.size), "parts": []})
            entry["parts"].append(result.storage_data)
        files = {path.name: path.stat().st_size for path in sorted(self._temporary.glob("*.safetensors"))}
        index = {"format": FORMAT, "version": VERSION, "files": files, "tensors": tensors}
        index["checksum"] = _checksum_of(index, self._progress)
        write_text(self._temporary / INDEX, json.dumps(index) + "\n")
        write_text(self._temporary / PROGRESS, json.dumps(self._progress, indent=2) + "\n")
        sync(self._temporary)
        replaced = temporary_folder(self._folder.with_name(f"{self._folder.name}.replaced"))
        # One that exists is damaged: the run resumed from an earlier one.
        swap_directory(self._temporary, self._folder, replaced)
        shutil.rmtree(replaced, ignore_errors=True)
        self._committed()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Never selected automatically."""
        return False


class CheckpointReader(StorageReader):
    """Reads the parts that this process needs, whichever process wrote them.

    Args:
        folder: the checkpoint.
        index: its index, checked.
    """

    def __init__(self, folder: Path, index: "Index") -> None:
        self._folder = folder
        self._index = index

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is left from an earlier checkpoint."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What is stored, for the planner."""
        return Metadata(
            state_dict_metadata={
                name: TensorStorageMetadata(
                    properties=TensorProperties(dtype=tensor.dtype),
                    size=torch.Size(tensor.shape),
                    chunks=[ChunkStorageMetadata(torch.Size(p.offset), torch.Size(p.shape)) for p in tensor.parts],
                )
                for name, tensor in self._index.tensors.items()
            }
        )

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Keep where each part is."""
        self._files = {
            MetadataIndex(name, part.offset): part.file
            for name, tensor in self._index.tensors.items()
            for part in tensor.parts
        }

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Plan: every process reads what it needs."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Nobody reads for another."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy slices of the files to where they belong."""
        items = sorted(plan.items, key=lambda item: self._files[item.storage_index])
        for file, wanted in itertools.groupby(items, key=lambda item: self._files[item.storage_index]):
            with safe_open(self._folder / file, "pt") as content:
                for item in wanted:
                    name = item.storage_index.fqn
                    area = tuple(slice(o, o + n) for o, n in zip(item.storage_offsets, item.lengths, strict=True))
                    stored = content.get_slice(name)[area] if area else content.get_tensor(name)
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(stored)
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Never selected automatically."""
        return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Some rows of a tensor, in a file under the tensor's name."""

    file: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    checksum: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor, cut along its first dimension."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: tuple[Part, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index:
    """What a checkpoint holds."""

    tensors: dict[str, StoredTensor]
    progress: dict[str, Any]


class Damaged(Exception):
    """A checkpoint is incomplete or corrupt; the message is the reason."""


def temporary_folder(folder: Path) -> Path:
    """Where `folder` is written before it is complete."""
    return folder.with_name(f".{folder.name}.tmp")


def read_index(folder: Path) -> Index:
    """Read and check the index of a checkpoint: every file must be there, complete, and hold what it should.

    Raises:
        Damaged: it is incomplete or corrupt.
        UserError: a newer version wrote it.
    """
    try:
        content = parse_json((folder / INDEX).read_text(encoding="utf-8"))
        progress = parse_json((folder / PROGRESS).read_text(encoding="utf-8"))
        if content["format"] != FORMAT or not isinstance(progress, dict):
            raise Damaged(f"{INDEX} or {PROGRESS} has another format")
        if content["version"] != VERSION:
            raise UserError(
                f"{folder} has version {content['version']}, this program reads {VERSION}: resume with the version of "
                "goldfinch that wrote it"
            )
        if content.pop("checksum") != _checksum_of(content, progress):
            raise Damaged(f"the checksum of {INDEX} and {PROGRESS} does not match")
        tensors = {name: _stored_tensor(**entry) for name, entry in content["tensors"].items()}
        headers = {file: _read_header(folder, file, size) for file, size in content["files"].items()}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(one_line(error)) from error
    for name, tensor in tensors.items():
        for part in tensor.parts:
            if headers.get(part.file, {}).get(name) != (tensor.dtype, part.shape):
                raise Damaged(f"{part.file} does not hold {name} as {INDEX} describes it")
        if not _complete(tensor):
            raise Damaged(f"{name} is incomplete")
    return Index(tensors=tensors, progress=progress)


def verify(folder: Path, index: Index) -> None:
    """Read every tensor of a checkpoint and compare its checksum.

    Raises:
        Damaged: one does not match.
    """
    parts = sorted((part.file, name, part.checksum) for name, t in index.tensors.items() for part in t.parts)
    try:
        for file, wanted in itertools.groupby(parts, key=lambda part: part[0]):
            with safe_open(folder / file, "pt") as content:
                for _, name, expected in wanted:
                    if tensor_checksum(content.get_tensor(name)) != expected:
                        raise Damaged(f"{file}: the checksum of {name} does not match")
    except (OSError, SafetensorError) as error:
        raise Damaged(one_line(error)) from error


def _checksum_of(index: dict[str, Any], progress: dict[str, Any]) -> str:
    return checksum(json.dumps([index, progress], sort_keys=True).encode())


def _stored_tensor(dtype: str, shape: list[int], parts: list[dict[str, Any]]) -> StoredTensor:
    boxes = tuple(
        Part(file=p["file"], offset=tuple(p["offset"]), shape=tuple(p["shape"]), checksum=p["checksum"]) for p in parts
    )
    return StoredTensor(dtype=getattr(torch, dtype), shape=tuple(shape), parts=boxes)


def _complete(tensor: StoredTensor) -> bool:
    """Whether the parts are consecutive ranges of rows, from the first row to the last."""
    if not tensor.shape:
        return [part.offset for part in tensor.parts] == [()]
    rows = 0
    for part in sorted(tensor.parts, key=lambda part: part.offset):
        if part.offset != (rows, *(0 for _ in tensor.shape[1:])) or part.shape[1:] != tensor.shape[1:]:
            return False
        rows += part.shape[0]
    return rows == tensor.shape[0]


def _read_header(folder: Path, file: str, size: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Dtype and shape of each tensor in a file of `size` bytes."""
    if Path(file).name != file or (folder / file).stat().st_size != size:
        raise ValueError(f"{file} does not have the {size:,} bytes that were written")
    with safe_open(folder / file, "pt") as content:
        return {
            name: (_DTYPES[content.get_slice(name).get_dtype()], tuple(content.get_slice(name).get_shape()))
            for name in content.keys()  # noqa: SIM118 (not a dictionary)
        }
