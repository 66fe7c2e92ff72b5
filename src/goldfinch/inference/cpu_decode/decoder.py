"""The layers of one model in C++ (cpu_decode.cpp), for a few tokens of one or several sequences on a CPU."""

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from goldfinch.cache.key_value_cache import KeyValueCache, newest_rows
from goldfinch.cpu.build import compiled
from goldfinch.cpu.pointers import pointer
from goldfinch.devices import dtype_name
from goldfinch.inference.cpu_decode.structures import (
    KeptStructure,
    LayerStructure,
    MatrixStructure,
    OutsideStructure,
    StateStructure,
    WeightStructures,
    matrix,
)
from goldfinch.layers.quantized import MatrixModule
from goldfinch.layers.rotary import velocities
from goldfinch.mixers import Gold, KeyValueSource
from goldfinch.model import Decoder
from goldfinch.model.block import Block
from goldfinch.state import BlockState, GoldState, RecurrentState

SOURCE = Path(__file__).with_name("cpu_decode.cpp")
NAME = "fused decoding"

_Pairs = Sequence[tuple[BlockState | None, BlockState]]
"""Of each sequence: the state of a layer before some tokens, and where to write that after them."""
_Blocks = tuple[list[Tensor], list[Tensor]]


class FusedDecoder:
    """The layers of one model in C++, for as long as its parameters stay where they are in memory."""

    def __init__(self, model: Decoder) -> None:
        code = library()
        if code is None:
            raise RuntimeError("fused decoding needs a C++ compiler")
        dtype, config = model.dtype, model.config
        suffix = dtype_name(dtype)
        self._dtype = dtype
        results = {
            "recurrent_layers": ctypes.c_bool,
            "gold_layers": ctypes.c_bool,
            "queries": None,
            "after_attention": None,
        }
        self._functions = {name: getattr(code, f"{name}_{suffix}") for name in results}
        for name, result in results.items():
            self._functions[name].restype = result
        self._blocks = [block for block in model.blocks if isinstance(block, Block)]
        self._first_gold_layer = config.first_gold_layer
        structures = WeightStructures(model)
        self._layers = (LayerStructure * len(self._blocks))(*map(structures.layer, self._blocks))
        self._gold = [block.time_mix for block in self._blocks if isinstance(block.time_mix, Gold)]
        self._head = model.head
        self._output_norm = model.output_norm
        rope, size = config.rope, config.head_size
        self._velocity = None if rope is None else velocities(size, rope, torch.float32, model.device)
        self._outside = structures.outside(model, self._velocity)
        self._width, self._num_heads = config.width, config.num_heads
        self._latent_width = config.latent_width if model.token_cat is not None else None
        self._row_shape = torch.Size((1, self._width))
        self._wkv_shape = torch.Size((1, self._num_heads, size, size))

    def lower(
        self, ids: Tensor, states: Sequence[Sequence[BlockState] | None]
    ) -> tuple[Tensor, Tensor | None, list[list[BlockState]]]:
        """`Decoder.embed`, `Decoder.lower` and `TokenCat.compress`.

        Args:
            ids: (B, T) int64.
            states: of the layers, for each of the B sequences; None at the start of a text. They are not changed.

        Returns:
            (B, T, D), the output of the layers; their latents, (B, T, R), None in models without GOLD layers; and the
            states of each sequence after them.

        Raises:
            IndexError: an id is not in the vocabulary.
        """
        num_layers, size = self._first_gold_layer, self._width // self._num_heads
        after = []
        for _ in states:
            # Each sequence has its own tensors, so that one that leaves the batch keeps no other's alive.
            lasts = torch.empty(2, num_layers, 1, self._width, dtype=self._dtype)
            wkv = torch.empty(num_layers, 1, self._num_heads, size, size)
            after.append(
                [
                    BlockState(time_mix=RecurrentState(last=last, wkv=s), channel_mix=channel)
                    for last, channel, s in zip(*lasts.unbind(), wkv, strict=True)
                ]
            )
        ids = ids.contiguous()
        x = torch.empty(*ids.shape, self._width, dtype=self._dtype)
        latents = None
        if self._latent_width is not None:
            latents = torch.empty(*ids.shape, self._latent_width, dtype=self._dtype)
        pairs = [
            (given[layer] if given is not None else None, new[layer])
            for layer in range(num_layers)
            for given, new in zip(states, after, strict=True)
        ]
        with self._pointers(pairs) as pointers:
            self._call(
                "recurrent_layers", ctypes.byref(self._outside), self._layers, pointers,
                pointer(ids, ids.shape, torch.int64), num_layers, *x.shape, torch.get_num_threads(),
                pointer(x, x.shape, self._dtype),
                pointer(latents, (*ids.shape, self._latent_width or 0), self._dtype),
            )  # fmt: skip
        return x, latents, after

    def upper(
        self,
        x: Tensor,
        states: Sequence[Sequence[BlockState | None] | None],
        caches: Sequence[KeyValueSource],
    ) -> tuple[Tensor, list[list[BlockState]]]:
        """`Decoder.upper` and `Decoder.output_norm`: (B, T, D) -> (B, T, D), and the states of each sequence.

        Args:
            x: outputs of the layers below for the newest T tokens of each sequence.
            states: of the GOLD layers, for each sequence; None where what a token shift reaches back to does not
                matter.
            caches: keys and values of each sequence, the T tokens included.
        """
        num_layers = len(self._gold)
        after = []
        for _ in caches:
            lasts = torch.empty(2, num_layers, 1, self._width, dtype=self._dtype)
            after.append(
                [
                    BlockState(time_mix=GoldState(last=last), channel_mix=channel_mix)
                    for last, channel_mix in zip(*lasts.unbind(), strict=True)
                ]
            )
        pairs = [
            [
                (given[layer] if given is not None else None, new[layer])
                for given, new in zip(states, after, strict=True)
            ]
            for layer in range(num_layers)
        ]
        kept = [each for each in caches if isinstance(each, KeyValueCache)]
        missing = {each.num_missing for each in kept} if len(kept) == len(caches) else {None}
        num_missing = missing.pop()
        if not missing and num_missing is not None and 1 <= num_missing <= x.shape[1]:
            return self._upper_with_kept(x, pairs, kept, num_missing), after
        return self._upper_with_expanded(x, pairs, caches), after

    def _upper_with_kept(
        self, x: Tensor, pairs: Sequence[_Pairs], caches: Sequence[KeyValueCache], num_missing: int
    ) -> Tensor:
        """`upper` in one call, where keys and values of all but the newest tokens are kept; theirs are added."""
        x, y = x.contiguous(), torch.empty(x.shape, dtype=self._dtype)
        ids, latents = newest_rows(caches, num_missing)
        blocks = [cache.reserve_newest(num_missing) for cache in caches]
        inputs = len(caches), 1 + num_missing
        with self._pointers([pair for layer in pairs for pair in layer]) as states, self._kept(blocks, caches) as kept:
            self._call(
                "gold_layers", ctypes.byref(self._outside), self._layer(self._first_gold_layer), states, kept,
                pointer(ids, inputs, torch.int64), pointer(latents, (*inputs, self._latent_width or 0), self._dtype),
                num_missing, len(self._gold), *x.shape, torch.get_num_threads(),
                pointer(x, x.shape, self._dtype), pointer(y, x.shape, self._dtype),
            )  # fmt: skip
        for cache in caches:
            cache.commit_newest(num_missing)
        return y

    def _upper_with_expanded(self, x: Tensor, pairs: Sequence[_Pairs], caches: Sequence[KeyValueSource]) -> Tensor:
        """`upper` with keys and values that each layer asks for and PyTorch may have to compute."""
        x = x.to(torch.float32, copy=True).contiguous()
        shape, threads = x.shape, torch.get_num_threads()
        q = torch.empty(shape)
        for number, (gold, of_layer) in enumerate(zip(self._gold, pairs, strict=True), start=self._first_gold_layer):
            layer = self._layer(number)
            with self._pointers(of_layer) as states:
                to_x, to_q = (pointer(each, shape, torch.float32) for each in (x, q))
                self._call("queries", layer, states, *shape, threads, to_x, to_q)
                rows = q.to(self._dtype).split(1)
                y = torch.cat([gold.attend(row, cache) for row, cache in zip(rows, caches, strict=True)])
                y = y.float().contiguous()
                to_y = pointer(y, shape, torch.float32)
                self._call("after_attention", layer, states, *shape, threads, to_x, to_y)
        return self._output_norm(x.to(self._dtype))

    def _layer(self, number: int) -> Any:
        """The address of a layer's structure, and of those behind it."""
        return ctypes.byref(self._layers, ctypes.sizeof(LayerStructure) * number)

    def head(self, x: Tensor) -> Tensor:
        """`Decoder.head`: (T, D) -> (T, V) fp32.

        Raises:
            ValueError: the model has no head.
        """
        if self._head is None:
            raise ValueError("this model has no head")
        return linear(x, self._head, self._dtype)

    def _call(self, name: str, *arguments: Any) -> None:
        """Call a C++ function, whose whole numbers are all of 64 bits."""
        if self._functions[name](*(ctypes.c_int64(each) if type(each) is int else each for each in arguments)) is False:
            raise IndexError("a token id is not in the vocabulary")

    @contextlib.contextmanager
    def _kept(self, blocks: Sequence[Sequence[_Blocks]], caches: Sequence[KeyValueCache]) -> Iterator[Any]:
        """An array of `KeptStructure`, layers x sequences, from the blocks of each sequence and layer."""
        addresses, structures = [], []
        for layer in range(len(self._gold)):
            for of_sequence, cache in zip(blocks, caches, strict=True):
                both = []
                for storages in of_sequence[layer]:
                    # All blocks but the last are full, and the last has room for the rest.
                    rows = [cache.block_size] * (len(storages) - 1) + [len(storages[-1])]
                    if sum(rows) < len(cache):
                        raise ValueError(f"{sum(rows)} reserved rows are too few for {len(cache)} tokens")
                    found = [
                        pointer(x, (n, self._width), self._dtype).value for x, n in zip(storages, rows, strict=True)
                    ]
                    both.append((ctypes.c_void_p * len(found))(*found))
                addresses.append(both)
                structures.append(KeptStructure(*map(ctypes.addressof, both), cache.block_size, len(cache)))
        yield (KeptStructure * len(structures))(*structures)
        del addresses  # alive until here

    @contextlib.contextmanager
    def _pointers(self, pairs: _Pairs) -> Iterator[Any]:
        """An array of `StateStructure`: states before the tokens, and where to write those after them.

        Each is given in the dtype and layout that C++ reads; a copy, only where it was computed in another, lives as
        long as the `with` block.
        """
        kept: list[Tensor] = []
        addresses: list[int | None] = []
        for before, after in pairs:
            for state in (before, after):
                addresses += [None if part is None else self._address(*part, kept) for part in self._parts(state)]
        yield (ctypes.c_void_p * len(addresses))(*addresses)

    def _parts(self, state: BlockState | None) -> tuple[tuple[Tensor, torch.Size, torch.dtype] | None, ...]:
        """What one half of a `StateStructure` points to, with the shape and dtype that C++ takes it for."""
        if state is None:
            return None, None, None
        mix, channel_mix = state.time_mix, state.channel_mix
        if not isinstance(mix, RecurrentState | GoldState):
            raise TypeError(f"{type(mix).__name__} is not the state of a recurrent or GOLD layer")
        return (
            (mix.last, self._row_shape, self._dtype),
            None if channel_mix is None else (channel_mix, self._row_shape, self._dtype),
            (mix.wkv, self._wkv_shape, torch.float32) if isinstance(mix, RecurrentState) else None,
        )

    @staticmethod
    def _address(tensor: Tensor, shape: torch.Size, dtype: torch.dtype, kept: list[Tensor]) -> int:
        """Where the numbers of a state begin, once it is known to be what C++ reads."""
        if tensor.shape != shape or not tensor.is_cpu:
            raise ValueError(f"a state of shape {tuple(tensor.shape)} on {tensor.device} must be {tuple(shape)} on cpu")
        if tensor.dtype is not dtype or not tensor.is_contiguous():
            tensor = tensor.to(dtype).contiguous()
            kept.append(tensor)
        return tensor.data_ptr()


