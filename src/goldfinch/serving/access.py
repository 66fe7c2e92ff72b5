"""API keys: who asks, and how much they may ask for.

A file of keys is YAML:

    keys:
      - name: alice
        key: any-text-of-16-characters-or-more
        requests_per_minute: 60      # the limits may be left out
        tokens_per_minute: 100000
        max_context_bytes: 5GiB
        metrics: true                # may see /metrics, which tells of all owners together

Keys are kept as hashes, and nothing that is shown or logged has one.
"""

import dataclasses
import hashlib
import hmac
import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from goldfinch.argument_checks import num_bytes
from goldfinch.errors import UserError
from goldfinch.json_yaml import read_yaml
from goldfinch.serving.context_store import check_name
from goldfinch.serving.errors import ApiError
from goldfinch.serving.page import PREFIX
from goldfinch.settings import from_plain

MAX_FILE_BYTES = 1 << 20
PUBLIC_PATHS = ("/", "/health")
"""What needs no key, with the files of the page: whether the server is there, and its page, which then asks for one."""
METRICS_PATH = "/metrics"
COMPUTING = re.compile(r"/v1/(completions|chat/completions|responses|contexts(/upload|/[^/]+/(append|truncate|fork))?)")
"""What makes the model read or write; the rest is answered though the tokens of a minute are used up."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A key, without the key itself. None means no limit."""

    name: str
    """Of the owner: contexts and cached prompts belong to it, so it stays when the key is changed."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Tokens that the model reads and generates; those that are cached cost nothing."""
    max_context_bytes: int | None = None
    """Of all contexts that are stored."""
    metrics: bool = False
    """Whether it may see /metrics, which tells of all owners together."""

    def __post_init__(self) -> None:
        check_name(self.name)
        for name in ("requests_per_minute", "tokens_per_minute", "max_context_bytes"):
            if (limit := getattr(self, name)) is not None and limit < 1:
                raise UserError(f"{name} must be at least 1: leave it out for no limit")


class ApiKeys:
    """All keys of a server.

    Args:
        keys: the text of each key, and what it allows.
    """

    def __init__(self, keys: Mapping[str, ApiKey]) -> None:
        self._keys = {_digest(secret.encode()): key for secret, key in keys.items()}

    def find(self, secret: bytes) -> ApiKey | None:
        """The key with this text, in a time that tells nothing about the others."""
        digest, found = _digest(secret), None
        for known, key in self._keys.items():
            if hmac.compare_digest(known, digest):
                found = key
        return found

    def max_context_bytes(self) -> dict[str, int]:
        """Name of an owner -> bytes of contexts, where there is a limit."""
        return {key.name: key.max_context_bytes for key in self._keys.values() if key.max_context_bytes is not None}


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def read_api_keys(path: Path) -> ApiKeys:
    """The keys in a file.

    Raises:
        UserError: it cannot be read, or something in it is wrong; no key is in the message.
    """
    try:
        content = read_yaml(path, MAX_FILE_BYTES)
    except UserError as error:
        if not isinstance(error.__cause__, yaml.YAMLError):
            raise
        # PyYAML's message quotes the line, and so perhaps a key.
        mark = getattr(error.__cause__, "problem_mark", None)
        raise UserError(f"{path} is not valid YAML" + (f", in line {mark.line + 1}" if mark else "")) from None
    entries = content.get("keys") if isinstance(content, dict) and len(content) == 1 else None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} must be a mapping with one field, keys: a list that is not empty")
    keys = dict[str, ApiKey]()
    for index, entry in enumerate(entries, start=1):
        try:
            secret, key = _parse(entry)
        except UserError as error:
            raise UserError(f"{path}: key {index}: {error}") from None
        if secret in keys or key.name in {other.name for other in keys.values()}:
            raise UserError(f"{path}: key {index}: another one has the same {'key' if secret in keys else 'name'}")
        keys[secret] = key
    return ApiKeys(keys)


