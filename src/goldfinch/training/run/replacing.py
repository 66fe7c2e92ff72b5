"""Replacing a run: what an old one wrote is removed once a new one has begun in its place."""

import contextlib
import secrets
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from goldfinch.checkpoint.model_folder import MODEL_FILES
from goldfinch.errors import UserError
from goldfinch.training.run.checkpoint import FOLDER
from goldfinch.training.run.folder import DATA, SAMPLES, SETTINGS
from goldfinch.training.run.metrics import FILE, PLOT
from goldfinch.training.run.trackers import TENSORBOARD, WANDB_ID

RUN_FILES = {
    *MODEL_FILES,
    *(SETTINGS, DATA, SAMPLES, FOLDER, FILE, PLOT, TENSORBOARD, WANDB_ID),
}


@contextlib.contextmanager
def replacing(run: Path, also: Collection[str] = ()) -> Iterator[None]:
    """Move an old run aside; remove it when the block succeeds, put it back when the block raises.

    Args:
        run: the folder; nothing happens if there is none.
        also: names of other files and folders that were written with the run.

    Raises:
        UserError: the folder holds no run, or files that no run writes; then nothing is moved.
    """
    if not run.exists():
        yield
        return
    names = {path.name for path in run.iterdir()} if run.is_dir() else set()
    if run.is_symlink() or not names & {SETTINGS, *also}:
        raise UserError(f"{run} holds no training run, so it is not overwritten: choose another folder")
    others = sorted(names - RUN_FILES - set(also))
    if others:
        raise UserError(f"{run} also holds {others[0]}, so it is not overwritten: move that, or choose another folder")
    aside = run.with_name(f".{run.name}.{secrets.token_hex(4)}.old")
    run.rename(aside)
    try:
        yield
    except BaseException:
        shutil.rmtree(run, ignore_errors=True)
        aside.rename(run)
        raise
    shutil.rmtree(aside)
