"""Answers as `/v1/completions` and `/v1/chat/completions` give them, whole and in chunks."""

import dataclasses
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from goldfinch.data.tokenizers import Tokenizer
from goldfinch.inference.score import TokenLogprob
from goldfinch.serving.tasks import Answer, Piece, PromptCounts

Json = dict[str, Any]


class AnswerFormat(ABC):
    """The answers to one request.

    Args:
        model: its name.
        tokenizer: of the model.
    """

    id_prefix: str
    whole_kind: str
    chunk_kind: str

    def __init__(self, model: str, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._base = {"id": f"{self.id_prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, answers: Sequence[Answer]) -> Json:
        """All answers, in order."""
        choices = [
            self._choice(answer.index, self.message(answer), answer.generation.finish_reason) for answer in answers
        ]
        return self._base | {"object": self.whole_kind, "choices": choices, "usage": usage(answers)}

    def begin(self, index: int) -> Json | None:
        """The chunk before the text of an answer, if there is one."""
        return None

    def piece(self, piece: Piece) -> Json:
        """A chunk of text."""
        return self._chunk(self._choice(piece.index, self.delta(piece.text, piece.logprobs)))

    def end(self, answer: Answer) -> Json:
        """The last chunk of an answer."""
        content = self.delta("", answer.rest or None)
        return self._chunk(self._choice(answer.index, content, answer.generation.finish_reason))

    def usage(self, answers: Sequence[Answer]) -> Json:
        """The last chunk of all, if the client wants it."""
        return self._chunk() | {"usage": usage(answers)}

    @abstractmethod
    def message(self, answer: Answer) -> Json:
        """What a whole choice has of its own."""

    @abstractmethod
    def delta(self, text: str, logprobs: Sequence[TokenLogprob] | None) -> Json:
        """What the choice of a chunk has of its own."""

    def _chunk(self, *choices: Json) -> Json:
        return self._base | {"object": self.chunk_kind, "choices": list(choices)}

    def _choice(self, index: int, content: Json, finish_reason: str | None = None) -> Json:
        return {"index": index, "finish_reason": finish_reason, "logprobs": None} | content

    def _token(self, id: int) -> str:
        """A token as text; `bytes:` and its bytes if they are none, as OpenAI writes it."""
        content = self.tokenizer.token_bytes(id)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


class ChatFormat(AnswerFormat):
    """`/v1/chat/completions`.

    Args:
        model, tokenizer: see `AnswerFormat`.
        strips_space: whether the space before an answer belongs to the chat template.
    """

    id_prefix, whole_kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, model: str, tokenizer: Tokenizer, strips_space: bool) -> None:
        super().__init__(model, tokenizer)
        self._strips_space = strips_space
        self._has_text = set[int]()

    def message(self, answer: Answer) -> Json:
        """See `AnswerFormat`."""
        text = answer.generation.text
        message = {"role": "assistant", "content": text.removeprefix(" ") if self._strips_space else text}
        return {"message": message, "logprobs": self._logprobs(answer.generation.logprobs)}

    def begin(self, index: int) -> Json:
        """See `AnswerFormat`."""
        return self._chunk(self._choice(index, {"delta": {"role": "assistant", "content": ""}}))

    def piece(self, piece: Piece) -> Json:
        """See `AnswerFormat`."""
        if self._strips_space and piece.index not in self._has_text:
            piece = dataclasses.replace(piece, text=piece.text.removeprefix(" "))
        self._has_text.add(piece.index)
        return super().piece(piece)

    def delta(self, text: str, logprobs: Sequence[TokenLogprob] | None) -> Json:
        """See `AnswerFormat`."""
        return {"delta": {"content": text} if text else {}, "logprobs": self._logprobs(logprobs)}

    def _logprobs(self, logprobs: Sequence[TokenLogprob] | None) -> Json | None:
        if logprobs is None:
            return None
        return {
            "content": [
                self._entry(each.token_id, each.logprob) | {"top_logprobs": [self._entry(*top) for top in each.top]}
                for each in logprobs
            ],
            "refusal": None,
        }

    def _entry(self, id: int, logprob: float) -> Json:
        return {"token": self._token(id), "logprob": logprob, "bytes": list(self.tokenizer.token_bytes(id))}


class CompletionFormat(AnswerFormat):
    """`/v1/completions`.

    Args:
        model, tokenizer: see `AnswerFormat`.
        echo: the prompts of all answers, if they are wanted before them: text and ids.
    """

    id_prefix, whole_kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str, tokenizer: Tokenizer, echo: Sequence[tuple[str, Sequence[int]]] | None) -> None:
        super().__init__(model, tokenizer)
        self._echo = echo

    def message(self, answer: Answer) -> Json:
        """See `AnswerFormat`."""
        if self._echo is None:
            return self.delta(answer.generation.text, answer.generation.logprobs)
        text, ids = self._echo[answer.index]
        logprobs: list[TokenLogprob | int] | None = None
        if answer.prompt_logprobs is not None:
            logprobs = [ids[0], *answer.prompt_logprobs, *(answer.generation.logprobs or ())]
        return {"text": text + answer.generation.text, "logprobs": self._logprobs(logprobs)}

    def begin(self, index: int) -> Json | None:
        """See `AnswerFormat`."""
        return None if self._echo is None else self._chunk(self._choice(index, {"text": self._echo[index][0]}))

    def delta(self, text: str, logprobs: Sequence[TokenLogprob] | None) -> Json:
        """See `AnswerFormat`."""
        return {"text": text, "logprobs": self._logprobs(logprobs)}

    def _logprobs(self, logprobs: Sequence[TokenLogprob | int] | None) -> Json | None:
        """The first token of a text has nothing before it, so no log-probability: it is given as its id."""
        if logprobs is None:
            return None
        tokens = [self._token(each if isinstance(each, int) else each.token_id) for each in logprobs]
        offsets = [0]
        for token in tokens[:-1]:
            offsets.append(offsets[-1] + len(token))
        return {
            "tokens": tokens,
            "token_logprobs": [None if isinstance(each, int) else each.logprob for each in logprobs],
            "top_logprobs": [
                None if isinstance(each, int) else {self._token(id): logprob for id, logprob in each.top}
                for each in logprobs
            ],
            "text_offset": offsets,
        }


def usage(answers: Sequence[Answer]) -> Json:
    """Tokens of a request; answers to the same prompt have its counts in common."""
    prompts: list[PromptCounts] = list({id(answer.prompt): answer.prompt for answer in answers}.values())
    total = sum(prompt.total for prompt in prompts)
    written = sum(len(answer.generation.token_ids) for answer in answers)
    return {
        "prompt_tokens": total,
        "completion_tokens": written,
        "total_tokens": total + written,
        "prompt_tokens_details": {
            "cached_tokens": sum(prompt.cached for prompt in prompts),
            "replayed_tokens": sum(prompt.replayed for prompt in prompts),
            "computed_tokens": sum(prompt.computed for prompt in prompts),
        },
    }
