"""GoldFinch: hybrid language models with linear prefill and a tiny compressed key cache (arXiv 2407.12077).

>>> import goldfinch as gf
>>> lm = gf.load("runs/quickstart")
>>> lm.generate("Call me", max_tokens=20, temperature=0.8, seed=0).finish_reason
'length'
>>> context = lm.read("Call me Ishmael.")
>>> for piece in context.stream(max_tokens=20, seed=0):
...     print(piece, end="")  # doctest: +SKIP

What is listed in `__all__` is the public interface; everything else is internal.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that has it.
_MODULES = {
    "load": "inference.language_model",
    "build": "inference.language_model",
    "LanguageModel": "inference.language_model",
    "Context": "inference.context",
    "Sampling": "inference.sampling",
    "Grammar": "inference.grammar",
    "Generation": "inference.generation",
    "Score": "inference.score",
    "ChatTemplate": "data.chat_template",
    "CacheLevel": "cache.key_value_cache",
    "QuantizationReport": "inference.context_file.quantization",
    "ModelConfig": "config",
    "RopeConfig": "config",
    "Trainer": "training.trainer",
    "TrainConfig": "training.config",
    "OptimizerConfig": "training.config",
    "UserError": "errors",
}

__all__ = [  # noqa: RUF022 (in the order in which people meet them)
    "load",
    "build",
    "LanguageModel",
    "Context",
    "Sampling",
    "Grammar",
    "Generation",
    "Score",
    "ChatTemplate",
    "CacheLevel",
    "QuantizationReport",
    "ModelConfig",
    "RopeConfig",
    "Trainer",
    "TrainConfig",
    "OptimizerConfig",
    "UserError",
    "__version__",
]

if TYPE_CHECKING:
    from goldfinch.cache.key_value_cache import CacheLevel
    from goldfinch.config import ModelConfig, RopeConfig
    from goldfinch.data.chat_template import ChatTemplate
    from goldfinch.errors import UserError
    from goldfinch.inference.context import Context
    from goldfinch.inference.context_file.quantization import QuantizationReport
    from goldfinch.inference.generation import Generation
    from goldfinch.inference.grammar import Grammar
    from goldfinch.inference.language_model import LanguageModel, build, load
    from goldfinch.inference.sampling import Sampling
    from goldfinch.inference.score import Score
    from goldfinch.training.config import OptimizerConfig, TrainConfig
    from goldfinch.training.trainer import Trainer


def __getattr__(name: str) -> Any:
    """Import the library proper on first use, so that `import goldfinch` and `goldfinch --help` load no torch."""
    if name not in _MODULES:
        raise AttributeError(f"module 'goldfinch' has no attribute {name!r}")
    return getattr(importlib.import_module(f"goldfinch.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