def _parse(entry: object) -> tuple[str, ApiKey]:
    """The text of a key, and what it allows."""
    fields = [*(field.name for field in dataclasses.fields(ApiKey)), "key"]
    if not isinstance(entry, dict) or not {"name", "key"} <= set(entry) <= set(fields):
        raise UserError(f"it must have a name and a key, and nothing else than {', '.join(fields)}")
    values = dict(entry)
    secret = values.pop("key")
    if not isinstance(secret, str) or not re.fullmatch(r"[!-~]{16,512}", secret):
        raise UserError("key must be a text of 16 to 512 ASCII characters without spaces")
    if (size := values.get("max_context_bytes")) is not None:
        values["max_context_bytes"] = num_bytes("max_context_bytes", str(size))
    return secret, from_plain(ApiKey, values)


class Allowance:
    """Something of which there is a certain amount a minute; what was spent comes back evenly.

    More can be spent than there is, since what a request costs is known afterwards. Then there is a debt to wait for.

    Args:
        per_minute: how much comes back in a minute; also how much there is at most.
        clock: in seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._left, self._measured_at = float(per_minute), clock()

    def spend(self, amount: float) -> None:
        """Take some."""
        now = self._clock()
        back = (now - self._measured_at) * self._per_minute / 60
        self._left = min(self._per_minute, self._left + back) - amount
        self._measured_at = now

    def seconds_until(self, amount: float) -> int:
        """In how many whole seconds this amount is there; 0 if it is now."""
        self.spend(0)
        return max(0, math.ceil((amount - self._left) * 60 / self._per_minute))


class _Account:
    """What the owner of a key has left."""

    def __init__(self, key: ApiKey, num_tokens: Callable[[str], int]) -> None:
        self._key, self._num_tokens = key, num_tokens
        self._requests = None if key.requests_per_minute is None else Allowance(key.requests_per_minute)
        self._tokens = None if key.tokens_per_minute is None else Allowance(key.tokens_per_minute)
        self._tokens_before = num_tokens(key.name)

    def admit(self, computes: bool) -> None:
        """Count a request.

        Raises:
            ApiError: 429; it has to wait.
        """
        if self._requests is not None:
            _refuse(self._requests.seconds_until(1), f"{self._key.requests_per_minute:,} requests a minute")
            self._requests.spend(1)
        if self._tokens is not None:
            tokens = self._num_tokens(self._key.name)
            self._tokens.spend(tokens - self._tokens_before)
            self._tokens_before = tokens
            if computes:
                _refuse(self._tokens.seconds_until(1), f"{self._key.tokens_per_minute:,} tokens a minute")


def _refuse(seconds: int, limit: str) -> None:
    if seconds > 0:
        raise ApiError(
            429,
            f"the limit of this API key is reached, {limit}: try again in {seconds} s",
            "rate_limit_error",
            code="rate_limit_exceeded",
            headers={"Retry-After": str(seconds)},
        )


class KeyCheck:
    """ASGI middleware: lets requests with a key in, as far as the key allows, and tells routes the owner's name.

    Args:
        app: what it stands before.
        keys: all that there are.
        num_tokens: name of an owner -> tokens that the model has read or generated for it.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys, num_tokens: Callable[[str], int]) -> None:
        self.app = app
        self._keys, self._num_tokens = keys, num_tokens
        self._accounts: dict[str, _Account] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer requests without a key (401) or beyond its limits (429), and pass the others on."""
        if scope["type"] == "http" and not _is_public(scope):
            try:
                scope.setdefault("state", {})["owner"] = self._owner(scope)
            except ApiError as error:
                await error.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _owner(self, scope: Scope) -> str:
        given = Headers(scope=scope).getlist("Authorization")
        scheme, _, secret = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        key = self._keys.find(secret.strip().encode("latin-1")) if scheme.lower() == "bearer" else None
        if key is None:
            problem = "this API key is not known here" if given else "this server needs an API key"
            raise ApiError(
                401,
                f"{problem}: send it in the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if scope["path"] == METRICS_PATH and not key.metrics:
            raise ApiError(403, "this API key may not see /metrics: the file of keys has to say `metrics: true` of it")
        if key.name not in self._accounts:
            self._accounts[key.name] = _Account(key, self._num_tokens)
        computes = scope["method"] == "POST" and COMPUTING.fullmatch(scope["path"]) is not None
        self._accounts[key.name].admit(computes)
        return key.name


def _is_public(scope: Scope) -> bool:
    """Whether anyone may ask: reading what is the same for all."""
    path = scope["path"]
    return scope["method"] in ("GET", "HEAD") and (path in PUBLIC_PATHS or path.startswith(PREFIX))
