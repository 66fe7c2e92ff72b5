"""Reading documents into a context that remembers them by name."""

import unicodedata
from collections.abc import Callable, Iterable

from goldfinch.data.documents import Document as TextDocument
from goldfinch.inference.context import Context
from goldfinch.inference.context_file.description import UNSHOWN, Document
from goldfinch.inference.token_ids import require_tokenizer


def read_documents(
    context: Context, pieces: Iterable[TextDocument], progress: Callable[[int, float], None] | None = None
) -> int:
    """Read documents, which may come in pieces, and add them to `Context.documents`.

    As in training, documents are separated by an end of text; the last has none, so that generation continues it.

    Args:
        context: grows; its model has a tokenizer.
        pieces: of `goldfinch.data.documents.read_documents`.
        progress: called now and then with the number of tokens read since the last call, and with the position in the
            input, in bytes.

    Returns:
        The number of documents.

    Raises:
        UserError: the model has no tokenizer.
    """
    tokenizer = require_tokenizer(context.tokenizer)
    start: int | None = None
    position = 0.0
    num_documents = 0
    for piece in pieces:
        ids = tokenizer.encode(piece.text, special_tokens=piece.is_chat)
        if start is None:
            separator = [tokenizer.end_of_text] if len(context) else []
            start = len(context) + len(separator)
            ids = separator + ids
        bytes_per_token = (piece.position - position) / len(ids)

        def advance(tokens: int, bytes_per_token: float = bytes_per_token) -> None:
            nonlocal position
            position += tokens * bytes_per_token
            if progress is not None:
                progress(tokens, position)

        context.read(ids, progress=advance)
        if not piece.continues:
            context.documents.append(Document(name=shown_name(piece.name), start=start, stop=len(context)))
            num_documents += 1
            start = None
    return num_documents


def shown_name(name: str) -> str:
    """A file's name with U+FFFD for what cannot be shown: control characters, and bytes that are not UTF-8."""
    return "".join("\ufffd" if unicodedata.category(each) in UNSHOWN else each for each in name)
