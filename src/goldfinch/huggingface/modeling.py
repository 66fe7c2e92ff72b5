"""The models of transformers around our `Decoder`: nothing is computed here that is not computed there.

A forward pass goes one of two ways:

- without a cache, or where gradients are wanted, all tokens go through `Decoder.hidden` at once;
- otherwise each row continues a sequence of our engine (`GoldFinchCache`), and only the tokens whose outputs are wanted
  go through the GOLD layers: `generate` has linear pre-fill.

Padding never reaches a token: padded tokens are put behind the others of their row, where causality hides them.
"""

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import can_return_tuple
from transformers.utils.deprecation import deprecate_kwarg

from goldfinch.huggingface.cache import GoldFinchCache
from goldfinch.huggingface.checkpointing import GoldFinchBlock, GoldFinchDecoder
from goldfinch.huggingface.configuration import GoldFinchConfig
from goldfinch.huggingface.padding import Rows
from goldfinch.huggingface.recording import Recorder
from goldfinch.mixers import Gold
from goldfinch.model import Decoder
from goldfinch.model.initialization import initialize_body, initialize_head

accept_past_key_values = deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
"""A decorator: `cache` was called `past_key_values` before transformers 5.24."""


class GoldFinchPreTrainedModel(PreTrainedModel):
    """What all models here have in common."""

    config: GoldFinchConfig
    config_class = GoldFinchConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GoldFinchBlock"]  # noqa: RUF012  # as transformers declares it
    _skip_keys_device_placement = ["cache", "head"]  # noqa: RUF012  # as transformers declares it
    _supports_sdpa = True
    _input_embed_layer = "embedding"
    _can_record_outputs = {"hidden_states": GoldFinchBlock, "attentions": Gold}  # noqa: RUF012  # as transformers declares it

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Nothing, as `GoldFinchConfig.register_for_auto_class`."""

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # For other people's code, transformers leaves out modules without parameters of their own, such as our layers,
        # which initialise their parts.
        super()._initialize_weights(module, is_custom_code=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Our initial values (Finch paper, appendix I), but for what a checkpoint has filled."""
        parameters = list(module.parameters())
        # What accelerate keeps on disk has no numbers here.
        filled = [each for each in parameters if each.is_meta or getattr(each, "_is_hf_initialized", False)]
        if len(filled) == len(parameters):
            return
        values = [parameter.clone() for parameter in filled]
        if isinstance(module, GoldFinchModel):
            initialize_body(module, module.blocks)
        elif module is self.get_output_embeddings():
            initialize_head(cast(nn.Linear, module))
        elif module not in set(self.base_model.modules()):  # whose layers decide over their parts
            super()._init_weights(module)
        for parameter, value in zip(filled, values, strict=True):
            parameter.copy_(value)