def library() -> ctypes.CDLL | None:
    """The compiled code; None without a compiler.

    Raises:
        RuntimeError: its structures are not those below.
    """
    code = compiled(SOURCE, NAME)
    if code is not None:
        pairs = (
            (OutsideStructure, code.outside_nbytes),
            (LayerStructure, code.layer_nbytes),
            (MatrixStructure, code.matrix_nbytes),
            (StateStructure, code.state_nbytes),
            (KeptStructure, code.kept_nbytes),
        )
        for structure, function in pairs:
            function.restype = ctypes.c_int64
            if function() != ctypes.sizeof(structure):
                raise RuntimeError(
                    f"{structure.__name__} has {ctypes.sizeof(structure)} bytes in Python and {function()} in "
                    f"{SOURCE.name}: their fields differ"
                )
    return code


def linear(x: Tensor, layer: MatrixModule, dtype: torch.dtype) -> Tensor:
    """(T, D) x (V, D)^T -> (T, V) fp32; the layer's weight is quantized, or fp32 or bf16 as `dtype` says."""
    code = library()
    if code is None:
        raise RuntimeError("fused decoding needs a C++ compiler")
    rows, columns = layer.weight.shape
    x, result = x.float().contiguous(), torch.empty(len(x), rows)
    sizes = (ctypes.c_int64(extent) for extent in (rows, len(x), columns))
    weight = matrix(layer, rows, columns, dtype)
    getattr(code, f"linear_{dtype_name(dtype)}")(
        ctypes.byref(weight), *sizes, ctypes.c_int64(torch.get_num_threads()),
        pointer(x, (len(x), columns), torch.float32), pointer(result, result.shape, torch.float32),
    )  # fmt: skip
    return result
