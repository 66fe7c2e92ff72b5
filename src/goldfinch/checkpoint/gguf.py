"""Finch models as GGUF files, which llama.cpp runs (its architecture `rwkv6`)."""

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from goldfinch.errors import UserError

try:
    import gguf
except ImportError as error:
    raise UserError(f"GGUF files need the package gguf ({error}): pip install 'goldfinch[gguf]'") from error

from goldfinch.checkpoint.convert import Converted, StoredModel, describe, read_model
from goldfinch.checkpoint.gguf_tokenizer import GgufVocabulary
from goldfinch.checkpoint.model_folder import main_dtype, writing
from goldfinch.checkpoint.reference import to_reference
from goldfinch.config import ModelConfig
from goldfinch.devices import dtype_name
from goldfinch.files import atomic_file
from goldfinch.layers.norm import LAYER_NORM_EPS

CONTEXT_LENGTH = 1 << 20
"""Tokens, as llama.cpp's own converter says of every RWKV-6: a state of fixed size has no limit."""
HEAD_SIZE = 64
"""Of every published model. llama.cpp's kernels for GPUs are compiled for it; those for CPUs take others, too."""
_IN_TRANSFORMERS = {
    "emb.": "embeddings.",
    "blocks.0.ln0.": "blocks.0.pre_ln.",
    ".att.": ".attention.",
    ".ffn.": ".feed_forward.",
}
"""Published prefixes -> those in transformers."""


@dataclasses.dataclass(frozen=True)
class Format:
    """How a GGUF file stores the matrices; all else is in float32 in every file."""

    matrices: gguf.GGMLQuantizationType
    file: gguf.LlamaFileType
    """What the file as a whole is called."""
    largest: float
    """Largest absolute value."""


_FLOAT16_MAX = float(np.finfo(np.float16).max)
FORMATS = {
    "float32": Format(gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32, torch.finfo(torch.float32).max),
    "bfloat16": Format(gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16, torch.finfo(torch.bfloat16).max),
    "float16": Format(gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16, _FLOAT16_MAX),
    # 32 integers of 8 bits share a scale, which is a float16.
    "q8_0": Format(gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0, 127 * _FLOAT16_MAX),
}


def export_gguf(source: Path, output: Path, dtype: str = "auto", *, overwrite: bool = False) -> Converted:
    """Write a Finch, its tokenizer and its chat template as a GGUF file.

    Args:
        source: a folder of ours or a `.pth`; see `read_model`.
        output: the .gguf file to write, atomically.
        dtype: of the matrices, one of `FORMATS`; "auto" for the one that most stored numbers have. Vectors and the
            low-rank matrices of token shift and decay are always float32.
        overwrite: replace `output` if it exists.

    Raises:
        UserError: the model is not a pure Finch, has no tokenizer or one that llama.cpp does not know, or holds
            numbers that `dtype` does not; or `source` or `output` are not what they should be.
    """
    if output.suffix != ".gguf":
        raise UserError(f"{output} must end in .gguf")
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists: choose another name, or give --overwrite")
    if dtype not in ("auto", *FORMATS):
        raise UserError(f"unknown dtype {dtype!r} for a GGUF file: use auto, {', '.join(FORMATS)}")
    model = read_model(source)
    if dtype == "auto":
        stored = dtype_name(main_dtype(model.weights))
        dtype = stored if stored in FORMATS else "float32"
    _check_architecture(source, model.config, FORMATS[dtype])
    if model.tokenizer is None:
        raise UserError(f"{source} has no tokenizer, without which llama.cpp loads no model: add its tokenizer.json")
    try:
        vocabulary = GgufVocabulary.of(model.tokenizer)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    with writing(output), atomic_file(output) as temporary:
        _write(temporary, source.resolve().name.removesuffix(".pth"), model, vocabulary, FORMATS[dtype])
    return dataclasses.replace(describe(model.config, model.weights, model.tokenizer), dtypes=(dtype,))