class GoldFinchModel(GoldFinchPreTrainedModel):
    """The layers of a `Decoder`, without the head."""

    def __init__(self, config: GoldFinchConfig) -> None:
        super().__init__(config)
        decoder = GoldFinchDecoder(config.to_model_config())
        self.embedding = decoder.embedding
        self.embedding_norm = decoder.embedding_norm
        self.blocks = decoder.blocks
        self.token_cat = decoder.token_cat
        self.output_norm = decoder.output_norm
        self.gradient_checkpointing = False
        # In a list, so that PyTorch does not count its parts as this model's once more.
        self._decoders: list[Decoder] = []
        self.post_init()

    def decoder(self, head: nn.Module | None = None) -> Decoder:
        """The `Decoder` of these layers and a head; the same object as long as they are the same."""
        parts: dict[str, nn.Module | None] = {
            "embedding": self.embedding,
            "embedding_norm": self.embedding_norm,
            "blocks": self.blocks,
            "token_cat": self.token_cat,
            "output_norm": self.output_norm,
            "head": head,
        }
        known = self._decoders[0] if self._decoders else None
        if known is None or any(getattr(known, name) is not part for name, part in parts.items()):
            known = Decoder.of_parts(self.config.to_model_config(), **parts)
            self._decoders[:] = [known]
        return known

    @can_return_tuple
    @accept_past_key_values
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: GoldFinchCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
        output_attentions: bool | None = None,
        *,
        num_wanted: int | None = None,
        head: nn.Module | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states of T tokens, behind those that the cache has seen.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, tokens of the cache + T), 0 for padding, anywhere; the last T columns count. None: no
                padding.
            position_ids: (B, T); where they return to 0, a new document starts that sees nothing of those before it, as
                in packed training. Else they do not matter.
            cache: of B rows; it is continued in place.
            use_cache: return a cache; None for `config.use_cache`.
            output_hidden_states: return the input of the first layer and the output of each; with a list, only those of
                these numbers.
            output_attentions: return the attention weights of each GOLD layer.
            num_wanted: how many of the T tokens, at the end, have outputs; None for all. Hidden states and attentions
                are those of all.
            head: what makes logits of hidden states, where the model has one: a cache predicts with it.

        Returns:
            last_hidden_state: (B, wanted, D), normalised. Padding behind a token has what this token has.

        Raises:
            ValueError: there are no ids, or arguments that do not go together.
        """
        if input_ids is None or kwargs.get("inputs_embeds") is not None:
            raise ValueError(
                "GoldFinch needs input_ids, not inputs_embeds: GOLD layers rebuild keys and values from the ids"
            )
        use_cache = self.config.use_cache if use_cache is None else use_cache
        hidden_wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        attentions_wanted = self.config.output_attentions if output_attentions is None else output_attentions
        decoder = self.decoder(head)
        rows = Rows(input_ids, attention_mask, position_ids)
        recorder = Recorder(decoder, hidden=hidden_wanted or False, attentions=bool(attentions_wanted))
        wanted = input_ids.shape[1]
        if num_wanted is not None and not recorder.is_active:
            wanted = min(num_wanted, wanted)
        if cache is None and use_cache:
            cache = GoldFinchCache(self.config)
        if cache is not None and not isinstance(cache, GoldFinchCache):
            raise ValueError(
                f"the cache of a GoldFinch is a GoldFinchCache, not a {type(cache).__name__}: leave `cache` and "
                "`cache_implementation` out; `GoldFinchCache(config, latents=...)` stores it in fewer bits"
            )
        if cache is not None and _is_expansion_offloaded(decoder):
            raise ValueError(
                "device_map has offloaded GOLD layers or model.token_cat, whose weights a cache reads at any time: "
                'give them a device, device_map={"model.token_cat": 0, ...}, or pass use_cache=False'
            )
        if cache is None or torch.is_grad_enabled() or rows.document_starts is not None:
            return self._parallel(decoder, rows, cache, recorder, wanted)
        return self._sequential(decoder, rows, cache, recorder, wanted)

    def _parallel(
        self, decoder: Decoder, rows: Rows, cache: GoldFinchCache | None, recorder: Recorder, wanted: int
    ) -> BaseModelOutputWithPast:
        """All tokens through all layers at once: differentiable. A cache reads them when it is next used."""
        if cache is not None and rows.document_starts is not None:
            if cache.get_seq_length():
                raise ValueError("position_ids start a document within a row, so the row cannot continue a cache")
            cache = None  # what can be continued is one text in each row
        elif cache is not None:
            past = cache.ids()
            cache.read_later(decoder, rows)
            rows = rows.behind(*past)
        order = rows.order()
        ids, starts = rows.ids, rows.document_starts
        if order is not None:
            ids, starts = ids.gather(1, order), starts if starts is None else starts.gather(1, order)
        with recorder:
            hidden, _ = decoder.hidden(ids, document_starts=starts)
        back = None if order is None else order.argsort(dim=1)

        def in_place(values: Tensor, dim: int) -> Tensor:
            """Tokens back in their columns."""
            if back is None:
                return values
            shape = [1] * values.dim()
            shape[0], shape[dim] = back.shape
            return values.take_along_dim(back.view(shape), dim)

        def last(values: Tensor, dim: int) -> Tensor:
            """The wanted columns; if these are all, the very tensor."""
            columns = values.shape[dim]
            return values if columns == wanted else values.narrow(dim, columns - wanted, wanted)

        hidden = last(rows.fill(in_place(hidden, 1)), 1)
        states = [last(in_place(each, 1), 1) for each in recorder.take_hidden(ids.shape[1])]
        weights = [last(in_place(each, 2), 2) for each in recorder.take_attentions(ids.shape[1])]
        if back is not None:
            weights = [each.take_along_dim(back[:, None, None], 3) for each in weights]
        return _output(hidden, cache, recorder.of_all_layers(states), weights)

    @torch.compiler.disable  # torch.compile does not see what C++ writes
    def _sequential(
        self, decoder: Decoder, rows: Rows, cache: GoldFinchCache, recorder: Recorder, wanted: int
    ) -> BaseModelOutputWithPast:
        """Each row continues its sequence, with the GOLD layers only where outputs are wanted."""
        if not recorder.is_active:
            # Tensors of inference mode could not be changed in place.
            return _output(cache.read(decoder, rows, wanted).clone(), cache, [], [])
        states: dict[int, list[Tensor]] = {}
        weights: dict[int, list[Tensor]] = {}

        def take(row: int) -> None:
            count = rows.num_wanted(row, wanted)
            states[row] = [each[0] for each in recorder.take_hidden(count)]
            weights[row] = [each[0].transpose(0, 1) for each in recorder.take_attentions(count)]

        with recorder:
            hidden = cache.read(decoder, rows, wanted, take)
        _, is_token = cache.ids()
        for row, of_layers in weights.items():  # (count, H, tokens of the row) -> (count, H, columns)
            columns = is_token[row].to(hidden.device)
            for layer, each in enumerate(of_layers):
                spread = each.new_zeros(*each.shape[:2], len(columns))
                spread[..., columns] = each
                of_layers[layer] = spread
        in_rows = partial(rows.together, wanted=wanted)
        return _output(
            hidden.clone(),
            cache,
            recorder.of_all_layers(in_rows(states)),
            [each.transpose(1, 2) for each in in_rows(weights)],
        )


def _is_expansion_offloaded(decoder: Decoder) -> bool:
    """Whether accelerate keeps what expands the key cache on disk or in RAM, and loads it for its own forward pass."""
    modules = [decoder.token_cat, *(block.time_mix for block in decoder.blocks if isinstance(block.time_mix, Gold))]
    return any(module is not None and next(module.parameters()).is_meta for module in modules)


def _output(
    hidden: Tensor, cache: GoldFinchCache | None, states: list[Tensor | None], weights: list[Tensor]
) -> BaseModelOutputWithPast:
    # By convention the last is what the head reads.
    if states and states[-1] is not None:
        states = [*states[:-1], hidden]
    return BaseModelOutputWithPast(
        last_hidden_state=hidden,
        cache=cache,
        hidden_states=cast(tuple[torch.FloatTensor, ...], tuple(states)) or None,
        attentions=tuple(weights) or None,
    )
