"""`goldfinch --completion SHELL`: a script that completes commands, subcommands and options."""

import contextlib
import importlib
import io
import re
from collections.abc import Mapping, Sequence

from goldfinch.cli import usage
from goldfinch.errors import UserError
from goldfinch.presets import preset_names
from goldfinch.pretrained import pretrained_names
from goldfinch.settings import did_you_mean

Words = Mapping[str, Sequence[str]]
"""What may follow the words so far: "" -> commands, "data" -> subcommands and options, "data prepare" -> options."""

# `case` tries patterns in order: a command with a subcommand comes before the command alone.
_BASH = """\
_goldfinch() {
  local key="" candidates=""
  (( COMP_CWORD > 1 )) && key="${COMP_WORDS[1]}"
  (( COMP_CWORD > 2 )) && key="$key ${COMP_WORDS[2]}"
  case "$key" in
%s
  esac
  COMPREPLY=($(compgen -W "$candidates" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -o bashdefault -F _goldfinch goldfinch"""
_ZSH = """\
#compdef goldfinch
_goldfinch() {
  local key="" candidates=""
  (( CURRENT > 2 )) && key="${words[2]}"
  (( CURRENT > 3 )) && key="$key ${words[3]}"
  case "$key" in
%s
  esac
  compadd -- ${=candidates}
  (( CURRENT > 2 )) && _files
}
compdef _goldfinch goldfinch"""
TAKE_PRESETS = {"train", "compare", "info", "bench memory", "bench speed"}
TAKE_MODELS = {"generate", "chat", "info", "bench memory", "bench speed"}
SHELLS = ("bash", "zsh", "fish")


def completion(shell: str, commands: Sequence[str]) -> str:
    """The script for a shell.

    Raises:
        UserError: an unknown shell.
    """
    if shell not in SHELLS:
        raise UserError(f"unknown shell {shell!r}; {did_you_mean(shell, list(SHELLS))}")
    words = _words(commands)
    return _fish(words) if shell == "fish" else (_BASH if shell == "bash" else _ZSH) % _cases(words)


def _words(commands: Sequence[str]) -> dict[str, list[str]]:
    """From the help of all commands and subcommands."""
    words = {"": [*commands, "--help", "--version", "--completion"]}
    for command in commands:
        text = _help(command)
        choices = re.search(r"\{([\w,]+)\}", text.partition("\n")[0])
        subcommands = choices[1].split(",") if choices is not None else []
        words[command] = [*subcommands, *_options(text)]
        for subcommand in subcommands:
            words[f"{command} {subcommand}"] = _options(_help(command, subcommand))
    words["compare"] = [*words["compare"], *(word for word in words["train"] if word not in words["compare"])]
    for key in words.keys() & TAKE_PRESETS:
        words[key] = [*words[key], *preset_names()]
    for key in words.keys() & TAKE_MODELS:
        words[key] = [*words[key], *pretrained_names()]
    return words


def _help(command: str, *subcommand: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        importlib.import_module(f"goldfinch.cli.{command}").main([*subcommand, "--help"])
    return output.getvalue()


def _options(text: str) -> list[str]:
    return list(dict.fromkeys(usage.flags(text)))


def _cases(words: Words) -> str:
    """Of a `case` statement."""
    longest_first = sorted(words, key=lambda key: -len(key.split()))
    patterns = {key: f'"{key}"' if " " in key or not key else f'"{key}"|"{key} "*' for key in longest_first}
    return "\n".join(f'    {patterns[key]}) candidates="{" ".join(words[key])}" ;;' for key in longest_first)


def _fish(words: Words) -> str:
    lines = []
    for key, candidates in words.items():
        command, _, subcommand = key.partition(" ")
        plain = [word for word in candidates if not word.startswith("-")]
        if not command:
            condition = "__fish_use_subcommand"
        elif subcommand:
            condition = f"__fish_seen_subcommand_from {command}; and __fish_seen_subcommand_from {subcommand}"
        else:
            condition = f"__fish_seen_subcommand_from {command}"
            if plain:
                condition += f"; and not __fish_seen_subcommand_from {' '.join(plain)}"
        if plain:
            lines.append(f"complete -c goldfinch -n '{condition}' -f -a '{' '.join(plain)}'")
        lines += [f"complete -c goldfinch -n '{condition}' -l {word[2:]}" for word in candidates if word not in plain]
    return "\n".join(lines)
