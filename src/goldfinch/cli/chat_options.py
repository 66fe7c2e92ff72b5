"""What `ask` and `chat` share: how messages are written, and how answers are sampled."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from goldfinch.cli.contexts import DEFAULT_MAX_TOKENS, ContextOptions
from goldfinch.inference.sampling import Sampling

if TYPE_CHECKING:
    from goldfinch.inference.chat import ChatSession
    from goldfinch.inference.context import Context


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatOptions(ContextOptions):
    """Options of a conversation."""

    plain: bool = False
    """No chat format: the model continues your text as it is. For models trained on plain text."""
    user: str = "User"
    """Your name in RWKV's chat format."""
    assistant: str = "Assistant"
    """The model's name in RWKV's chat format."""
    max_tokens: int = DEFAULT_MAX_TOKENS
    """Maximum number of tokens in an answer."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling(
        temperature=1.0, top_p=0.7, presence_penalty=0.3, frequency_penalty=0.3, penalty_decay=0.996
    )
    """Sampling; the defaults are those recommended for RWKV's chat models."""

    def session(self, context: "Context") -> "ChatSession":
        """A conversation after what a context holds, in the format of the model's folder or of the options."""
        from goldfinch.data.chat_template import ChatTemplate
        from goldfinch.inference.chat import ChatSession

        if self.plain:
            template = ChatTemplate.plain()
        else:
            stored = ChatTemplate.load(context.model_folder) if context.model_folder is not None else None
            template = dataclasses.replace(stored or ChatTemplate(), user=self.user, assistant=self.assistant)
        return ChatSession(context, template)

    def generation_options(self) -> dict[str, Any]:
        """Arguments of `ChatSession.ask`."""
        return {
            "max_tokens": self.max_tokens,
            "sampling": self.sampling,
            "stop": self.sampling.stop,
            "max_draft_tokens": self.max_draft_tokens,
        }
