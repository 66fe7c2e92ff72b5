"""A conversation in the terminal: reading messages and commands, printing answers."""

import contextlib
import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goldfinch.cli.contexts import print_stream
from goldfinch.errors import UserError
from goldfinch.files import write_text
from goldfinch.settings import did_you_mean

if TYPE_CHECKING:
    from goldfinch.inference.chat import ChatSession

COMMANDS = {
    "/help": "show this list",
    "/retry": "answer the last message again",
    "/clear": "forget the conversation; what was read before it stays",
    "/save FILE": "save as a context file (FILE.gfc, for `goldfinch chat FILE.gfc`) or as text (any other name)",
    "/exit": "leave; so does Ctrl-D",
}
QUOTES = '"""'


class Conversation:
    """Reads messages until the user leaves. Without a terminal, each line of standard input is a message.

    Args:
        session: what answers.
        options: of `ChatSession.ask`.
    """

    def __init__(self, session: "ChatSession", options: dict[str, Any]) -> None:
        self._session = session
        self._options = options
        self._is_interactive = sys.stdin.isatty()
        plain = session.template.is_plain
        self._prompt = "> " if plain else f"{session.template.user}: "
        self._label = "" if plain else f"{session.template.assistant}:"

    def run(self) -> None:
        """Take turns until the user leaves.

        Raises:
            UserError: standard input is not UTF-8 text, or the model cannot answer.
        """
        if self._is_interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 (gives input() line editing and history)
            _note(f"/help lists commands, /exit or Ctrl-D leaves; {QUOTES} starts and ends a message of several lines")
        while (message := self._read_message()) is not None:
            command = re.fullmatch(r"(/[a-z]+)(?:\s+(.*))?", message)
            if command is None:
                if message.strip():
                    self._answer(message.strip())
                continue
            if command[1] == "/exit":
                return
            try:
                self._run_command(command[1], command[2] or "")
            except UserError as error:
                _note(str(error))

    def _read_message(self) -> str | None:
        """The next message or command; None at the end."""
        lines: list[str] = []
        while True:
            try:
                line = self._read_line("... " if lines else self._prompt)
            except EOFError:
                if self._is_interactive:
                    print()
                return "\n".join(lines) if lines else None
            except KeyboardInterrupt:
                if not self._is_interactive:
                    raise
                print()
                lines = []
                continue
            lines.append(line)
            if not self._is_interactive or not lines[0].startswith(QUOTES):
                return line.rstrip()
            text = "\n".join(lines).strip().removeprefix(QUOTES)
            if text.endswith(QUOTES):
                return " " + text.removesuffix(QUOTES)  # no command, whatever it begins with

    def _read_line(self, prompt: str) -> str:
        """A line, without its end. Prompts belong to the terminal, never to the output."""
        if self._is_interactive and not sys.stdout.isatty():
            print(prompt, end="", file=sys.stderr, flush=True)
        try:
            return input(prompt) if self._is_interactive and sys.stdout.isatty() else input()
        except UnicodeDecodeError as error:
            raise UserError(f"standard input is not UTF-8 text: {error}") from error

    def _answer(self, message: str) -> None:
        """Print the answer as it is generated; Ctrl-C ends it, not the program."""
        if self._label and self._is_interactive:
            print(self._label, end="", flush=True)
        ends_answer = [KeyboardInterrupt] if self._is_interactive else []
        try:
            stream = self._session.ask(message, **self._options)
        except KeyboardInterrupt:
            if not self._is_interactive:
                raise
            self._session.undo()
        else:
            with stream, contextlib.suppress(*ends_answer):
                print_stream(stream, strip=not self._is_interactive)
        print("\n" if self._is_interactive else "", flush=True)

    def _run_command(self, name: str, argument: str) -> None:
        known: dict[str, Callable[[str], None]] = {
            "/help": lambda _: _help(),
            "/retry": lambda _: self._retry(),
            "/clear": lambda _: self._clear(),
            "/save": self._save,
        }
        if name not in known:
            raise UserError(f"unknown command {name}; {did_you_mean(name, [*known, '/exit'])} (a space first sends it)")
        known[name](argument)

    def _retry(self) -> None:
        message = self._session.undo()
        if message is None:
            raise UserError("no message to answer again: ask something first")
        sampling = self._options["sampling"]
        if sampling.seed is not None:  # or the answer would be the same
            self._options["sampling"] = dataclasses.replace(sampling, seed=sampling.seed + 1)
        self._answer(message)

    def _clear(self) -> None:
        while self._session.undo() is not None:
            pass
        _note("the conversation is forgotten")

    def _save(self, name: str) -> None:
        path = Path(name)
        if not name:
            raise UserError("/save needs the name of a file, such as /save talk.gfc")
        if path.exists():
            raise UserError(f"{path} exists: choose another name")
        self._session.keep_answer()
        try:
            if path.suffix == ".gfc":
                self._session.context.save(path)
            else:
                write_text(path, self._session.template.render(self._session.messages, add_generation_prompt=False))
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        _note(f"saved {path}")


def _help() -> None:
    width = max(map(len, COMMANDS))
    for name, text in COMMANDS.items():
        _note(f"{name:<{width}}  {text}")
    _note(f"{QUOTES:<{width}}  starts and ends a message of several lines; Ctrl-C ends an answer")


def _note(text: str) -> None:
    """Print a line that does not belong to the conversation."""
    print(text, file=sys.stderr, flush=True)
