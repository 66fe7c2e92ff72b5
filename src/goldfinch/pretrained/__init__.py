"""Models by name: those that come with GoldFinch, each a model folder here with a card (`README.md`), and the Hub's."""

from pathlib import Path

from goldfinch.errors import UserError
from goldfinch.file_kinds import MODEL_CONFIG
from goldfinch.pretrained.hub import PREFIX, hub_folder, hub_name

FOLDER = Path(__file__).parent


def pretrained_names() -> list[str]:
    """Names of the models that come with this version."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{MODEL_CONFIG}"))


def pretrained_folder(name: str) -> Path | None:
    """The folder of the model of this name; None if there is none."""
    return FOLDER / name if name in pretrained_names() else None


def recorded_name(folder: Path) -> str | None:
    """The name that finds a model on other machines as well; None for a folder of the user's."""
    return folder.name if folder == pretrained_folder(folder.name) else hub_name(folder)


def find_model(path: Path, *, config_only: bool = False) -> Path:
    """The folder that a user means: the path itself or, if nothing is there, that of the pretrained model of this name.

    Folders of the user's come first, so that a model added to a later version never takes the place of one of theirs.

    Args:
        path: a folder, a name, or "hf:OWNER/NAME" for a model on the Hugging Face Hub; see `hub_folder`.
        config_only: no other file is going to be read, so none is downloaded.

    Raises:
        UserError: something of this name is there that is not a model folder, or the Hub has no such model.
    """
    if path.as_posix().startswith(PREFIX):
        return hub_folder(path.as_posix(), config_only)
    folder = pretrained_folder(str(path))
    if folder is None:
        return path
    if not path.exists():
        return folder
    if not (path / MODEL_CONFIG).is_file():
        raise UserError(
            f"{path} is not a model folder, and hides the model of that name that comes with GoldFinch: rename it, or "
            "run from another folder"
        )
    return path
