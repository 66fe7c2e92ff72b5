"""The models of transformers with a head: for generation and training, and for classification."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin
from transformers.modeling_layers import GenericForSequenceClassification, GenericForTokenClassification
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from goldfinch.huggingface.cache import GoldFinchCache
from goldfinch.huggingface.configuration import GoldFinchConfig
from goldfinch.huggingface.modeling import GoldFinchModel, GoldFinchPreTrainedModel, accept_past_key_values
from goldfinch.inference.prefill import next_token_logits
from goldfinch.ops.cross_entropy import linear_cross_entropy

IGNORED = -100
"""A label of transformers that counts for nothing."""


class GoldFinchForCausalLM(GoldFinchPreTrainedModel, GenerationMixin):
    """A `Decoder` with its head, for training and `generate`."""

    _is_stateful = False  # the cache can be cropped, so drafts can be taken back

    def __init__(self, config: GoldFinchConfig) -> None:
        super().__init__(config)
        self.model = GoldFinchModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    @accept_past_key_values
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: GoldFinchCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the next token; the arguments of `GoldFinchModel.forward`, and:

        Args:
            labels: (B, T) int64, -100 for none: the loss is that of predicting each from the tokens before it.
            logits_to_keep: only the logits of the last n tokens, or of these columns; 0: of all. With a cache, only the
                last n go through the GOLD layers.
            **kwargs: `num_items_in_batch` and `shift_labels`, as `Trainer` gives them.
        """
        last = logits_to_keep if isinstance(logits_to_keep, int) else 0
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            cache,
            use_cache,
            output_hidden_states,
            output_attentions,
            num_wanted=last or None,
            head=self.lm_head,
            inputs_embeds=kwargs.get("inputs_embeds"),
        )
        hidden = outputs.last_hidden_state[:, -last:]  # 0: all
        if isinstance(logits_to_keep, Tensor):
            hidden = hidden[:, logits_to_keep]
        has_labels = labels is not None or kwargs.get("shift_labels") is not None
        loss = logits = None
        if has_labels and self.training and not self.config.logits_in_training:
            loss = self._loss_without_logits(hidden, labels, **kwargs)
        else:
            logits = self._logits(hidden)
            if has_labels:
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _logits(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, V)."""
        if torch.is_grad_enabled():
            return self.lm_head(hidden)
        # A few rows are C++'s where that is faster.
        logits = next_token_logits(self.model.decoder(self.lm_head), hidden.flatten(0, 1))
        return logits.unflatten(0, hidden.shape[:2]).to(hidden.dtype)

    def _loss_without_logits(
        self,
        hidden: Tensor,
        labels: Tensor | None,
        num_items_in_batch: Tensor | int | None = None,
        shift_labels: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """The same as `loss_function` of the logits, which never exist all at once."""
        if shift_labels is None and labels is not None:
            shift_labels = nn.functional.pad(labels, (0, 1), value=IGNORED)[:, 1:]
        targets = cast(Tensor, shift_labels).flatten().to(hidden.device)
        counted = targets != IGNORED
        total = linear_cross_entropy(hidden.flatten(0, 1), self.lm_head.weight, targets.clamp(min=0), counted)
        return total / (counted.sum() if num_items_in_batch is None else num_items_in_batch)

    def _prepare_cache_for_generation(  # type: ignore[override]  # which returns nothing, whatever it declares
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *_: Any
    ) -> None:
        """Make our cache, or take the caller's."""
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation={generation_config.cache_implementation!r} does not work with a GoldFinch: "
                'its cache is small already, and GoldFinchCache(config, latents="int8") makes it smaller'
            )
        if model_kwargs.get("cache") is not None:
            model_kwargs["cache"]._is_user_defined = True
        elif generation_config.use_cache is not False:
            model_kwargs["cache"] = GoldFinchCache(self.config)

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As in transformers, which learns from the missing `inputs_embeds` that these cannot be given."""
        return super().prepare_inputs_for_generation(input_ids, *args, **kwargs)

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. With `cache=`, `inputs` may also be only what follows what the cache has read."""
        cache = kwargs.get("cache")
        ids = inputs if inputs is not None else kwargs.get("input_ids")
        if isinstance(cache, GoldFinchCache) and cache.get_seq_length() and ids is not None and not cache.begins(ids):
            past = cache.ids()[1].to(ids.device)
            mask = kwargs.get("attention_mask")
            mask = torch.ones_like(ids) if mask is None else mask
            if mask.shape == ids.shape:
                kwargs["attention_mask"] = torch.cat([past.to(mask.dtype), mask], dim=1)
        return super().generate(inputs, *args, **kwargs)


class GoldFinchForSequenceClassification(GenericForSequenceClassification, GoldFinchPreTrainedModel):
    """A `Decoder` whose last token is classified."""


class GoldFinchForTokenClassification(GenericForTokenClassification, GoldFinchPreTrainedModel):
    """A `Decoder` whose tokens are classified."""
