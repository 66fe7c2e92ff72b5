"""Models on the Hugging Face Hub: hf:OWNER/NAME, or hf:OWNER/NAME@REVISION.

The only module that reaches the network for a model, and only for such a name. `huggingface_hub` keeps what it has
downloaded, and finds it there without a network.
"""

import functools
import re
from pathlib import Path

from goldfinch.errors import UserError
from goldfinch.file_kinds import MODEL_CONFIG
from goldfinch.files import one_line

PREFIX = "hf:"
_NAME = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@(.+))?")
# Nothing that is unpickled, and no code.
PATTERNS = (
    MODEL_CONFIG,
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "README.md",  # the card, with the licence
)


@functools.cache  # all files that a process reads are those of one commit
def hub_folder(name: str, config_only: bool = False) -> Path:
    """The folder in the cache of `huggingface_hub` with a model of the Hub, which is downloaded if need be.

    Args:
        name: "hf:OWNER/NAME", with "@REVISION" for a branch, a tag or a commit.
        config_only: download no weights and no tokenizer.

    Raises:
        UserError: there is no such model, it cannot be read, or huggingface_hub is not installed.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(f"{name} is not the name of a model on the Hub: use hf:OWNER/NAME or hf:OWNER/NAME@REVISION")
    repository, revision = match[1], match[2]
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(f"{name} needs the package huggingface_hub ({error}): pip install 'goldfinch[hf]'") from error
    try:
        patterns = [MODEL_CONFIG] if config_only else list(PATTERNS)
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except Exception as error:  # huggingface_hub's own, and those of its HTTP libraries
        raise UserError(f"{name}: {_explain(error, repository, revision)}") from error
    if not (folder / MODEL_CONFIG).is_file():
        raise UserError(
            f"{name} holds no model: it has no {MODEL_CONFIG}; a published .pth can be downloaded from "
            f"https://huggingface.co/{repository} and converted with `goldfinch convert`"
        )
    return folder


def _explain(error: Exception, repository: str, revision: str | None) -> str:
    """What went wrong, and what to do."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repository}"
    missing = f"and {constants.HF_HUB_CACHE} does not hold all of the model"
    if constants.is_offline_mode():
        not_cached = f"HF_HUB_OFFLINE is set, {missing}: unset it to download"
    else:
        not_cached = f"the Hub cannot be reached ({one_line(error.__cause__ or error)}), {missing}: check the network"
    explanations = {  # of several that apply, the first is the most specific
        errors.GatedRepoError: f"accept the conditions at {page}, then log in with `hf auth login`",
        errors.RepositoryNotFoundError: f"{page} does not exist, or is private: check the name, or log in with "
        "`hf auth login`",
        errors.RevisionNotFoundError: f"it has no revision {revision}: choose a branch, a tag or a commit of {page}",
        errors.HFValidationError: one_line(error),
        errors.LocalEntryNotFoundError: not_cached,
    }
    found = (explanation for kind, explanation in explanations.items() if isinstance(error, kind))
    return next(found, f"it cannot be downloaded: {one_line(error)}")


def hub_name(folder: Path) -> str | None:
    """The inverse of `hub_folder`, with the commit as the revision; None for any other folder."""
    parts = folder.parts[-3:]
    if len(parts) < 3 or parts[1] != "snapshots" or not parts[0].startswith("models--"):
        return None
    _, *repository = parts[0].split("--")
    return f"{PREFIX}{'/'.join(repository)}@{parts[2]}" if len(repository) == 2 else None


def cached_folder(name: str) -> Path | None:
    """As `hub_folder`, but without the network: None if the cache does not hold the model."""
    match = _NAME.fullmatch(name)
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    config = try_to_load_from_cache(match[1], MODEL_CONFIG, revision=match[2]) if match is not None else None
    return Path(config).parent if isinstance(config, str) else None
