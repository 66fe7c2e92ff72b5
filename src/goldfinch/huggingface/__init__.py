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
from goldfinch.ops.wkv6 import make_traceable

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

make_traceable()  # PyTorch's compiler, which takes seconds to import, is there already: transformers imports it
AutoConfig.register(MODEL_TYPE, GoldFinchConfig, exist_ok=True)
for auto, model in (
    (AutoModel, GoldFinchModel),
    (AutoModelForCausalLM, GoldFinchForCausalLM),
    (AutoModelForSequenceClassification, GoldFinchForSequenceClassification),
    (AutoModelForTokenClassification, GoldFinchForTokenClassification),
):
    auto.register(GoldFinchConfig, model, exist_ok=True)
