"""The Llama of transformers: sizes and weights of the peers, and itself one of them."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from goldfinch.benchmark.speed import weight_bytes
from goldfinch.benchmark.timing import seconds
from goldfinch.presets import model_config

HEAD_SIZE = 64
NORM_EPS = 1e-5
ROPE_BASE = 10000.0
MAX_POSITIONS = 1 << 17  # of the Llamas


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a model, the dtype of its weights, and their random seed."""

    num_layers: int
    width: int
    vocab_size: int
    dtype: str = "float32"
    seed: int = 0

    @classmethod
    def of(cls, preset: str, dtype: str) -> "Shape":
        """The sizes of a preset."""
        config = model_config(preset)
        return cls(config.num_layers, config.width, config.vocab_size, dtype)

    @property
    def num_heads(self) -> int:
        """Heads of the Llamas."""
        return self.width // HEAD_SIZE

    @property
    def channel_width(self) -> int:
        """Width of the Llamas' SwiGLU."""
        return 8 * self.width // 3 // 32 * 32


def llama(shape: Shape) -> Any:
    """`LlamaForCausalLM` of transformers."""
    transformers = importlib.import_module("transformers")
    config = transformers.LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.channel_width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_BASE},
        rms_norm_eps=NORM_EPS,
        tie_word_embeddings=False,
        # Queries, keys and logits of about 1, so that attention is not uniform and agreement means something.
        initializer_range=shape.width**-0.5,
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(shape.seed)
    return transformers.LlamaForCausalLM(config).to(getattr(torch, shape.dtype)).eval()


class Transformers:
    """The Llama of transformers."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.model = llama(shape)
        self.weight_bytes = weight_bytes(self.model, self.model.get_input_embeddings())
        self._cache_class = importlib.import_module("transformers").DynamicCache

    @torch.inference_mode()
    def _last_logits(self, ids: Tensor, cache: Any) -> Tensor:
        output = self.model(input_ids=ids[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[0, -1].float()

    def log_probabilities(self, ids: Tensor) -> Tensor:
        """As `Peer`."""
        return self._last_logits(ids, None).log_softmax(-1)

    def prefill_seconds(self, ids: Tensor) -> float:
        """As `Peer`."""
        return seconds(lambda: self._last_logits(ids, None))

    @torch.inference_mode()
    def decoder(self, ids: Tensor, tokens: int) -> Callable[[], float]:
        """As `Peer`. The cache is filled with noise: its content does not affect the speed."""
        cache = self._cache_class()
        size = (1, self.shape.num_heads, len(ids), HEAD_SIZE)
        for layer in range(self.shape.num_layers):
            cache.update(*torch.randn(2, *size).to(getattr(torch, self.shape.dtype)), layer)

        def decode() -> None:
            for token in range(tokens):
                self._last_logits(torch.tensor([token]), cache)

        return lambda: seconds(decode) / tokens

    def release(self) -> None:
        """As `Peer`."""
        del self.model
