"""One step of the recurrent layers as an ONNX file, for programs without PyTorch."""

import contextlib
import dataclasses
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from goldfinch.errors import UserError

try:
    import onnxscript  # noqa: F401  # torch.onnx needs it
except ImportError as error:
    raise UserError(f"ONNX files need the package onnxscript ({error}): pip install 'goldfinch[onnx]'") from error

from goldfinch.checkpoint.convert import Converted, describe, read_model
from goldfinch.checkpoint.model_folder import writing
from goldfinch.files import atomic_file
from goldfinch.mixers import TIME_MIXES
from goldfinch.model import Decoder
from goldfinch.state import BlockState, RecurrentState

MAX_BYTES = 2**31 - 1
"""Of an ONNX file: it is one message of Protocol Buffers."""
_PARTS = ("time_shift", "wkv", "channel_shift")
"""Of the state of a layer; names of inputs are PART.LAYER, of outputs next.PART.LAYER."""


def export_onnx(source: Path, output: Path, *, overwrite: bool = False) -> Converted:
    """Write one step of the layers below GOLD as an ONNX file, in float32.

    Inputs are `ids`, (B, 1) int64, and the state of each layer, all zero at the start of a text: `time_shift.LAYER` and
    `channel_shift.LAYER`, (B, D), and `wkv.LAYER`, (B, H, N, N). Outputs are the state after the token under the same
    names behind `next.`, and, of a Finch, `logits`, (B, V). Of a GoldFinch they are what the layers above read:
    `hidden`, (B, D), and `compressed_keys`, (B, R), which is all that has to be kept of the token but its id.

    Args:
        source: a folder of ours or a `.pth`; see `read_model`.
        output: the .onnx file to write, atomically.
        overwrite: replace `output` if it exists.

    Raises:
        UserError: layers below GOLD are not recurrent, the file would be larger than ONNX allows, or `source` or
            `output` are not what they should be.
    """
    if output.suffix != ".onnx":
        raise UserError(f"{output} must end in .onnx")
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists: choose another name, or give --overwrite")
    model = read_model(source)
    decoder = Decoder.on_meta(model.config)
    _check(source, decoder)
    decoder.load_state_dict({name: tensor.float() for name, tensor in model.weights.items()}, assign=True)
    program = _export(decoder.eval())
    with writing(output), atomic_file(output) as temporary:
        program.save(temporary, external_data=False)
    return dataclasses.replace(describe(model.config, model.weights, model.tokenizer), dtypes=("float32",))


def _check(source: Path, decoder: Decoder) -> None:
    config = decoder.config
    others = {kind for kind in config.time_mixes[: config.first_gold_layer] if not TIME_MIXES[kind].is_recurrent}
    if others or config.channel_mix != "rwkv":
        what = f"{' and '.join(sorted(others))} layers" if others else f"the channel mix {config.channel_mix}"
        raise UserError(f"{source} has {what}: only recurrent layers with the channel mix rwkv can be exported as ONNX")
    nbytes = 4 * sum(parameter.numel() for parameter in _Step(decoder).parameters())
    if nbytes > MAX_BYTES:
        raise UserError(f"{source} would take {nbytes / 1e9:.1f} GB, and ONNX files end at 2 GiB")


class _Step(nn.Module):
    """One token through the layers below GOLD, and through the head where there are no others."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        config = decoder.config
        has_gold = decoder.token_cat is not None
        self.decoder = Decoder.of_parts(
            config,
            embedding=decoder.embedding,
            embedding_norm=decoder.embedding_norm,
            blocks=decoder.blocks[: config.first_gold_layer],
            token_cat=None,
            output_norm=None if has_gold else decoder.output_norm,
            head=None if has_gold else decoder.head,
        )
        self.compress = None if decoder.token_cat is None else decoder.token_cat.down

    def forward(self, ids: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        before = [
            BlockState(time_mix=RecurrentState(last=time_shift, wkv=wkv), channel_mix=channel_shift)
            for time_shift, wkv, channel_shift in zip(*(state[part::3] for part in range(3)), strict=True)
        ]
        x, after = self.decoder.lower(self.decoder.embed(ids), before)
        x = x[:, 0]
        outputs = (x, self.compress(x)) if self.compress else (self.decoder.head(self.decoder.output_norm(x)),)
        return *outputs, *(tensor for block in after for tensor in block.tensors())


def _export(decoder: Decoder) -> "torch.onnx.ONNXProgram":
    config = decoder.config
    step = _Step(decoder)
    names = [f"{part}.{layer}" for layer in range(config.first_gold_layer) for part in _PARTS]
    shift, wkv = (2, config.width), (2, config.num_heads, config.head_size, config.head_size)
    inputs = [torch.zeros(2, 1, dtype=torch.int64)]
    inputs += [torch.zeros(shape) for _ in range(config.first_gold_layer) for shape in (shift, wkv, shift)]
    batch = torch.export.Dim("batch")
    with _quiet():
        program = torch.onnx.export(
            step,
            tuple(inputs),
            dynamo=True,
            verbose=False,
            input_names=["ids", *names],
            output_names=[
                *(["logits"] if step.compress is None else ["hidden", "compressed_keys"]),
                *(f"next.{name}" for name in names),
            ],
            dynamic_shapes=({0: batch}, tuple({0: batch} for _ in names)),
        )
    assert program is not None
    return program


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says to its own developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
