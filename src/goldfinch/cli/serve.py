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
from goldfinch.cli.contexts import check_dtype_and_device
from goldfinch.cli.units import size
from goldfinch.errors import UserError

if TYPE_CHECKING:
    from goldfinch.serving.middleware import HttpLimits
    from goldfinch.serving.options import ServerOptions


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
    replicas: int = 1
    """Processes with the model, each with its share of the processors; a conversation stays with one of them. Needs
    `pip install 'goldfinch[replicas]'`, as --ray does."""
    ray: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """Run replicas on this Ray cluster: auto for the one of this machine, HOST:PORT, or ray://HOST:PORT. The model and
    --contexts must be on all of its machines under the same paths."""
    cpus_per_replica: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Processors for each replica; by default an equal share of all."""
    dtype: Annotated[str, tyro.conf.arg(metavar="auto|DTYPE")] = "auto"
    """Weight dtype, as for `goldfinch generate`."""
    device: Annotated[str, tyro.conf.arg(metavar="auto|DEVICE")] = "auto"
    """cpu, cuda or cuda:N; auto is a GPU if there is one."""

    def run(self) -> None:
        """Serve until Ctrl-C or SIGTERM; answers that are being written then have 30 seconds.

        Raises:
            UserError: the model cannot be loaded, or the address cannot be listened on.
        """
        max_stored = num_bytes("--contexts-size", self.contexts_size)
        memory = num_bytes("--memory", self.memory) if self.memory != "auto" else None
        max_body = num_bytes("--max-body", self.max_body)
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            raise UserError(f"--timeout must be more than 0 seconds, not {self.timeout}")
        self._check_replicas()
        check_dtype_and_device(self.dtype, self.device)
        model = require_model(self.model)
        try:
            from goldfinch.serving.http_server import listen
        except ImportError as error:
            raise UserError(f"the server needs {error.name}: pip install 'goldfinch[serve]'") from error
        from goldfinch.serving.access import read_api_keys
        from goldfinch.serving.middleware import HttpLimits, is_local
        from goldfinch.serving.options import ServerOptions

        keys = read_api_keys(self.api_keys) if self.api_keys is not None else None
        limits = HttpLimits(
            keys=keys,
            max_body_bytes=max_body,
            timeout=self.timeout,
            cors_origins=self.cors_origin,
            only_local_names=is_local(self.host),
        )
        with listen(self.host, self.port) as listener, self._folder() as folder:
            options = ServerOptions(
                model=model.resolve(),
                name=self.model.name,
                contexts=folder.resolve(),
                max_stored_bytes=max_stored,
                max_stored_bytes_by_owner=keys.max_context_bytes() if keys is not None else {},
                memory=memory,
                latents=None if self.latents == "model" else self.latents,
                dtype=self.dtype,
                device=self.device,
            )
            if self.replicas == 1 and self.ray is None:
                self._serve(options, limits, listener)
            else:
                self._serve_replicas(options, limits, listener)

    def _serve(self, options: "ServerOptions", limits: "HttpLimits", listener: socket.socket) -> None:
        from goldfinch.serving.app import create_app
        from goldfinch.serving.http_server import serve

        server = options.open()
        app = create_app(server, limits)
        engine = server.engine
        memory = f"{size(engine.max_bytes)} for texts, {engine.bytes_per_token:,} bytes a token"
        self._announce(listener, memory)
        serve(app, engine, listener)

    def _serve_replicas(self, options: "ServerOptions", limits: "HttpLimits", listener: socket.socket) -> None:
        from goldfinch.ray_cluster import LOCAL
        from goldfinch.serving.http_server import serve

        try:
            from goldfinch.serving.replicas.launch import started_replicas
        except ImportError as error:
            raise UserError(f"replicas need {error.name}: pip install 'goldfinch[replicas]'") from error
        from goldfinch.serving.replicas.proxy import create_proxy

        with started_replicas(self.ray or LOCAL, options, self.replicas, self.cpus_per_replica) as replicas:
            app = create_proxy(replicas, options.open_contexts(), limits)
            memory = "half of what is free" if options.memory is None else f"{self.memory} for each replica"
            self._announce(listener, f"{memory}; {self.replicas} replicas")
            serve(app, replicas, listener)

    def _check_replicas(self) -> None:
        if self.replicas < 1 or (self.cpus_per_replica or 1) < 1:
            raise UserError("--replicas and --cpus-per-replica must be at least 1")
        if self.cpus_per_replica is not None and self.ray is None and self.replicas == 1:
            raise UserError("--cpus-per-replica divides the processors among --replicas: give their number, or omit it")
        if self.ray is not None and self.contexts is None:
            raise UserError("--ray needs --contexts FOLDER, a folder that is the same on all machines")

    @contextlib.contextmanager
    def _folder(self) -> Iterator[Path]:
        if self.contexts is not None:
            yield self.contexts
            return
        with tempfile.TemporaryDirectory(prefix="goldfinch-contexts-") as folder:
            yield Path(folder)

    def _announce(self, listener: socket.socket, memory: str) -> None:
        url = f"http://{self.host}:{listener.getsockname()[1]}"
        body = json.dumps({"prompt": "Call me", "max_tokens": 32})
        kept = "until the server ends (--contexts keeps them)" if self.contexts is None else f"in {self.contexts}"
        print(f"serving {self.model} at {url}, until Ctrl-C")
        print(f"memory: {memory}; contexts: at most {self.contexts_size}, {kept}")
        key = "" if self.api_keys is None else " -H 'Authorization: Bearer KEY'"
        print(f"next: curl {url}/v1/completions{key} -H 'Content-Type: application/json' -d '{body}'", flush=True)


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    parse(Serve, "serve", args).run()
