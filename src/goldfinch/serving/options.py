"""How a model is served: plain values, which another process can be given."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from goldfinch.cache.budget import parse_budget
from goldfinch.errors import UserError
from goldfinch.inference.language_model import load
from goldfinch.serving.context_store import ContextStore
from goldfinch.serving.engine import Engine
from goldfinch.serving.server import Server


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What `goldfinch serve` is asked for, but for how it is reached."""

    model: Path
    """Model folder."""
    name: str
    """Of the model, for clients."""
    contexts: Path
    """Folder of contexts."""
    max_stored_bytes: int
    """Of all contexts in the folder."""
    max_stored_bytes_by_owner: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Of the contexts of some owners."""
    memory: int | None = None
    """Bytes for all contexts in memory; None for half of what is free."""
    latents: str | None = None
    """How compressed keys are stored, as in `LanguageModel.context`."""
    dtype: str = "auto"
    device: str = "auto"

    def open(self, num_together: int = 1) -> Server:
        """Load the model, and start its engine.

        Args:
            num_together: how many such servers share the memory of this machine.

        Raises:
            UserError: the model cannot be loaded, or has no tokenizer; or the folder cannot be made.
        """
        lm = load(self.model, self.dtype, self.device)
        if lm.tokenizer is None:
            raise UserError(f"{self.name} has no tokenizer, so it cannot be asked in words")
        memory = parse_budget("auto", lm.model.device) // num_together if self.memory is None else self.memory
        engine = Engine(lm, memory, self.latents)
        server = Server(engine, self.open_contexts(), self.name)
        engine.start()
        return server

    def open_contexts(self) -> ContextStore:
        """The folder of contexts.

        Raises:
            UserError: it cannot be made.
        """
        return ContextStore(self.contexts, self.max_stored_bytes, self.max_stored_bytes_by_owner)
