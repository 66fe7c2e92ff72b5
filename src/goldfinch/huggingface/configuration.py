"""`GoldFinchConfig`: the config of every layer plan as transformers wants it."""

import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from goldfinch.checkpoint.config_json import ATTENTION, MODEL_TYPE, RECURRENT, VERSION, fields_in_file, model_fields
from goldfinch.config import ModelConfig
from goldfinch.huggingface.auto_map import AUTO_MAP, save_code
from goldfinch.mixers import TIME_MIXES
from goldfinch.presets import split_plan


class GoldFinchConfig(PreTrainedConfig):
    """The shape of a model, GoldFinch or any other layer plan; the same `config.json` as that of `goldfinch.load`.

    >>> GoldFinchConfig(hidden_size=128, num_hidden_layers=3, num_attention_heads=2).time_mixes
    ['finch_c2', 'finch_c2', 'gold']

    Args:
        vocab_size: V, number of token ids.
        hidden_size: D, channels of the residual stream.
        num_hidden_layers: L.
        num_attention_heads: H, heads of D / H channels.
        time_mixes: the layer plan, from bottom to top, as in `goldfinch.ModelConfig`; None for GoldFinch's, whose upper
            third are GOLD layers.
        channel_mix: "rwkv", or "swiglu" for Llama.
        intermediate_size: width inside the channel mix; 0 for the published ratio.
        latent_ratio: D divided by the width of a compressed key.
        shift_rank, decay_rank, value_rank: ranks of low-rank parts.
        rope: rotary positions, {"base", "rescale", "rebase"}; None for none.
        max_position_embeddings: what tools take for the longest text. The model itself has no limit.
        logits_in_training: False: a forward pass with labels in training mode returns no logits, which for a large
            vocabulary are the largest tensor of a step.

    Raises:
        UserError: there is no such model.
    """

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference = ["cache"]  # noqa: RUF012  # `Trainer` adds lists to it

    vocab_size: int = 65536
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    time_mixes: list[str] | tuple[str, ...] | None = None
    channel_mix: str = "rwkv"
    intermediate_size: int = 0
    latent_ratio: int = 16
    shift_rank: int = 32
    decay_rank: int = 64
    value_rank: int = 64
    rope: dict[str, float] | None = None
    max_position_embeddings: int = 1 << 20
    use_cache: bool = True
    logits_in_training: bool = True
    tie_word_embeddings: bool = False
    layer_types: list[str] | None = None
    format_version: int = VERSION
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.tie_word_embeddings:
            raise ValueError("tie_word_embeddings: the head of a GoldFinch has weights of its own")
        if self.time_mixes is None:
            self.time_mixes = split_plan("finch_c2", "gold", self.num_hidden_layers, 3)
        self.time_mixes = list(self.time_mixes)
        self.to_model_config()  # refuses what is no model
        self.layer_types = [RECURRENT if TIME_MIXES[kind].is_recurrent else ATTENTION for kind in self.time_mixes]
        super().__post_init__(**kwargs)

    def to_model_config(self) -> ModelConfig:
        """The same for `Decoder`.

        Raises:
            UserError: there is no such model.
        """
        return ModelConfig.from_dict(model_fields(vars(self)))

    @classmethod
    def from_model_config(cls, config: ModelConfig, **kwargs: Any) -> "GoldFinchConfig":
        """The inverse; `kwargs` are further fields, such as `eos_token_id`."""
        return cls(**fields_in_file(config), **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As in transformers. What is saved, with a model or alone, `trust_remote_code=True` loads."""
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        save_code(Path(save_directory))
        self.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, push_to_hub, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Nothing: what is saved imports this package, and needs no copy of its code."""
