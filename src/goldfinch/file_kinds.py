"""What a file or folder is, by its content, and which command takes it: for errors about the wrong kind of file."""

import json
from pathlib import Path

from goldfinch.errors import UserError

MODEL_CONFIG = "config.json"
_HEADER_BYTES = 1 << 16
_USES = {
    "a model folder": 'generate from it: goldfinch generate {path} "..."',
    "a data directory": "train on it: goldfinch train --data {path} -o RUN",
    "a training checkpoint": "resume its run: goldfinch train --resume {run}",
    "a comparison": "show it: goldfinch compare {path}",
    "a context file": 'ask about it: goldfinch ask {path} "..."',
    "a .pth checkpoint": "convert it to a model folder: goldfinch convert {path} -o FOLDER",
    "a safetensors file": "give the model folder that it belongs to",
    "a GGUF file": "run it in llama.cpp, or give the model folder that it was exported from",
    "a text file": "read it into a context file: goldfinch read {path} -m MODEL -o TEXT.gfc",
}


def kind_of(path: Path) -> str | None:
    """One of the names above; None if there is nothing, or something else."""
    try:
        if path.is_dir():
            return _kind_of_folder(path)
        return _kind_of_file(path) if path.is_file() else None
    except OSError:
        return None


def hint(path: Path) -> str:
    """For the end of an error about the wrong kind of file: what it is, and what to do with it; or nothing."""
    kind = kind_of(path)
    if kind is None:
        return ""
    return f"; it is {kind}: {_USES[kind].format(path=path, run=path.parent.parent)}"


def require_model_folder(folder: Path) -> None:
    """Check that a folder has a model's config; its content is not read.

    Raises:
        UserError: it has none; says what the folder is instead.
    """
    if not (folder / MODEL_CONFIG).is_file():
        raise UserError(f"{folder} holds no model: {MODEL_CONFIG} is missing{hint(folder)}")


def _kind_of_folder(path: Path) -> str | None:
    if (path / MODEL_CONFIG).is_file():
        return "a model folder"
    index = path / "index.json"
    if index.is_file():
        start = index.read_bytes()[:_HEADER_BYTES]
        for form, kind in (
            (b"goldfinch-tokens", "a data directory"),
            (b"goldfinch-checkpoint", "a training checkpoint"),
        ):
            if form in start:
                return kind
    return "a comparison" if any(path.glob("*/seed-0")) else None


def _kind_of_file(path: Path) -> str | None:
    with path.open("rb") as file:
        start = file.read(_HEADER_BYTES)
    if start.startswith(b"PK\x03\x04"):
        return "a .pth checkpoint" if path.suffix in (".pth", ".pt") else None
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return "a context file" if b'"goldfinch-context"' in start else "a safetensors file"
    if b"\0" in start or not start:
        return "a GGUF file" if start.startswith(b"GGUF") else None
    try:
        json.loads(start)
        return None  # a settings file of some kind, hardly a text to read
    except (ValueError, RecursionError):
        pass
    try:
        start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 4:  # not merely cut off inside a character
            return None
    return "a text file"
