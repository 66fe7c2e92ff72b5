"""GoldFinch in transformers: config, models, cache and tokenizers. Importing this registers the Auto classes.

import goldfinch.huggingface
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("runs/quickstart")
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from goldfinch.checkpoint.config_json import MODEL_TYPE
from goldfinch.huggingface.cache import GoldFinchCache
from goldfinch.huggingface.configuration import GoldFinchConfig
from goldfinch.huggingface.heads import (
    GoldFinchForCausalLM,
    GoldFinchForSequenceClassification,
    GoldFinchForTokenClassification,
)
from goldfinch.huggingface.modeling import GoldFinchModel
from goldfinch.huggingface.training import PreparedDataset, build_optimizers, lora_targets

__all__ = [
    "GoldFinchCache",
    "GoldFinchConfig",
    "GoldFinchForCausalLM",
    "GoldFinchForSequenceClassification",
    "GoldFinchForTokenClassification",
    "GoldFinchModel",
    "PreparedDataset",
    "build_optimizers",
    "lora_targets",
]

AutoConfig.register(MODEL_TYPE, GoldFinchConfig, exist_ok=True)
for auto, model in (
    (AutoModel, GoldFinchModel),
    (AutoModelForCausalLM, GoldFinchForCausalLM),
    (AutoModelForSequenceClassification, GoldFinchForSequenceClassification),
    (AutoModelForTokenClassification, GoldFinchForTokenClassification),
):
    auto.register(GoldFinchConfig, model, exist_ok=True)
