"""tokenizer_config.json: settings of Hugging Face's tokenizers that tokenizer.json does not hold."""

import json
from pathlib import Path

from goldfinch.data.tokenizers import Tokenizer
from goldfinch.files import write_text

TOKENIZER_CONFIG = "tokenizer_config.json"


def tokenizer_settings(tokenizer: Tokenizer) -> dict[str, str | bool]:
    """Arguments of `transformers.PreTrainedTokenizerFast`.

    The end of text is also the token that texts begin with, where a model needs one, and the padding, as in GPT-2:
    vocabularies of bytes have no other id to spare. Batches are padded on the left, where a model generates from.
    """
    end = tokenizer.end_of_text_name
    return {
        "bos_token": end,
        "eos_token": end,
        "pad_token": end,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }


def save_tokenizer_config(folder: Path, tokenizer: Tokenizer) -> None:
    """Write tokenizer_config.json, so that `transformers.AutoTokenizer` takes the tokenizer.json next to it."""
    content = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer_settings(tokenizer)}
    write_text(folder / TOKENIZER_CONFIG, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
