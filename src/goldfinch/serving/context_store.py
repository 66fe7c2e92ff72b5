"""Contexts that outlive requests: ordinary .gfc files in a folder, each with a small file about it.

The folder is the truth: whatever other processes put there or take away is seen at once. Ids name contexts, never
paths: an id is looked up among the names that are there.
"""

import contextlib
import dataclasses
import json
import os
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from goldfinch.argument_checks import shortened
from goldfinch.errors import UserError
from goldfinch.files import FileVersion, sync, write_text
from goldfinch.inference.context import Context
from goldfinch.inference.context_file.description import Description, check_document_name, read_description
from goldfinch.json_yaml import read_json
from goldfinch.settings import from_plain

SUFFIX, NOTE_SUFFIX = ".gfc", ".json"
MAX_NOTE_BYTES = 1 << 16
MAX_NAME_LENGTH = 200


class NotFoundError(UserError):
    """There is no such context, or it belongs to someone else."""


class ConflictError(UserError):
    """A context was changed by someone else in the meantime."""


class NoRoomError(UserError):
    """A context is larger than all contexts may be, or than its owner may keep."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Note:
    """What a file of its own says about a context; its time of change is when the context was last used."""

    name: str
    owner: str = ""
    created_at: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredContext:
    """A context in the folder."""

    id: str
    path: Path
    note: Note
    last_used_at: float
    nbytes: int
    """Of the file."""
    description: Description


class ContextStore:
    """The contexts in a folder. All methods may be used from any thread.

    Args:
        folder: made if it is missing.
        max_bytes: of all files; those used longest ago are removed when a new one does not fit.
        max_bytes_by_owner: of the files of some owners; what does not fit is refused.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, folder: Path, max_bytes: int, max_bytes_by_owner: Mapping[str, int] | None = None) -> None:
        self._folder, self.max_bytes = folder, max_bytes
        self._max_bytes_by_owner = dict(max_bytes_by_owner or {})
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {folder} for contexts: {error.strerror or error}") from error
        self._lock = threading.Lock()
        self._descriptions: dict[Path, tuple[FileVersion, Description]] = {}
        self._being_written = Counter[str]()  # bytes by owner; used with the lock only

    def list(self, owner: str) -> list[StoredContext]:
        """All contexts of an owner, the one used last first. Files that are corrupt are left out."""
        found = [stored for id in self._ids() if (stored := self._look_up(id)) and stored.note.owner == owner]
        return sorted(found, key=lambda stored: stored.last_used_at, reverse=True)

    def get(self, owner: str, id: str) -> StoredContext:
        """One context, which is used now.

        Raises:
            NotFoundError: there is none of this owner.
        """
        stored = self._look_up(id) if id in self._ids() else None
        if stored is None or stored.note.owner != owner:
            raise NotFoundError(f"there is no context {shortened(id)}: GET /v1/contexts lists yours")
        with contextlib.suppress(FileNotFoundError):  # removed in the meantime: whoever opens the file says so
            os.utime(self._note_path(id))
        return stored

    def add(self, owner: str, context: Context, name: str | None) -> StoredContext:
        """Save a new context.

        Raises:
            UserError: it does not fit, the name cannot be shown, or the file cannot be written.
        """
        id = f"ctx-{uuid.uuid4().hex}"
        name = check_name(name) if name else default_name(context)
        self._save(id, context, Note(name=name, owner=owner, created_at=int(time.time())))
        return self.get(owner, id)

    def add_file(self, owner: str, path: Path, name: str) -> StoredContext:
        """Take over a .gfc file, which is moved into the folder.

        Raises:
            UserError: it is corrupt, does not fit, or the name cannot be shown.
        """
        read_description(path)
        id = f"ctx-{uuid.uuid4().hex}"
        note = Note(name=check_name(name), owner=owner, created_at=int(time.time()))
        sync(path)
        with self._reserved(owner, nbytes := path.stat().st_size):
            self._make_room(nbytes)
            self._write_note(id, note)
            path.replace(self._path(id))
            sync(self._folder)
        return self.get(owner, id)

    @contextlib.contextmanager
    def temporary_file(self) -> Iterator[Path]:
        """A path for a file that `add_file` may take over; what is left there is removed at the end."""
        with tempfile.TemporaryDirectory(prefix=".", dir=self._folder) as folder:
            yield Path(folder) / f"upload{SUFFIX}"

    def replace(self, owner: str, id: str, context: Context) -> StoredContext:
        """Save a context in place of the one that it continues or shortens.

        Raises:
            NotFoundError: it is gone.
            ConflictError: it was changed in the meantime.
            UserError: it does not fit, or cannot be written.
        """
        stored = self.get(owner, id)
        try:
            self._save(id, context, stored.note)
        except UserError as error:
            if FileVersion.of(stored.path) == (context.opened or (None, None))[1]:
                raise
            raise ConflictError(
                f"context {id} was changed by another request in the meantime: ask for it again, or change a fork"
            ) from error
        return self.get(owner, id)

    def rename(self, owner: str, id: str, name: str) -> StoredContext:
        """Give a context another name.

        Raises:
            UserError: there is no such context, or the name cannot be shown.
        """
        stored = self.get(owner, id)
        self._write_note(id, dataclasses.replace(stored.note, name=check_name(name)))
        return self.get(owner, id)

    def delete(self, owner: str, id: str) -> None:
        """Remove a context.

        Raises:
            NotFoundError: there is none of this owner.
        """
        self.get(owner, id)
        self._remove(id)

    def check_room(self, owner: str, needed: int, but_not: str = "") -> None:
        """Check that a context may be stored, before it is read.

        Args:
            owner: whose it will be.
            needed: bytes of its file.
            but_not: id of the context in whose place it will be.

        Raises:
            NoRoomError: it is too large.
        """
        if needed > self.max_bytes:
            raise NoRoomError(
                f"the context takes {needed:,} bytes, and all contexts may take {self.max_bytes:,}: "
                "start the server with more --contexts-size"
            )
        if (limit := self._max_bytes_by_owner.get(owner)) is None:
            return
        taken = sum(stored.nbytes for stored in self.list(owner) if stored.id != but_not) + self._being_written[owner]
        if taken + needed > limit:
            raise NoRoomError(
                f"the context takes {needed:,} bytes, and the contexts of this API key may take {limit:,}, of which "
                f"{taken:,} are taken: delete a context, or give a shorter text"
            )

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(_size(path) for path in self._folder.glob(f"*{SUFFIX}"))

    def __len__(self) -> int:
        """Number of contexts."""
        return len(self._ids())

    def _path(self, id: str) -> Path:
        return self._folder / f"{id}{SUFFIX}"

    def _note_path(self, id: str) -> Path:
        return self._folder / f"{id}{NOTE_SUFFIX}"

    def _ids(self) -> set[str]:
        return {path.stem for path in self._folder.glob(f"*{SUFFIX}") if not path.name.startswith(".")}

    def _look_up(self, id: str) -> StoredContext | None:
        path = self._path(id)
        try:
            version = FileVersion.of(path)
            if version is None:
                return None
            note = self._read_note(id)
            known = self._descriptions.get(path)
            if known is None or known[0] != version:
                known = self._descriptions[path] = version, read_description(path)
            last_used = self._note_path(id).stat().st_mtime
        except (OSError, UserError):  # removed or replaced in the meantime, or corrupt
            return None
        return StoredContext(
            id=id, path=path, note=note, last_used_at=last_used, nbytes=version.size, description=known[1]
        )

    def _read_note(self, id: str) -> Note:
        path = self._note_path(id)
        if not path.exists():  # a file that someone has put there
            self._write_note(id, Note(name=id, created_at=int(self._path(id).stat().st_mtime)))
        return from_plain(Note, read_json(path, MAX_NOTE_BYTES))

    def _write_note(self, id: str, note: Note) -> None:
        write_text(self._note_path(id), json.dumps(dataclasses.asdict(note), ensure_ascii=False))

    def _save(self, id: str, context: Context, note: Note) -> None:
        usage = context.memory_usage()
        nbytes = usage.key_cache + usage.state + usage.snapshots
        with self._reserved(note.owner, nbytes, but_not=id):
            self._make_room(nbytes, but_not=id)
            self._write_note(id, note)  # before the file, which then has an owner from its beginning
            try:
                context.save(self._path(id))
            finally:
                if not self._path(id).exists():
                    self._note_path(id).unlink(missing_ok=True)
        self._make_room(0, but_not=id)  # with its description the file is a little larger

    @contextlib.contextmanager
    def _reserved(self, owner: str, needed: int, but_not: str = "") -> Iterator[None]:
        """Let others that are written at the same time not have the same room."""
        with self._lock:
            self.check_room(owner, needed, but_not)
            self._being_written[owner] += needed
        try:
            yield
        finally:
            with self._lock:
                self._being_written[owner] -= needed

    def _make_room(self, needed: int, but_not: str = "") -> None:
        """Remove what was used longest ago until `needed` more bytes fit."""
        with self._lock:
            missing = self.nbytes + needed - self.max_bytes
            for id in sorted(self._ids() - {but_not}, key=lambda id: _time_used(self._note_path(id))):
                if missing <= 0:
                    return
                missing -= _size(self._path(id))
                self._remove(id)

    def _remove(self, id: str) -> None:
        path = self._path(id)
        path.unlink(missing_ok=True)
        self._note_path(id).unlink(missing_ok=True)
        self._descriptions.pop(path, None)


def check_name(name: str) -> str:
    """A name for people, if it can be shown.

    Raises:
        UserError: it is empty, too long, or has control characters.
    """
    if len(name) > MAX_NAME_LENGTH:
        raise UserError(f"a name has at most {MAX_NAME_LENGTH} characters, this one has {len(name):,}")
    return check_document_name(name)


def default_name(context: Context) -> str:
    """The name of the first document, or how much there is."""
    return context.documents[0].name[:MAX_NAME_LENGTH] if context.documents else f"{len(context):,} tokens"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _time_used(note: Path) -> float:
    try:
        return note.stat().st_mtime
    except FileNotFoundError:
        return 0.0
