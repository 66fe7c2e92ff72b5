"""`goldfinch serve`: OpenAI's API on this machine."""

import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from goldfinch.argument_checks import num_bytes
from goldfinch.cli.arguments import parse, require_model
from goldfinch.cli.contexts import load_folder
from goldfinch.errors import UserError

SECONDS_TO_FINISH = 30
"""How long answers that are being written may take when the server is told to end."""


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Serve a model with OpenAI's API: goldfinch serve runs/quickstart

    Completions and chat completions, streamed or whole, many at once. What prompts have in common is read once: a
    conversation costs its new tokens.

    Needs `pip install 'goldfinch[serve]'`.
    """

    model: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="MODEL")]]
    """Model folder, from `goldfinch train` or `goldfinch convert`, or hf:OWNER/NAME, one on the Hub."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all. There is no login: others on the network can use it then."""
    port: int = 8080
    """Port to listen on; 0 for any that is free."""
    prompt_cache: Annotated[str, tyro.conf.arg(metavar="SIZE")] = "1GiB"
    """Memory for texts that were read, kept for prompts that begin like them; 0 keeps none."""
    dtype: Annotated[str, tyro.conf.arg(metavar="auto|DTYPE")] = "auto"
    """Weight dtype, as for `goldfinch generate`."""
    device: Annotated[str, tyro.conf.arg(metavar="auto|DEVICE")] = "auto"
    """cpu, cuda or cuda:N; auto is a GPU if there is one."""

    def run(self) -> None:
        """Serve until Ctrl-C or SIGTERM; answers that are being written then have 30 seconds.

        Raises:
            UserError: the model cannot be loaded, or the address cannot be listened on.
        """
        max_bytes = num_bytes("--prompt-cache", self.prompt_cache)
        require_model(self.model)
        try:
            import uvicorn

            from goldfinch.serving.app import create_app
        except ImportError as error:
            raise UserError(f"the server needs {error.name}: pip install 'goldfinch[serve]'") from error
        from goldfinch.serving.engine import Engine

        try:
            listener = socket.create_server((self.host, self.port))
        except (OSError, OverflowError) as error:
            raise UserError(f"cannot listen on {self.host}:{self.port} ({error}): choose another --port") from error
        with listener:
            engine = Engine(load_folder(self.model, self.dtype, self.device, rope=None), max_bytes)
            if engine.lm.tokenizer is None:
                raise UserError(f"{self.model} has no tokenizer, so it cannot be asked in words")
            url = f"http://{self.host}:{listener.getsockname()[1]}"
            body = json.dumps({"prompt": "Call me", "max_tokens": 32})
            print(f"serving {self.model} at {url}, until Ctrl-C")
            print(f"next: curl {url}/v1/completions -H 'Content-Type: application/json' -d '{body}'", flush=True)
            engine.start()
            app = create_app(engine, self.model.name)
            # It ends with the signal that ended it, after the answers that are being written.
            config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=SECONDS_TO_FINISH)
            uvicorn.Server(config).run([listener])


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    parse(Serve, "serve", args).run()
