"""From generated tokens to text: stop strings, characters split over tokens, and where the context must end."""

from collections.abc import Sequence
from typing import Literal

from goldfinch.data.tokenizers import StreamDecoder, Tokenizer

FinishReason = Literal["stop", "length"]


class TextStream:
    """The text of one generation, token by token.

    Text that might be the start of a stop string is held back until that is decided.

    Args:
        tokenizer: None for a model of token ids only, whose text is empty.
        stop: strings before which the text ends.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop: Sequence[str] = ()) -> None:
        self._decoder = StreamDecoder(tokenizer) if tokenizer is not None else None
        self._stop = [string for string in stop if string]
        self._held = ""
        self._ends: list[int | None] = []
        self.text = ""
        """What was released so far."""
        self.stopped = False
        """Whether a stop string was found."""

    @property
    def is_holding(self) -> bool:
        """Whether some text is held back."""
        return bool(self._held) or (bool(self._ends) and self._ends[-1] is None)

    def push(self, token: int) -> str:
        """Add a token; returns the text that is certain now. With `stopped`, that is the last of it."""
        complete = True
        if self._decoder is not None:
            self._held += self._decoder.push(token)
            complete = not self._decoder.is_inside_character
        self._ends.append(len(self.text) + len(self._held) if complete else None)
        found = [position for string in self._stop if (position := self._held.find(string)) >= 0]
        if found:
            self.stopped = True
            return self._release(min(found))
        starts = (
            length
            for string in self._stop
            for length in range(min(len(string) - 1, len(self._held)), 0, -1)
            if self._held.endswith(string[:length])
        )
        return self._release(len(self._held) - max(starts, default=0))

    def flush(self) -> str:
        """End without a stop string: the text that was held back, and U+FFFD for an incomplete character."""
        if self.stopped:
            return ""
        if self._decoder is not None:
            self._held += self._decoder.flush()
        return self._release(len(self._held))

    def _release(self, length: int) -> str:
        piece, self._held = self._held[:length], self._held[length:]
        self.text += piece
        return piece

    def split_at_end(self) -> tuple[int, str]:
        """After a stop string: how many tokens lie entirely before it, and the text between their end and its start.

        That text is part of a token that also holds the start of the stop string, or follows such a token.
        """
        for count in range(len(self._ends), 0, -1):
            end = self._ends[count - 1]
            if end is not None and end <= len(self.text):
                return count, self.text[end:]
        return 0, self.text
