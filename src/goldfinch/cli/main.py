"""`goldfinch COMMAND`: runs one command, and prints errors that users can fix as one line."""

import contextlib
import errno
import importlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator

from goldfinch import __version__, malloc
from goldfinch.cli.terminal import replace_what_cannot_be_encoded, shown
from goldfinch.errors import UserError
from goldfinch.settings import did_you_mean

COMMANDS = {
    "quickstart": "train a small GoldFinch on Moby-Dick in minutes and generate text with it",
    "train": "train a model from a preset, a config file or both",
    "compare": "train several models on the same data and compare them in one table",
    "experiment": "experiments: associative recall, length extrapolation, pass keys",
    "read": "prefill files once and save the context (.gfc)",
    "ask": "ask questions about a saved context",
    "cache": "inspect, search and verify a .gfc context file",
    "generate": "generate text from a prompt",
    "chat": "chat with a model in the terminal",
    "serve": "OpenAI's API on this machine",
    "evaluate": "benchmarks of lm-eval, or the loss of plain text",
    "bench": "measure speed and memory on this machine",
    "info": "parameters, FLOPs and memory of a preset or a run",
    "doctor": "versions, processor, compiler and GPUs: what a bug report needs",
    "convert": "convert between RWKV .pth and goldfinch folders",
    "export": "write a model for the Hugging Face Hub, llama.cpp or ONNX Runtime",
    "quantize": "round a model's matrices to integers of 8 bits",
    "upgrade": "add GOLD layers to a pre-trained Finch",
    "data": "prepare, verify and export training data",
}


def main() -> None:
    """Run one command; exits with 0, 2 for an error of the user's, 130 when interrupted."""
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Run the command that `args` name and return the exit code."""
    replace_what_cannot_be_encoded()
    try:
        with _log_to_stderr():
            _dispatch(args or ["--help"])
    except UserError as error:
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:
        # Whoever read our output has closed the pipe: print nothing more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        # A full disk, missing permissions: the message names the file where the system knows it.
        return _fail(_reason(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    return 0


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(shown(f"goldfinch: {record.getMessage()}", sys.stderr), file=sys.stderr)


@contextlib.contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Show what the library logs."""
    logger, handler = logging.getLogger("goldfinch"), _StderrHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _dispatch(args: list[str]) -> None:
    name, *rest = args
    if name in ("-h", "--help") or args == ["help"]:
        print(_help(shutil.get_terminal_size().columns))
    elif name == "help":
        _dispatch([*rest, "--help"])
    elif name in ("-V", "--version"):
        print(f"goldfinch {__version__}")
    elif name == "--completion":
        from goldfinch.cli.completion import completion

        if len(rest) != 1:
            raise UserError("--completion needs the name of a shell: bash, zsh or fish")
        print(completion(rest[0], list(COMMANDS)))
    elif name in COMMANDS:
        malloc.tune()  # settings of the whole process are the command line's, not the library's
        importlib.import_module(f"goldfinch.cli.{name}").main(rest)
    else:
        raise UserError(f"unknown command {name!r}; {did_you_mean(name, list(COMMANDS))}")


def _fail(message: str, exit_code: int) -> int:
    if message:  # empty where another process of the run prints it
        line = message.replace("\n", "\\n")  # of a name
        print(shown(f"goldfinch: {line}", sys.stderr), file=sys.stderr)
    return exit_code


def _reason(error: OSError) -> str:
    """What the system says, without its number: runs/x: Permission denied."""
    if error.strerror is None:
        return str(error)
    if error.filename is None:
        no_room = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
        return f"cannot write the output: {error.strerror}" if no_room else error.strerror
    return f"{error.filename}: {error.strerror}"


def _help(width: int) -> str:
    from goldfinch.cli import usage

    return "\n".join(
        [
            "usage: goldfinch COMMAND [OPTIONS]\n",
            usage.wrap("GoldFinch language models: linear prefill, a tiny compressed key cache.", width),
            "\ncommands:",
            *(usage.entry(name, what, width, max(map(len, COMMANDS)) + 4) for name, what in COMMANDS.items()),
            "",
            usage.wrap(
                "Start with `goldfinch quickstart`; `goldfinch COMMAND --help` explains each command. "
                "`goldfinch --completion bash|zsh|fish` prints a script that completes commands and options in your "
                "shell.",
                width,
            ),
        ]
    )
