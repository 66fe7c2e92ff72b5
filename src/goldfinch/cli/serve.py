"""`goldfinch serve`: OpenAI's API on this machine."""

import contextlib
import json
import math
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from goldfinch.argument_checks import num_bytes
from goldfinch.cli.arguments import parse, require_model
from goldfinch.cli.contexts import load_folder
from goldfinch.cli.units import size
from goldfinch.errors import UserError

if TYPE_CHECKING:
    from goldfinch.serving.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Serve a model with OpenAI's API: goldfinch serve runs/quickstart

    Completions and chat completions, streamed or whole, many at once. What prompts have in common is read once: a
    conversation costs its new tokens. Contexts, texts that were read, are small files that can be continued, forked,
    downloaded and brought back.

    Needs `pip install 'goldfinch[serve]'`.
    """

    model: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="MODEL")]]
    """Model folder, from `goldfinch train` or `goldfinch convert`, or hf:OWNER/NAME, one on the Hub."""
    contexts: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder for contexts, as .gfc files; they are there again after a restart. Without it they go with the server."""
    contexts_size: Annotated[str, tyro.conf.arg(metavar="SIZE")] = "10GiB"
    """Maximum size of all contexts on disk; those used longest ago are removed."""
    memory: Annotated[str, tyro.conf.arg(metavar="auto|SIZE")] = "auto"
    """Memory for the texts that are being read and answered, and for those kept for prompts that begin like them, such
    as 4GiB; auto is half of the free memory."""
    latents: Literal["float32", "bfloat16", "float16", "int8", "int4", "model"] = "bfloat16"
    """How compressed keys are stored, as for `goldfinch read`."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all. Others on the network can use it then: give --api-keys."""
    port: int = 8080
    """Port to listen on; 0 for any that is free."""
    api_keys: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """YAML file of the API keys that may use it, each with its limits: docs/serving.md. Without it no key is needed."""
    max_body: Annotated[str, tyro.conf.arg(metavar="SIZE")] = "64MiB"
    """Maximum size of a request, and so of an uploaded file."""
    timeout: Annotated[float | None, tyro.conf.arg(metavar="SECONDS")] = None
    """Seconds for a request, with reading its text and writing the answer; no limit by default."""
    cors_origin: Annotated[tuple[str, ...], tyro.conf.arg(metavar="URL ...")] = ()
    """Other sites whose pages may use it in a browser, such as https://example.com."""
    dtype: Annotated[str, tyro.conf.arg(metavar="auto|DTYPE")] = "auto"
    """Weight dtype, as for `goldfinch generate`."""
    device: Annotated[str, tyro.conf.arg(metavar="auto|DEVICE")] = "auto"
    """cpu, cuda or cuda:N; auto is a GPU if there is one."""

    def run(self) -> None:
        """Serve until Ctrl-C or SIGTERM; answers that are being written then have 30 seconds.

        Raises:
            UserError: the model cannot be loaded, or the address cannot be listened on.
        """
        from goldfinch.cache.budget import parse_budget

        max_stored = num_bytes("--contexts-size", self.contexts_size)
        max_bytes = num_bytes("--memory", self.memory) if self.memory != "auto" else None
        max_body = num_bytes("--max-body", self.max_body)
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            raise UserError(f"--timeout must be more than 0 seconds, not {self.timeout}")
        require_model(self.model)
        try:
            from goldfinch.serving.app import create_app
        except ImportError as error:
            raise UserError(f"the server needs {error.name}: pip install 'goldfinch[serve]'") from error
        from goldfinch.serving.access import read_api_keys
        from goldfinch.serving.context_store import ContextStore
        from goldfinch.serving.engine import Engine
        from goldfinch.serving.http_server import serve
        from goldfinch.serving.middleware import HttpLimits, is_local
        from goldfinch.serving.server import Server

        keys = read_api_keys(self.api_keys) if self.api_keys is not None else None
        limits = HttpLimits(
            keys=keys,
            max_body_bytes=max_body,
            timeout=self.timeout,
            cors_origins=self.cors_origin,
            only_local_names=is_local(self.host),
        )
        try:
            listener = socket.create_server((self.host, self.port))
        except (OSError, OverflowError) as error:
            raise UserError(f"cannot listen on {self.host}:{self.port} ({error}): choose another --port") from error
        with listener, self._folder() as folder:
            lm = load_folder(self.model, self.dtype, self.device, rope=None)
            if lm.tokenizer is None:
                raise UserError(f"{self.model} has no tokenizer, so it cannot be asked in words")
            memory = parse_budget("auto", lm.model.device) if max_bytes is None else max_bytes
            engine = Engine(lm, memory, None if self.latents == "model" else self.latents)
            store = ContextStore(folder, max_stored, keys.max_context_bytes() if keys is not None else None)
            app = create_app(Server(engine, store, self.model.name), limits)
            self._announce(engine, f"http://{self.host}:{listener.getsockname()[1]}", folder)
            engine.start()
            serve(app, engine, listener)

    @contextlib.contextmanager
    def _folder(self) -> Iterator[Path]:
        if self.contexts is not None:
            yield self.contexts
            return
        with tempfile.TemporaryDirectory(prefix="goldfinch-contexts-") as folder:
            yield Path(folder)

    def _announce(self, engine: "Engine", url: str, folder: Path) -> None:
        body = json.dumps({"prompt": "Call me", "max_tokens": 32})
        kept = f"in {folder}" if self.contexts is not None else "until the server ends (--contexts keeps them)"
        print(f"serving {self.model} at {url}, until Ctrl-C")
        print(
            f"memory: {size(engine.max_bytes)} for texts, {engine.bytes_per_token:,} bytes a token; contexts: "
            f"at most {self.contexts_size}, {kept}"
        )
        key = "" if self.api_keys is None else " -H 'Authorization: Bearer KEY'"
        print(f"next: curl {url}/v1/completions{key} -H 'Content-Type: application/json' -d '{body}'", flush=True)


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    parse(Serve, "serve", args).run()
