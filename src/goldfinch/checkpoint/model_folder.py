"""A model folder: `config.json`, `model.safetensors` and `tokenizer.json`, for us and for transformers.

Tensors have the names that they have in `GoldFinchForCausalLM`: "model." and the name in `Decoder`, and "lm_head" for
the head. Files with the plain names, which earlier versions wrote, are read as well.
"""

import contextlib
import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from goldfinch.checkpoint.config_json import from_json, to_json
from goldfinch.checkpoint.quantize import expect_quantized
from goldfinch.checkpoint.safetensors_file import check_checksums, checksums_of, write_safetensors
from goldfinch.config import ModelConfig, RopeConfig
from goldfinch.data.chat_template import CHAT_TEMPLATE, ChatTemplate
from goldfinch.data.tokenizer_config import TOKENIZER_CONFIG, save_tokenizer_config
from goldfinch.data.tokenizers import Tokenizer, load_tokenizer
from goldfinch.devices import COMPUTE_DTYPES, dtype_name
from goldfinch.errors import UserError
from goldfinch.file_kinds import MODEL_CONFIG, require_model_folder
from goldfinch.files import atomic_directory, one_line, write_text
from goldfinch.json_yaml import read_json
from goldfinch.model import Decoder

_LOGGER = logging.getLogger(__name__)
CONFIG, WEIGHTS, TOKENIZER = MODEL_CONFIG, "model.safetensors", "tokenizer.json"
SHARDS = "model.safetensors.index.json"
"""Which file holds which tensor, where Hugging Face wrote several."""
BODY, HEAD = "model.", "lm_head."
"""What names in the file begin with."""
MODEL_FILES = (CONFIG, WEIGHTS, TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE)
"""All that a model folder holds."""


def save_description(
    folder: Path, config: ModelConfig, tokenizer: Tokenizer | None, chat_template: ChatTemplate | None = None
) -> None:
    """Write `config.json` and, if there are any, the tokenizer, for Hugging Face's libraries too, and chat template."""
    write_text(folder / CONFIG, json.dumps(to_json(config), indent=2) + "\n")
    if tokenizer is not None:
        tokenizer.save(folder / TOKENIZER)
        save_tokenizer_config(folder, tokenizer)
    if chat_template is not None:
        chat_template.save(folder)


def save_weights(folder: Path, weights: dict[str, Tensor], file: str = WEIGHTS) -> None:
    """Write `model.safetensors`, or a file with a part of the weights, atomically, with a checksum of each tensor."""
    stored = {name_in_file(name): tensor for name, tensor in weights.items()}
    write_safetensors(folder / file, stored, {"format": "pt"} | checksums_of(stored))


def name_in_file(name: str) -> str:
    """What a parameter of `Decoder` is called in the file."""
    return HEAD + name.removeprefix("head.") if name.startswith("head.") else BODY + name


def name_in_model(name: str) -> str:
    """The inverse; plain names stay as they are."""
    return "head." + name.removeprefix(HEAD) if name.startswith(HEAD) else name.removeprefix(BODY)


