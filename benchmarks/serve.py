"""A server under load: how long users wait, how many tokens it gives to all, and whether it stays as it was.

`python benchmarks/serve.py` starts `goldfinch serve` with random weights, or with those of a model folder; `--url` asks
a server that runs. Each of `--users` sends one request after another: turns of a conversation about a text that all of
them share, completions, streams that are cut off at random, one greedy completion again and again, whose answer must
stay the same, and requests that must be refused. Times are the client's.

`--requests 1000 --memory 128MiB` is the test of endurance: no error, resident memory that grows by less than 5 % after
the first 200, and as many open files afterwards as before, as the server's `/metrics` say. Contexts are kept
for prompts to come until they fill `--memory`: with little of it they have by then.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import math
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
from common import report
from matplotlib.axes import Axes
from peers import GoldFinch

from goldfinch.data.moby_dick import moby_dick_chapters
from goldfinch.plots import draw

KINDS = {"chat": 4, "completion": 3, "cut off": 2, "repeated": 1, "refused": 1}
"""And how often each is asked for."""
TURNS = 4
"""Of a conversation, before another one begins."""
PROMPT_CHARACTERS = 400
WARM_UP = 200
"""Requests after which memory should hardly grow; a fifth of them if there are few."""
SECONDS_BETWEEN_SAMPLES = 1.0


@dataclasses.dataclass
class Asked:
    """One request."""

    kind: str
    first_token: float | None = None
    """Seconds until the first text came."""
    per_token: float | None = None
    """Mean seconds of the tokens after it."""
    num_tokens: int = 0
    error: str | None = None


@dataclasses.dataclass
class Sample:
    """The server at some moment."""

    num_done: int
    """Requests that were answered by then."""
    rss: int
    open_files: int


class Load:
    """Users of a server.

    Args:
        client: of the server.
        options: of the command line.
        shared: the text that all conversations are about.
    """

    def __init__(self, client: httpx.AsyncClient, options: argparse.Namespace, shared: str) -> None:
        self._client, self._options, self._shared = client, options, shared
        self._random = random.Random(options.seed)
        self._novel = "\n\n".join(moby_dick_chapters())
        self._numbers = iter(range(options.requests))
        self._expected: str | None = None
        self.asked: list[Asked] = []
        self.samples: list[Sample] = []

    async def run(self) -> float:
        """Send all requests; returns how many seconds they took."""
        await self._sample()
        begun = time.perf_counter()
        sampling = asyncio.create_task(self._sample_always())
        await asyncio.gather(*(self._use() for _ in range(self._options.users)))
        seconds = time.perf_counter() - begun
        sampling.cancel()
        while (await self._client.get("/health")).json()["running"]:  # streams that were cut off just now
            await asyncio.sleep(0.05)
        return seconds

    async def _use(self) -> None:
        """One user."""
        messages: list[dict[str, str]] = []
        for _ in self._numbers:
            (kind,) = self._random.choices(list(KINDS), list(KINDS.values()))
            asked = Asked(kind)
            try:
                if kind == "chat":
                    if len(messages) >= 2 * TURNS:
                        messages.clear()
                    await self._chat(asked, messages)
                elif kind == "refused":
                    await self._refused(asked)
                else:
                    await self._complete(asked)
            except Exception as error:  # whatever it is, it is counted
                asked.error = f"{kind}: {type(error).__name__}: {str(error)[:200]}"
            self.asked.append(asked)

    async def _chat(self, asked: Asked, messages: list[dict[str, str]]) -> None:
        messages.append({"role": "user", "content": self._piece(80)})
        body = {"messages": [{"role": "system", "content": self._shared}, *messages]}
        try:
            text = await self._stream(asked, "/v1/chat/completions", body)
        except Exception:
            messages.clear()
            raise
        messages.append({"role": "assistant", "content": text})

    async def _complete(self, asked: Asked) -> None:
        if asked.kind == "cut off":
            chunks = self._random.randint(1, self._options.max_tokens)
            await self._stream(asked, "/v1/completions", {"prompt": self._piece(PROMPT_CHARACTERS)}, chunks)
            return
        if asked.kind == "completion":
            body = {"prompt": self._piece(PROMPT_CHARACTERS), "seed": self._random.randrange(1 << 31)}
            await self._stream(asked, "/v1/completions", body)
            return
        body = {"prompt": self._novel[:PROMPT_CHARACTERS], "temperature": 0}
        text = await self._stream(asked, "/v1/completions", body)
        if self._expected is None:
            self._expected = text
        if text != self._expected:
            raise RuntimeError(f"the same greedy request had another answer: {text!r}, not {self._expected!r}")

    async def _refused(self, asked: Asked) -> None:
        answer = await self._client.post("/v1/completions", json={"prompt": "Call me", "top_p": 2})
        if answer.status_code != 400:
            raise RuntimeError(f"status {answer.status_code} instead of 400")

    async def _stream(self, asked: Asked, path: str, body: dict[str, Any], max_chunks: float = math.inf) -> str:
        """Ask, and measure; returns the text."""
        body = {"max_tokens": self._options.max_tokens, "ignore_eos": True, "stream": True} | body
        body["stream_options"] = {"include_usage": True}
        pieces, begun, num_chunks = list[str](), time.perf_counter(), 0
        async with contextlib.aclosing(self._events(path, body)) as events:
            async for event in events:
                if "error" in event:
                    raise RuntimeError(event["error"]["message"])
                for choice in event["choices"]:
                    pieces.append(choice["text"] if "text" in choice else choice["delta"].get("content", ""))
                if asked.first_token is None and pieces and pieces[-1]:
                    asked.first_token = time.perf_counter() - begun
                if usage := event.get("usage"):
                    asked.num_tokens = usage["completion_tokens"]
                num_chunks += 1
                if num_chunks >= max_chunks:
                    return ""
        # An answer of a conversation may end before, where the chat template says that it does.
        if asked.num_tokens != self._options.max_tokens and "messages" not in body:
            raise RuntimeError(f"{asked.num_tokens} tokens instead of {self._options.max_tokens}")
        if asked.first_token is not None and asked.num_tokens > 1:
            asked.per_token = (time.perf_counter() - begun - asked.first_token) / (asked.num_tokens - 1)
        return "".join(pieces)

    async def _events(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        async with self._client.stream("POST", path, json=body) as answer:
            if answer.status_code != 200:
                raise RuntimeError(f"status {answer.status_code}: {(await answer.aread()).decode()}")
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    yield json.loads(line.removeprefix("data: "))

    def _piece(self, length: int) -> str:
        """Some of the novel."""
        start = self._random.randrange(len(self._novel) - length)
        return self._novel[start : start + length]

    async def _sample_always(self) -> None:
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_SAMPLES)
            await self._sample()

    async def _sample(self) -> None:
        found = await metrics(self._client)
        rss, files = (int(found.get(f"process_{name}", 0)) for name in ("resident_memory_bytes", "open_fds"))
        self.samples.append(Sample(len(self.asked), rss, files))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="goldfinch-L12-D768", help="a preset, or a model folder")
    parser.add_argument("--dtype", default="float32", help="of the weights")
    parser.add_argument("--memory", default="auto", help="of the server, for contexts")
    parser.add_argument("--url", help="of a server that runs; `model` is not used then")
    parser.add_argument("--api-key", default="none", help="for that server")
    parser.add_argument("--users", type=int, default=8, help="at once")
    parser.add_argument("--requests", type=int, default=200, help="of all users")
    parser.add_argument("--shared-tokens", type=int, default=4096, help="of the text that conversations are about")
    parser.add_argument("--max-tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--png", type=Path, help="also draw a plot")
    options = parser.parse_args()
    server = (
        contextlib.nullcontext(options.url) if options.url else started(options.model, options.dtype, options.memory)
    )
    with server as url:
        asyncio.run(measure(options, url))


async def measure(options: argparse.Namespace, url: str) -> None:
    """Put a server under load, and print what came of it."""

    def connect() -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {options.api_key}"}
        limits = httpx.Limits(max_connections=options.users + 2)
        return httpx.AsyncClient(base_url=url, headers=headers, timeout=None, limits=limits)

    async with connect() as client:
        text = "\n\n".join(moby_dick_chapters())[: 8 * options.shared_tokens]
        ids = (await client.post("/tokenize", json={"text": text})).raise_for_status().json()["tokens"]
        body = {"tokens": ids[: options.shared_tokens]}
        shared = (await client.post("/detokenize", json=body)).raise_for_status().json()["text"]
    async with connect() as client:
        before = await metrics(client)
    async with connect() as client:
        load = Load(client, options, shared)
        seconds = await load.run()
    await asyncio.sleep(1)  # the server notices that connections were closed
    async with connect() as client:
        after = await metrics(client)
    show(options, load, seconds, before, after)


def show(
    options: argparse.Namespace, load: Load, seconds: float, before: dict[str, float], after: dict[str, float]
) -> None:
    """Print a row for each kind of request, and the server's own numbers."""
    rows = []
    for kind in KINDS:
        asked = [each for each in load.asked if each.kind == kind]
        first = [1e3 * each.first_token for each in asked if each.first_token is not None]
        per_token = [1e3 * each.per_token for each in asked if each.per_token is not None]
        errors = sum(each.error is not None for each in asked)
        rows.append([kind, len(asked), errors, *percentiles(first), *percentiles(per_token)])
    columns = ["requests of", "number", "errors"]
    columns += [f"{what}, ms: {p}" for what in ("first token", "per token") for p in ("p50", "p90", "p99")]
    warm_up = min(WARM_UP, options.requests // 5)
    warm = next((sample for sample in load.samples if sample.num_done >= warm_up), load.samples[-1])
    end_rss = int(after.get("process_resident_memory_bytes", 0))
    counted = {name: after[name] - before.get(name, 0) for name in after}
    report(
        f"{options.requests} requests of {options.users} users",
        columns,
        rows,
        options.json,
        seconds=round(seconds, 2),
        generated_tokens_per_second=round(counted["goldfinch_generated_tokens_total"] / seconds, 2),
        prompt_tokens={
            kind: int(counted.get(f'goldfinch_prompt_tokens_total{{kind="{kind}"}}', 0))
            for kind in ("cached", "replayed", "computed")
        },
        errors=dict(Counter(each.error for each in load.asked if each.error is not None)),
        rss_before=int(before.get("process_resident_memory_bytes", 0)),
        rss_after_warm_up=warm.rss,
        rss_after=end_rss,
        rss_growth_after_warm_up=f"{end_rss / warm.rss - 1:.1%}" if warm.rss else "unknown",
        open_files_before=int(before.get("process_open_fds", 0)),
        open_files_after=int(after.get("process_open_fds", 0)),
        samples=[dataclasses.astuple(sample) for sample in load.samples] if options.json else len(load.samples),
    )
    if options.png is not None:
        plot_waits(options.png, f"{options.requests} requests of {options.users} users", load.asked)


def plot_waits(path: Path, title: str, asked: Sequence[Asked]) -> None:
    """Draw how many of the requests waited no longer than how long."""

    def fill(axes: Axes) -> None:
        for kind in KINDS:
            waits = sorted(1e3 * each.first_token for each in asked if each.kind == kind and each.first_token)
            if waits:
                axes.plot(
                    [100 * (place + 1) / len(waits) for place in range(len(waits))], waits, label=f"{kind}: first token"
                )
        each_token = sorted(1e3 * each.per_token for each in asked if each.per_token)
        places = [100 * (place + 1) / len(each_token) for place in range(len(each_token))]
        axes.plot(places, each_token, "k--", label="each token after it")
        axes.set(title=title, xlabel="% of requests", ylabel="ms, at most", yscale="log")
        axes.grid(alpha=0.3)

    draw(path, fill)


def percentiles(values: Sequence[float]) -> list[float | None]:
    """p50, p90 and p99 by the nearest rank; None if there is nothing."""
    ordered = sorted(values)
    return [ordered[math.ceil(p / 100 * len(ordered)) - 1] if ordered else None for p in (50, 90, 99)]


async def metrics(client: httpx.AsyncClient) -> dict[str, float]:
    """Name and labels -> value."""
    text = (await client.get("/metrics")).raise_for_status().text
    return {name: float(value) for name, value in re.findall(r"^(\w+(?:\{.*\})?) (\S+)$", text, re.MULTILINE)}


@contextlib.contextmanager
def started(model: str, dtype: str, memory: str = "auto") -> Iterator[str]:
    """The URL of a server in a process of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(model)
        if not folder.is_dir():
            folder = Path(temporary) / "model"
            GoldFinch(model, dtype).lm.save(folder)
        command = [sys.executable, "-m", "goldfinch", "serve", str(folder), "--port", "0"]
        command += ["--dtype", dtype, "--memory", memory]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                found = re.search(r"http://\S+:\d+", server.stdout.readline())
                if found is None:
                    raise SystemExit("the server did not start")
                yield found[0]
            finally:
                server.send_signal(signal.SIGTERM)
                server.wait()


if __name__ == "__main__":
    main()
