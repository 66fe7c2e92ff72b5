"""`goldfinch COMMAND`: finds the command's file, runs it, and turns errors that users can mend into one line."""

import importlib
import os
import sys

from goldfinch import __version__
from goldfinch.errors import UserError
from goldfinch.settings import did_you_mean

COMMANDS = {
    "quickstart": "train a small GoldFinch on Moby-Dick in minutes and watch it write",
    "train": "train a model from a preset, a config file or both",
    "compare": "train several models on the same data and put them into one table",
    "experiment": "recall of pairs, and loss far beyond the trained length, as in the paper",
    "read": "read files once and keep what the model remembers of them in a small file",
    "ask": "ask what was read, as often as you like",
    "cache": "look into such a file: what it holds, its text, whether it is whole",
    "generate": "let a model write on from a prompt",
    "chat": "write with a model in turns, in the terminal",
    "bench": "measure a model on this machine",
    "info": "parameters, FLOPs and memory of a preset or a run",
    "convert": "published .pth checkpoints to our folders and back",
    "upgrade": "GOLD layers for a pre-trained Finch",
    "data": "make, check and export what models train on",
}


def main() -> None:
    """Run one command; exits with 0, 2 for an error of the user's, 130 when interrupted."""
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Run the command that `args` name and return the exit code."""
    try:
        _dispatch(args or ["--help"])
    except UserError as error:
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:
        # The reader of our output has left; nothing is left to say to it, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        # A full disk, a missing right: the message names the file where the system knows it.
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    return 0


def _dispatch(args: list[str]) -> None:
    name, *rest = args
    if name in ("-h", "--help"):
        print(_help())
    elif name in ("-V", "--version"):
        print(f"goldfinch {__version__}")
    elif name in COMMANDS:
        importlib.import_module(f"goldfinch.cli.{name}").main(rest)
    else:
        raise UserError(f"unknown command {name!r}; {did_you_mean(name, list(COMMANDS))}")


def _fail(message: str, exit_code: int) -> int:
    if message:  # none where another process of the run tells it
        print(f"goldfinch: {message}", file=sys.stderr)
    return exit_code


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    return (
        "usage: goldfinch COMMAND [OPTIONS]\n\n"
        "GoldFinch language models: linear pre-fill, a tiny compressed key cache.\n\n"
        f"commands:\n{commands}\n\n"
        "Start with `goldfinch quickstart`; `goldfinch COMMAND --help` explains each."
    )
