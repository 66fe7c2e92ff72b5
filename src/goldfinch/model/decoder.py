"""The whole model, as in the paper's figure (SPEC 1)."""

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from goldfinch.config import ModelConfig
from goldfinch.layers.norm import layer_norm
from goldfinch.mixers import KeyValueSource
from goldfinch.model.block import Block
from goldfinch.model.token_cat import TokenCat
from goldfinch.state import BlockState, KeyCacheState, ModelState


class Decoder(nn.Module):
    """Token ids to next-token logits, for every layer plan: GoldFinch, Finch, Finch-C2, GPTAlpha, Llama.

    Parameters are not initialised here, but by `goldfinch.model.initialization` or a checkpoint.
    """

    block_type: ClassVar[type[Block]] = Block

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # From a tensor: nn.Embedding draws random numbers, which on the meta device imports torch's compiler.
        weight = torch.empty(config.vocab_size, config.width)
        self.embedding = nn.Embedding.from_pretrained(weight, freeze=False)
        self.embedding_norm = layer_norm(config.width)
        self.blocks = nn.ModuleList(self.block_type(config, kind) for kind in config.time_mixes)
        self.token_cat = TokenCat(config) if config.num_gold_layers else None
        self.output_norm = layer_norm(config.width)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)

    @classmethod
    def on_meta(cls, config: ModelConfig) -> Self:
        """A model whose weights take no memory, for its shapes or for `load_state_dict(assign=True)`."""
        with torch.device("meta"):
            return cls(config)

    @classmethod
    def of_parts(cls, config: ModelConfig, **parts: nn.Module | None) -> Self:
        """A model of modules that exist: those of `__init__` by name. They stay those of whoever made them."""
        decoder = cls.__new__(cls)
        nn.Module.__init__(decoder)
        decoder.config = config
        for name, part in parts.items():
            setattr(decoder, name, part)
        return decoder

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """In which it computes: the dtype of its first norm and, unless a model mixes them, of all parameters."""
        return self.embedding_norm.weight.dtype

    def forward(
        self, ids: Tensor, state: ModelState | None = None, *, document_starts: Tensor | None = None
    ) -> tuple[Tensor, ModelState]:
        """Logits of the next token after each of `ids`.

        Args:
            ids: (B, T) int64, T >= 1.
            state: of the tokens before; None at the start of the text. It is not changed.
            document_starts: (B, T) bool, the tokens that begin a document: nothing of one document then reaches
                another, neither forward nor in gradients, and each is read as if it stood alone. None for one document.

        Returns:
            (B, T, V) logits, and the state after the last token. With `document_starts` it still has the key cache, and
            the keys of full-width attention, of all documents, so no text can continue from it.

        Raises:
            ValueError: both a state and `document_starts` are given.
        """
        hidden, state = self.hidden(ids, state, document_starts=document_starts)
        return self.head(hidden), state

    def hidden(
        self, ids: Tensor, state: ModelState | None = None, *, document_starts: Tensor | None = None
    ) -> tuple[Tensor, ModelState]:
        """As `forward`, without the head: (B, T, D), normalised."""
        if state is not None and document_starts is not None:
            raise ValueError("`document_starts` needs an empty state, but a state is given")
        x0 = self.embed(ids)
        x, blocks = self.lower(x0, state.blocks if state else None, document_starts=document_starts)
        cache = None
        if self.token_cat is not None:
            cache = KeyCacheState(ids=ids, latents=self.token_cat.compress(x))
            if state is not None and state.key_cache is not None:
                cache = _join(state.key_cache, cache)
                x0 = self.embed(cache.ids)
            expanded = self.token_cat.expand(x0, cache.latents, document_starts)
            x, upper = self.upper(
                x, state.blocks[len(blocks) :] if state else None, expanded, document_starts=document_starts
            )
            blocks += upper
        return self.output_norm(x), ModelState(blocks=blocks, key_cache=cache)

    def embed(self, ids: Tensor) -> Tensor:
        """x0: (B, T) ids -> (B, T, D) embeddings after ln0."""
        return self.embedding_norm(self.embedding(ids))

    def lower(
        self, x0: Tensor, states: Sequence[BlockState | None] | None, *, document_starts: Tensor | None = None
    ) -> tuple[Tensor, list[BlockState]]:
        """The layers below GOLD: (B, T, D) -> (B, T, D), and their states; `states` of further layers are ignored."""
        return self._run(range(self.config.first_gold_layer), x0, states, document_starts=document_starts)

    def upper(
        self,
        x: Tensor,
        states: Sequence[BlockState | None] | None,
        cache: KeyValueSource | Sequence[KeyValueSource],
        *,
        document_starts: Tensor | None = None,
    ) -> tuple[Tensor, list[BlockState]]:
        """The GOLD layers: the newest T tokens, (B, T, D) -> (B, T, D), and the states of these layers.

        A state may be None where what a token shift reaches back to does not matter.
        """
        return self._run(range(self.config.first_gold_layer, self.config.num_layers), x, states, cache, document_starts)

    def _run(
        self,
        layers: range,
        x: Tensor,
        states: Sequence[BlockState | None] | None,
        cache: KeyValueSource | Sequence[KeyValueSource] | None = None,
        document_starts: Tensor | None = None,
    ) -> tuple[Tensor, list[BlockState]]:
        after = []
        for number, layer in enumerate(layers):
            x, state = self.blocks[layer](x, states[number] if states else None, cache, document_starts)
            after.append(state)
        return x, after


def _join(past: KeyCacheState, new: KeyCacheState) -> KeyCacheState:
    return KeyCacheState(
        ids=torch.cat([past.ids, new.ids], dim=1), latents=torch.cat([past.latents, new.latents], dim=1)
    )