def save_model_folder(
    output: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    tokenizer: Tokenizer | None,
    chat_template: ChatTemplate | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write a model folder atomically, with every weight in its own dtype.

    Raises:
        UserError: as `check_model_output`, or it cannot be written.
    """
    check_model_output(output, overwrite)
    with writing(output), atomic_directory(output, replace=overwrite) as folder:
        save_description(folder, config, tokenizer, chat_template)
        save_weights(folder, untie(weights))


def check_model_output(
    output: Path, overwrite: bool, is_model_file: Callable[[str], bool] = MODEL_FILES.__contains__
) -> None:
    """Check that a model folder may be written: the path is free or, with `overwrite`, holds only a model.

    Args:
        output: the folder.
        overwrite: whether one that exists may be replaced.
        is_model_file: whether a model may have a file of this name.

    Raises:
        UserError: it exists.
    """
    if not output.exists():
        return
    if not overwrite:
        raise UserError(f"{output} exists: choose another name, or give --overwrite")
    if not output.is_dir():
        raise UserError(f"{output} is a file: give a folder")
    others = sorted(path.name for path in output.iterdir() if not is_model_file(path.name))
    if others:
        raise UserError(f"{output} also holds {others[0]}, so it is not overwritten: choose another name")


@contextlib.contextmanager
def writing(output: Path) -> Iterator[None]:
    """Turn errors of the disk (no space, no permission) into a UserError about `output`."""
    try:
        yield
    except (OSError, RuntimeError, UserError) as error:
        # torch.save hides the system's reason behind an error of its own; save_weights names the temporary file.
        raise UserError(f"cannot write {output}: {one_line(error.__context__ or error)}") from error


def untie(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy what shares memory with another tensor (a head tied to the embedding): safetensors refuses to write it."""
    seen: set[int] = set()
    untied = {}
    for name, tensor in weights.items():
        start = tensor.untyped_storage().data_ptr()
        untied[name] = tensor.clone() if start in seen else tensor
        seen.add(start)
    return untied


def read_config(folder: Path) -> ModelConfig:
    """The model config of a folder.

    Raises:
        UserError: there is no such folder or no config, or it is corrupt or of a newer version.
    """
    path = folder / CONFIG
    require_model_folder(folder)
    try:
        return from_json(read_json(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer | None:
    """The tokenizer of a folder; None if it has none.

    Raises:
        UserError: it has more ids than the model.
    """
    path = folder / TOKENIZER
    if not path.exists():
        return None
    tokenizer = load_tokenizer(path)
    check_tokenizer(path, tokenizer, config)
    return tokenizer


def check_tokenizer(path: Path, tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Raise a UserError if the tokenizer, which was read from `path`, has more ids than the model."""
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{path} has {tokenizer.vocab_size} ids, the model only {config.vocab_size}: it belongs to another model"
        )


def load_model(
    folder: Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    rope: RopeConfig | None = None,
) -> Decoder:
    """Build the model of a folder with its weights.

    Args:
        folder: written by `goldfinch train` or `goldfinch convert`.
        dtype: of all parameters; None for the one that most of the stored numbers have. A model computes in one dtype,
            so weights stored in others are converted to it, with a warning.
        device: where they go.
        rope: positions instead of the model's own, which have no weights; None for its own.

    Raises:
        UserError: the folder or a file in it is missing, corrupt, or does not fit the config, or `rope` is
            given for a model without positions.
    """
    config = read_config(folder)
    if rope is not None:
        if config.rope is None:
            raise UserError(
                f"the model in {folder} was trained without rotary positions, so they cannot be interpolated; "
                f"to train it with them: goldfinch train --initial {folder} --model.rope rescale=1 ..."
            )
        config = dataclasses.replace(config, rope=rope)
    model = Decoder.on_meta(config)
    weights = read_weights(folder, model, device, may_be_quantized=True)
    if dtype is None:
        dtype = compute_dtype(folder / WEIGHTS, {name: weights[name] for name, _ in model.named_parameters()})
    model.to(dtype)
    weights |= {name: weights[name].to(dtype) for name, _ in model.named_parameters()}
    model.load_state_dict(weights, assign=True)
    return model


def read_weights(
    folder: Path, model: Decoder, device: torch.device | str = "cpu", *, may_be_quantized: bool = False
) -> dict[str, Tensor]:
    """The weights in a folder, each in the dtype that it is stored in, checked against the model of its config.

    Args:
        folder: the model's.
        model: of its config, on the meta device.
        device: where they go.
        may_be_quantized: whether matrices may be integers; the model's modules are then replaced by such.

    Raises:
        UserError: the file is missing, corrupt, or does not fit the model.
    """
    weights: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        path = folder / file
        try:
            with safe_open(path, "pt") as opened:
                metadata = opened.metadata() or {}
            stored = load_file(path)
        except FileNotFoundError:
            hint = "copy it there" if file != WEIGHTS else "train it with `goldfinch train`"
            raise UserError(f"{folder} has no weights yet: {file} is missing; {hint}") from None
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is not a valid safetensors file: {error}") from error
        check_checksums(path, stored, metadata)
        weights |= {name_in_model(name): tensor for name, tensor in stored.items()}
    if expect_quantized(model, weights) and not may_be_quantized:
        raise UserError(f"{folder} has int8 weights: give the model that they were made from")
    check_weights(folder / WEIGHTS, weights, model)
    return {name: tensor.to(device) for name, tensor in weights.items()}


def _weight_files(folder: Path) -> list[str]:
    """The names of the files that hold the weights.

    Raises:
        UserError: the list of several is damaged.
    """
    path = folder / SHARDS
    if (folder / WEIGHTS).exists() or not path.exists():
        return [WEIGHTS]
    content = read_json(path)
    places = content.get("weight_map") if isinstance(content, dict) else None
    files = set(places.values()) if isinstance(places, dict) and all(map(_is_str, places.values())) else set()
    if not files or any(Path(file).name != file or not file.endswith(".safetensors") for file in files):
        raise UserError(
            f"{path} does not say which safetensors files beside it hold the weights: copy the folder again"
        )
    return sorted(files)


def _is_str(value: object) -> bool:
    return isinstance(value, str)


def compute_dtype(path: Path, weights: dict[str, Tensor]) -> torch.dtype:
    """The dtype that most numbers of these weights have; a warning says which ones have another.

    Raises:
        UserError: no model can compute in it.
    """
    dtype = main_dtype(weights)
    if dtype_name(dtype) not in COMPUTE_DTYPES:
        raise UserError(
            f"{path} holds {dtype_name(dtype)} numbers, in which no model computes: save it in another dtype, "
            f'goldfinch.load({str(path.parent)!r}, dtype="bfloat16").save(FOLDER)'
        )
    others = sorted(name for name, tensor in weights.items() if tensor.dtype != dtype)
    if others:
        stored = ", ".join(sorted({dtype_name(weights[name].dtype) for name in others}))
        _LOGGER.warning(
            "%s: %d of %d tensors are %s, such as %s; the model computes in %s, like most weights",
            path, len(others), len(weights), stored, others[0], dtype_name(dtype),
        )  # fmt: skip
    return dtype


def main_dtype(weights: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype that most numbers of these weights have."""
    numbers: Counter[torch.dtype] = Counter()
    for tensor in weights.values():
        numbers[tensor.dtype] += tensor.numel()
    ((dtype, _),) = numbers.most_common(1)
    return dtype


def check_weights(path: Path, weights: dict[str, Tensor], model: Decoder) -> None:
    """Raise one UserError that lists the first tensors that are missing, unexpected, or of another shape or dtype."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    problems = [f"{name} is missing" for name in wanted.keys() - weights.keys()]
    problems += [f"{name} is unexpected" for name in weights.keys() - wanted.keys()]
    for name in wanted.keys() & weights.keys():
        tensor = weights[name]
        if tuple(tensor.shape) != wanted[name]:
            problems.append(f"{name} is {tuple(tensor.shape)}, not {wanted[name]}")
        elif tensor.is_floating_point() != dtypes[name].is_floating_point:
            kind = "floating-point numbers" if dtypes[name].is_floating_point else "int8 numbers"
            problems.append(f"{name} holds {tensor.dtype}, not {kind}")
    if problems:
        listed = [problem if len(problem) <= 90 else f"{problem[:87]}..." for problem in sorted(problems)[:4]]
        if len(problems) > len(listed):
            listed.append(f"and {len(problems) - len(listed)} more")
        raise UserError(f"{path} does not fit its config: {'; '.join(listed)}")
