"""`goldfinch chat`: a conversation with a model in the terminal."""

import dataclasses

import tyro

from goldfinch.cli.arguments import parse
from goldfinch.cli.chat_options import ChatOptions
from goldfinch.cli.contexts import ModelOrContextPath
from goldfinch.cli.conversation import Conversation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat(ChatOptions):
    """Chat with a model in the terminal. Ctrl-C ends an answer; /help lists commands, /exit or Ctrl-D leaves.

    Without a terminal, each line of standard input is a message, and only the answers go to standard output.

    Messages are written as the model folder's chat template says, by default in RWKV's chat format: "User: ...", blank
    line, "Assistant:". For a model that was trained on plain text, use --plain, which continues your line.

    hf:OWNER/NAME is a model on the Hugging Face Hub.
    """

    source: tyro.conf.Positional[ModelOrContextPath]
    """Model folder, or a context file from `goldfinch read`: the conversation then follows what was read, and the file
    does not change."""

    def run(self) -> None:
        """Take turns until the user ends the conversation."""
        Conversation(self.session(self.open(self.source)), self.generation_options()).run()


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    parse(Chat, "chat", args).run()
