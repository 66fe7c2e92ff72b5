"""Converting checkpoints: a published `.pth` to our folder, and back (SPEC 9)."""

import dataclasses
import itertools
import pickle
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from goldfinch.checkpoint.companions import CompanionPaths, Companions, read_companions, write_companions
from goldfinch.checkpoint.model_folder import (
    check_model_output,
    check_tokenizer,
    read_config,
    read_tokenizer,
    read_weights,
    save_model_folder,
    writing,
)
from goldfinch.checkpoint.reference import from_reference, to_reference
from goldfinch.checkpoint.reference_config import infer_finch_config
from goldfinch.config import ModelConfig
from goldfinch.data.chat_template import ChatTemplate
from goldfinch.data.tokenizers import Tokenizer, WorldTokenizer
from goldfinch.errors import UserError
from goldfinch.file_kinds import hint
from goldfinch.files import atomic_file, one_line
from goldfinch.model import Decoder
from goldfinch.presets import WORLD_VOCABULARY


@dataclasses.dataclass(frozen=True, kw_only=True)
class Converted:
    """The result of a conversion."""

    config: ModelConfig
    parameters: int
    """Number of parameters, without those that the reference stores and never uses."""
    dtypes: tuple[str, ...]
    """Such as ("bfloat16",); several only if the source mixes them."""
    tokenizer: str | None
    """Name of the tokenizer that the folder has."""

    @property
    def plan(self) -> str:
        """The layers from bottom to top, such as "8 finch_c2, then 4 gold"."""
        return ", then ".join(f"{len(list(run))} {kind}" for kind, run in itertools.groupby(self.config.time_mixes))


def import_reference(
    pth: Path, config: ModelConfig | None, output: Path, tokenizer: Tokenizer | None, *, overwrite: bool = False
) -> Converted:
    """Convert a published checkpoint to our folder format, with the same numbers and dtypes.

    Args:
        pth: a flat dict of tensors with the published names.
        config: of the model; None for the one next to the `.pth` (`companions`), else that of a pure Finch (RWKV-6
            World) model, inferred from its shapes.
        output: the folder to write, atomically.
        tokenizer: to store with it; None for the one next to the `.pth`, else the RWKV World tokenizer if the
            vocabulary has its size. A chat template next to the `.pth` is stored, too.
        overwrite: replace `output` if it is a model folder and holds nothing else.

    Raises:
        UserError: `pth` is not such a file or does not fit `config`, the tokenizer has more ids than the model, or
            `output` exists or cannot be written.
    """
    check_model_output(output, overwrite)
    found = read_companions(pth)
    config, weights = read_reference(pth, config or found.config)
    tokenizer = tokenizer or found.tokenizer or usual_tokenizer(config)
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the {tokenizer.name} tokenizer has {tokenizer.vocab_size} ids, the model of {pth} only "
            f"{config.vocab_size}: give its own with --tokenizer"
        )
    save_model_folder(output, config, weights, tokenizer, found.chat_template, overwrite=overwrite)
    return describe(config, weights, tokenizer)


def export_reference(folder: Path, output: Path, *, overwrite: bool = False) -> Converted:
    """Convert our folder to a published checkpoint, the inverse of `import_reference`, with its `companions`.

    Args:
        folder: written by `goldfinch train` or `goldfinch convert`.
        output: the `.pth` file to write, atomically.
        overwrite: replace `output`, and what lies next to it, if it exists.

    Raises:
        UserError: the folder is missing or corrupt, or `output` exists, is not named .pth or cannot be written.
    """
    if output.suffix != ".pth":
        raise UserError(f"{output} must end in .pth: a folder converts to a published checkpoint")
    for path in (output, *CompanionPaths.of(output)):
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists: choose another name, or give --overwrite")
    config, weights, tokenizer, chat_template = read_model(folder)
    tensors = to_reference(weights, config)
    with writing(output), atomic_file(output) as temporary, temporary.open("wb") as file:
        torch.save(tensors, file)  # given a path, it would store the path: other bytes for the same weights
    with writing(output):
        write_companions(output, Companions(config=config, tokenizer=tokenizer, chat_template=chat_template))
    return describe(config, weights, tokenizer)


