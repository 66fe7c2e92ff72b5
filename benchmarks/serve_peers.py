"""`goldfinch serve` next to llama.cpp's server: users who ask at once about a text that they share.

Both are asked by HTTP, by the same client, with the same token ids; each server is a process of its own, with random
weights of the same size, and default settings but for the number of users. The text is read first, once. Then every
user asks about it at once (first turn), and again, after what they have asked before (second turn); tokens per second
are those that are written for all, from the first request to the end of the last answer.
"""

import argparse
import asyncio
import contextlib
import importlib
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
from common import arguments, moby_dick, report
from llama import Shape
from llama_cpp import server_params, write_gguf
from serve import started

LLAMA_CPP = "llama.cpp"
OWN_TOKENS = 32
"""Of each question."""


async def ask_all(client: httpx.AsyncClient, prompts: list[list[int]], max_tokens: int) -> float:
    """Send all prompts at once; returns how many seconds they took together."""

    async def ask(prompt: list[int]) -> None:
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        answer = (await client.post("/v1/completions", json=body)).raise_for_status().json()
        if answer["usage"]["completion_tokens"] != max_tokens:
            raise RuntimeError(f"{answer['usage']['completion_tokens']} tokens instead of {max_tokens}")

    begun = time.perf_counter()
    await asyncio.gather(*(ask(prompt) for prompt in prompts))
    return time.perf_counter() - begun


async def measure(url: str, options: argparse.Namespace, vocab_size: int) -> list[Any]:
    """Seconds to read the text; seconds of a turn and tokens per second, of the first and the second."""
    chooser = random.Random(options.seed)

    def more() -> list[int]:
        return [chooser.randrange(300, vocab_size) for _ in range(OWN_TOKENS)]

    shared = moby_dick(options.shared_tokens).tolist()
    async with httpx.AsyncClient(base_url=url, timeout=None) as client:
        row: list[Any] = [await ask_all(client, [shared], 1)]
        prompts = [shared] * options.users
        for _ in range(2):
            prompts = [prompt + more() for prompt in prompts]
            seconds = await ask_all(client, prompts, options.tokens)
            row += [seconds, options.users * options.tokens / seconds]
    return row


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, repeats=1)
    parser.add_argument("preset", nargs="?", default="goldfinch-L12-D768")
    parser.add_argument("--dtype", default="float32", help="of the weights of both")
    parser.add_argument("--users", type=int, default=8, help="at once")
    parser.add_argument("--shared-tokens", type=int, default=4096, help="of the text")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shape = Shape.of(options.preset, options.dtype)
    room = options.users * (options.shared_tokens + 2 * OWN_TOKENS + options.tokens + 64)
    rows = []
    for repeat in range(options.repeats):
        for name, server in (
            ("goldfinch serve", started(options.preset, options.dtype)),
            (f"{LLAMA_CPP}, a cache for each user", started_llama_cpp(shape, options.users, room, unified=False)),
            (f"{LLAMA_CPP}, a cache for all users", started_llama_cpp(shape, options.users, room, unified=True)),
        ):
            with server as url:
                rows.append([name, repeat, *asyncio.run(measure(url, options, shape.vocab_size))])
                print(*rows[-1], file=sys.stderr, flush=True)  # the whole takes minutes
    columns = ["server", "repeat", "text read, s"]
    columns += [f"{turn} turn: {what}" for turn in ("first", "second") for what in ("s", "tokens/s")]
    report(
        f"{options.users} users, {options.shared_tokens} tokens in common, {options.tokens} written for each",
        columns,
        rows,
        options.json,
    )


@contextlib.contextmanager
def started_llama_cpp(shape: Shape, users: int, room: int, *, unified: bool) -> Iterator[str]:
    """The URL of llama.cpp's server in a process of its own.

    Args:
        shape: of the model.
        users: slots.
        room: tokens of all slots together.
        unified: whether all slots share one cache.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        here, there = context.Pipe()
        process = context.Process(target=_run_llama_cpp, args=(there, shape, users, room, unified, Path(folder)))
        process.start()
        try:
            yield here.recv()
        finally:
            process.terminate()
            process.join()


def _run_llama_cpp(connection: Connection, shape: Shape, users: int, room: int, unified: bool, folder: Path) -> None:
    """Serve until the process is ended; sends the address."""
    write_gguf(folder / "llama.gguf", shape)
    params = server_params(folder / "llama.gguf", room)
    params.n_parallel, params.kv_unified, params.port = users, unified, 0
    server = importlib.import_module("xllamacpp").Server(params)
    connection.send(server.listening_address)
    connection.recv()  # which never comes


if __name__ == "__main__":
    main()
