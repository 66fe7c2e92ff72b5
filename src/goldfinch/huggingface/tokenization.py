"""Tokenizers as `transformers` has them, and back."""

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from goldfinch.data.chat_template import ChatTemplate
from goldfinch.data.tokenizer_config import tokenizer_settings
from goldfinch.data.tokenizers import Tokenizer, parse_tokenizer
from goldfinch.errors import UserError


def to_huggingface(tokenizer: Tokenizer, chat_template: ChatTemplate | None = None) -> PreTrainedTokenizerFast:
    """The same tokenizer as `transformers.AutoTokenizer` loads it from a model folder.

    >>> to_huggingface(ByteTokenizer())("Hi", return_offsets_mapping=True)["offset_mapping"]
    [(0, 1), (1, 2)]

    Its ids are those of `tokenizer.encode`, with one difference: `transformers` reads the names of special tokens in a
    text, such as <|endoftext|>, as these tokens. Pass `split_special_tokens=True` for text that may mention them.

    Args:
        tokenizer: ours.
        chat_template: what `apply_chat_template` writes conversations with; None: it has no template.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.to_backend(),
        chat_template=None if chat_template is None else chat_template.standalone,
        **tokenizer_settings(tokenizer),
    )


def from_huggingface(tokenizer: PreTrainedTokenizerBase) -> tuple[Tokenizer, ChatTemplate | None]:
    """Our tokenizer and chat template from those of `transformers`; the template is None if it has none.

    Raises:
        UserError: it is not a byte-level tokenizer of the library `tokenizers`, or its template is not valid.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(
            f"{type(tokenizer).__name__} is written in Python: only tokenizers with a tokenizer.json can be converted"
        )
    name = tokenizer.name_or_path or "the tokenizer"
    source = tokenizer.chat_template
    if isinstance(source, dict):  # one for each purpose
        source = source.get("default")
    template = None if source is None else ChatTemplate.from_standalone(source)
    return parse_tokenizer(tokenizer.backend_tokenizer.to_str(), name), template
