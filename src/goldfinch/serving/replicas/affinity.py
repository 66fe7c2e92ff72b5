"""Which requests should be answered by the same replica: those that continue the same text."""

import hashlib
import json
import re
from typing import Any

from goldfinch.serving.replicas.messages import HttpRequest

MAX_CHARACTERS = 1024
"""Of a prompt; those that begin like it are of one conversation, whatever follows."""
MAX_IDS = 256
"""The same of token ids."""
_CONTEXT_PATH = re.compile(r"/v1/contexts/([^/]+)(/.*)?")
_OTHER_FIELDS = ("context", "parent", "prompt_cache_key")


def affinity_key(request: HttpRequest) -> str:
    """The same text for requests that have the most in common; "" if any replica will do.

    A request about a context has the context's id, one with a `prompt_cache_key` that, and a prompt or conversation its
    beginning: for a conversation all up to the first message of a user, which stays the same turn after turn.
    """
    if (match := _CONTEXT_PATH.fullmatch(request.path)) and match[1] != "upload":
        return _hashed(request.owner, match[1])
    if request.method != "POST":
        return ""
    try:
        body = json.loads(request.body)
    except ValueError:  # files; or a body that a replica refuses
        return ""
    if not isinstance(body, dict):
        return ""
    named = next((body[name] for name in _OTHER_FIELDS if isinstance(body.get(name), str)), None)
    beginning = named if named is not None else _beginning(body)
    return _hashed(request.owner, beginning) if beginning else ""


def _beginning(body: dict[str, Any]) -> Any:
    """Of what is to be continued; something false if there is nothing."""
    if isinstance(messages := body.get("messages", body.get("input")), list):
        roles = [message.get("role") if isinstance(message, dict) else None for message in messages]
        num_first = roles.index("user") + 1 if "user" in roles else len(messages)
        return [body.get("instructions"), messages[:num_first]]
    prompt = body.get("prompt", body.get("input", body.get("text")))
    if isinstance(prompt, list):
        prompt = prompt[:MAX_IDS] if prompt and isinstance(prompt[0], int) else (prompt or [None])[0]
    return prompt[:MAX_CHARACTERS] if isinstance(prompt, str) else prompt


def _hashed(owner: str, beginning: Any) -> str:
    return hashlib.sha256(json.dumps([owner, beginning]).encode()).hexdigest()
