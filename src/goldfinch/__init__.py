"""GoldFinch: hybrid language models with linear pre-fill and a tiny compressed key cache (arXiv 2407.12077).

>>> import goldfinch as gf
>>> lm = gf.load("runs/quickstart")                         # weights + tokenizer + config
>>> context = lm.read("Call me Ishmael.")
>>> print("".join(context.generate(max_tokens=50, seed=0)))
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["build", "load"]

if TYPE_CHECKING:
    from goldfinch.inference.language_model import build, load


def __getattr__(name: str) -> Any:
    """Import the library proper on first use, so that `import goldfinch` and `goldfinch --help` load no torch."""
    if name in __all__:
        from goldfinch.inference import language_model

        return getattr(language_model, name)
    raise AttributeError(f"module 'goldfinch' has no attribute {name!r}")