class StoredModel(NamedTuple):
    """A model as it is stored, and what goes with it."""

    config: ModelConfig
    weights: dict[str, Tensor]
    """By our names, each in the dtype that it is stored in."""
    tokenizer: Tokenizer | None
    chat_template: ChatTemplate | None


def read_model(source: Path) -> StoredModel:
    """A model folder, or the `.pth` of a pure Finch (RWKV-6 World) model or of one with `companions`.

    Raises:
        UserError: it is neither, or is corrupt.
    """
    if source.is_dir():
        config = read_config(source)
        weights = read_weights(source, Decoder.on_meta(config))
        return StoredModel(config, weights, read_tokenizer(source, config), ChatTemplate.load(source))
    found = read_companions(source)
    config, weights = read_reference(source, found.config)
    if found.tokenizer is not None:
        check_tokenizer(CompanionPaths.of(source).tokenizer, found.tokenizer, config)
    return StoredModel(config, weights, found.tokenizer or usual_tokenizer(config), found.chat_template)


def read_reference(pth: Path, config: ModelConfig | None = None) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The config and weights, by our names, of a published checkpoint; see `import_reference`."""
    tensors = read_tensors(pth)
    try:
        config = config or infer_finch_config(tensors)
        return config, from_reference(tensors, config)
    except UserError as error:
        raise UserError(f"{pth}: {error}") from error


def usual_tokenizer(config: ModelConfig) -> Tokenizer | None:
    """The RWKV World tokenizer if the vocabulary has its size, else None."""
    return WorldTokenizer() if config.vocab_size == WORLD_VOCABULARY else None


def read_tensors(pth: Path) -> dict[str, Tensor]:
    """Memory-map a `.pth` without running any code in it.

    Raises:
        UserError: it is missing, corrupt, or not a flat dict of floating-point tensors.
    """
    try:
        with pth.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise UserError(f"cannot read {pth}: {error.strerror or error}") from error
    if start != b"PK\x03\x04":  # a zip archive, which is what can be mapped
        what = "is not a checkpoint of torch 1.6 or later" if start else "is empty"
        remedy = hint(pth) or ": expected a .pth file from torch.save; download or save it again"
        raise UserError(f"{pth} {what}{remedy}")
    try:
        content = torch.load(pth, weights_only=True, mmap=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"objects of Python ({found[1]})" if found else "objects other than tensors"
        raise UserError(
            f"{pth} holds {what}, which could run arbitrary code, and was not loaded: save only its state dict"
        ) from error
    except Exception as error:  # torch raises many types for a file that is truncated or corrupt
        reason = one_line(error).partition(". ")[0]
        raise UserError(f"{pth} is corrupt or truncated ({reason}): download or save it again") from error
    return _flat_tensors(pth, content)


def _flat_tensors(pth: Path, content: object) -> dict[str, Tensor]:
    expected = "a flat dict of floating-point tensors was expected"
    if not isinstance(content, dict):
        raise UserError(f"{pth} holds {_kind(content)}: {expected}")
    if not content:
        raise UserError(f"{pth} holds an empty dict: {expected}")
    for name, value in content.items():
        if isinstance(value, dict):
            raise UserError(f"{pth} holds a dict under {name!r}: {expected}; save that inner dict alone")
        if not isinstance(name, str) or not isinstance(value, Tensor) or not _is_plain(value):
            raise UserError(f"{pth} holds {_kind(value)} under {name!r}: {expected}")
    return {name: tensor.detach() for name, tensor in content.items()}


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout is torch.strided and not tensor.is_meta


def _kind(value: object) -> str:
    return (
        f"a tensor of {value.dtype}, {value.layout}"
        if isinstance(value, Tensor)
        else f"a value of type {type(value).__name__}"
    )


def describe(config: ModelConfig, weights: dict[str, Tensor], tokenizer: Tokenizer | None) -> Converted:
    """What is reported of a conversion."""
    return Converted(
        config=config,
        parameters=sum(tensor.numel() for tensor in weights.values()),
        dtypes=tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()})),
        tokenizer=tokenizer.name if tokenizer else None,
    )