def _check_architecture(source: Path, config: ModelConfig, form: Format) -> None:
    """Raise a UserError if llama.cpp has no architecture for a model."""
    others = sorted(set(config.time_mixes) - {"finch"})
    if others or config.channel_mix != "rwkv":
        what = f"{' and '.join(others)} layers" if others else f"the channel mix {config.channel_mix}"
        raise UserError(
            f"{source} has {what}, for which llama.cpp has no architecture: only models whose layers are all finch can "
            "be exported as GGUF"
        )
    if config.head_size != HEAD_SIZE:
        raise UserError(f"{source} has heads of {config.head_size} channels; llama.cpp's kernels are for {HEAD_SIZE}")
    block = gguf.GGML_QUANT_SIZES[form.matrices][0]
    if config.channel_mix_width % block:
        raise UserError(
            f"{source} has a channel mix of width {config.channel_mix_width}, no multiple of the {block} numbers that "
            f"{form.matrices.name} stores together: choose another --dtype"
        )


class GgufTensor(NamedTuple):
    """A tensor by the name and in the shape of GGUF files, in the dtype that the model has."""

    name: str
    tensor: Tensor
    is_matrix: bool
    """Whether files may store it in fewer bits."""


def gguf_tensors(weights: Mapping[str, Tensor], config: ModelConfig) -> list[GgufTensor]:
    """The weights of a Finch, as views where one will do."""
    published = to_reference(dict(weights), config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.RWKV6, config.num_layers)
    fused = gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.TIME_MIX_LERP_FUSED]
    tensors = []
    for layer in range(config.num_layers):
        mu = [published.pop(f"blocks.{layer}.att.time_maa_{use}") for use in "wkvrg"]
        tensors.append(GgufTensor(f"{fused.format(bid=layer)}.weight", torch.stack(mu), False))
    for published_name, tensor in published.items():
        name = names.get_name(_transformers_name(published_name), try_suffixes=(".weight", ".bias"))
        assert name is not None, published_name
        suffix = "" if name.endswith((".weight", ".bias")) else ".weight"
        is_matrix = tensor.ndim == 2 and not suffix
        # (in, out) in checkpoints, where other matrices are (out, in)
        is_factor = published_name.endswith(("_w1", "_w2"))
        tensors.append(GgufTensor(name + suffix, tensor.transpose(-1, -2) if is_factor else tensor, is_matrix))
    return tensors


def _transformers_name(published: str) -> str:
    """A tensor's name in transformers' RWKV-6, by which gguf's own table finds it."""
    if published.startswith("head."):
        return published
    for ours, theirs in _IN_TRANSFORMERS.items():
        published = published.replace(ours, theirs)
    return f"rwkv.{published}"


def _write(path: Path, name: str, model: StoredModel, vocabulary: GgufVocabulary, form: Format) -> None:
    config, tensors = model.config, gguf_tensors(model.weights, model.config)
    with contextlib.closing(gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.RWKV6])) as writer:
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(name)
        writer.add_file_type(form.file)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_context_length(CONTEXT_LENGTH)
        writer.add_embedding_length(config.width)
        writer.add_block_count(config.num_layers)
        writer.add_head_count(0)  # heads of attention
        writer.add_feed_forward_length(config.channel_mix_width)
        writer.add_layer_norm_eps(LAYER_NORM_EPS)
        writer.add_wkv_head_size(config.head_size)
        writer.add_time_mix_extra_dim(config.shift_rank)
        writer.add_time_decay_extra_dim(config.decay_rank)
        writer.add_rescale_every_n_layers(0)  # n > 0 means that the file's weights are halved every n layers
        vocabulary.add_to(writer, config.vocab_size)
        if model.chat_template is not None:
            writer.add_chat_template(model.chat_template.standalone)
        for tensor in tensors:
            kind = form.matrices if tensor.is_matrix else gguf.GGMLQuantizationType.F32
            shape = gguf.quant_shape_to_byte_shape(tensor.tensor.shape, kind)
            writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), math.prod(shape), kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:  # one at a time, so that only one is in memory a second time
            writer.write_tensor_data(_encoded(tensor, form))


def _encoded(tensor: GgufTensor, form: Format) -> np.ndarray:
    """The numbers of a tensor as the file stores them.

    Raises:
        UserError: they are NaN, infinite or larger than the file can store.
    """
    if not tensor.is_matrix:
        form = FORMATS["float32"]
    numbers = tensor.tensor.float().contiguous().numpy()
    largest = np.abs(numbers).max()
    if not largest <= form.largest:  # not, for NaN
        raise UserError(
            f"{tensor.name} has the value {largest:g}, and {form.matrices.name} ends at {form.largest:g}: "
            + ("choose another --dtype" if np.isfinite(largest) else "the weights are damaged")
        )
    return gguf.quants.quantize(numbers, form.matrices)
