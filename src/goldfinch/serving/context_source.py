"""Where the contexts of requests come from: memory, a file, or nothing."""

from collections import OrderedDict
from pathlib import Path

import numpy as np

from goldfinch.devices import dtype_name
from goldfinch.errors import UserError
from goldfinch.files import FileVersion
from goldfinch.inference.context import Context
from goldfinch.inference.context_file.description import read_description
from goldfinch.inference.language_model import LanguageModel
from goldfinch.serving.prefix_cache import MIN_COMMON_TOKENS, CachedPrefix, PrefixCache, context_ids
from goldfinch.serving.radix_tree import Ids
from goldfinch.serving.statistics import Statistics

MAX_KNOWN_FILES = 64
"""Context files whose token ids are remembered."""


class ContextSource:
    """Makes contexts for the engine's thread.

    Args:
        lm: the model.
        latents: how compressed keys of new contexts are stored, as in `LanguageModel.context`.
        budget: maximum bytes of expanded keys and values for each context; may be changed.
        statistics: where prompts are counted of which nothing is in memory.
    """

    def __init__(self, lm: LanguageModel, latents: str | None, budget: int, statistics: Statistics) -> None:
        self._lm, self._latents, self.budget, self._statistics = lm, latents, budget, statistics
        self.cache = PrefixCache()
        self._file_ids: OrderedDict[Path, tuple[FileVersion | None, Ids]] = OrderedDict()

    def new(self) -> Context:
        """An empty context."""
        return self._lm.context(self._latents, budget=self.budget)

    def open(self, path: Path) -> Context:
        """The context in a file.

        Raises:
            UserError: it is corrupt, or of another model.
        """
        version = FileVersion.of(path)
        check_dtype(self._lm, path)
        context = self._lm.open(path, budget=self.budget)
        context.snapshot()
        self._file_ids[path] = version, context_ids(context)
        self._file_ids.move_to_end(path)
        if len(self._file_ids) > MAX_KNOWN_FILES:
            self._file_ids.popitem(last=False)
        return context

    def num_unknown(self, owner: str, base: Path | None, ids: Ids) -> int:
        """How many tokens of a prompt, after a context file if there is one, are not in memory."""
        if base is not None:
            known = self._known_ids(base)
            if known is None:
                return len(ids)
            ids = np.concatenate([known, ids])
        return len(ids) - self.cache.num_known(owner, ids)

    def open_prefix(self, owner: str, base: Path | None, ids: Ids) -> tuple[CachedPrefix, int]:
        """A context with as much of a prompt as is known, and how many tokens the context file has.

        Args:
            owner: whose.
            base: the context file that (T,) ids continue.
            ids: of the prompt.

        Raises:
            UserError: as `open`.
        """
        if base is None:
            if (found := self.cache.find(owner, ids)) is None:
                self._statistics.misses[self._why_unknown(owner, ids)] += 1
                found = CachedPrefix(self.new(), 0)
            return found, 0
        known = self._known_ids(base)
        if known is not None:
            found = self.cache.find(owner, np.concatenate([known, ids]), min_tokens=len(known))
            if found is not None:
                return found, len(known)
        self._statistics.misses["context file"] += 1
        context = self.open(base)
        self.cache.add(owner, context.fork())
        return CachedPrefix(context, 0), len(context)

    def _why_unknown(self, owner: str, ids: Ids) -> str:
        if len(ids) < MIN_COMMON_TOKENS:
            return "short prompt"
        return "nothing alike" if self.cache.has_any(owner) else "nothing kept"

    def _known_ids(self, path: Path) -> Ids | None:
        version, ids = self._file_ids.get(path, (None, None))
        return ids if version is not None and version == FileVersion.of(path) else None


def check_file(lm: LanguageModel, path: Path) -> None:
    """Check all of a context file; from any thread.

    Raises:
        UserError: it is corrupt, or of another model.
    """
    check_dtype(lm, path)
    lm.open(path, budget=0).sequence.key_cache.verify()


def check_dtype(lm: LanguageModel, path: Path) -> None:
    """Refuse a context file of the model in another dtype, which would have to be loaded beside this one."""
    written, ours = read_description(path).dtype, dtype_name(lm.model.dtype)
    if written != ours:
        raise UserError(
            f"the context was written by the model in {written}, and the server runs it in {ours}: "
            f"start the server with --dtype {written}, or read the text again"
        )
