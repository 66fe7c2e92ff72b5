"""What lets `trust_remote_code=True` load a folder of ours: `auto_map` in config.json, and the file that it names."""

from pathlib import Path

from goldfinch.files import write_text

CODE_FILE = "modeling_goldfinch.py"
# transformers refuses a file whose imports it does not find, without the command to install them, except in `try`.
CODE = '''\
"""The config and the models for transformers: those of the package goldfinch, which must be installed."""

try:
    from goldfinch.huggingface import (
        GoldFinchConfig,
        GoldFinchForCausalLM,
        GoldFinchForSequenceClassification,
        GoldFinchForTokenClassification,
        GoldFinchModel,
    )
except ImportError as error:
    raise ImportError(f"this model needs the package goldfinch: pip install 'goldfinch[hf]' ({error})") from error

__all__ = [
    "GoldFinchConfig",
    "GoldFinchForCausalLM",
    "GoldFinchForSequenceClassification",
    "GoldFinchForTokenClassification",
    "GoldFinchModel",
]
'''
_MODULE = CODE_FILE.removesuffix(".py")
AUTO_MAP = {
    "AutoConfig": f"{_MODULE}.GoldFinchConfig",
    "AutoModel": f"{_MODULE}.GoldFinchModel",
    "AutoModelForCausalLM": f"{_MODULE}.GoldFinchForCausalLM",
    "AutoModelForSequenceClassification": f"{_MODULE}.GoldFinchForSequenceClassification",
    "AutoModelForTokenClassification": f"{_MODULE}.GoldFinchForTokenClassification",
}
"""Class of transformers -> module and class."""


def save_code(folder: Path) -> None:
    """Write the file that `AUTO_MAP` names."""
    write_text(folder / CODE_FILE, CODE)
