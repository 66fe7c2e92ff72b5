"""The page at `/`: files of this package, which ask no other place for anything."""

import hashlib
from importlib import resources
from importlib.resources.abc import Traversable

from fastapi import FastAPI, Request, Response

PREFIX = "/page/"
"""Address of all files but the page itself, which is at `/`. They hold nothing secret: API keys are asked for later."""
MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    # What a model writes never becomes HTML: browsers that know trusted types refuse the attempt.
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Kept by the browser, and asked for each time whether it has changed: a new version is never mixed with an old one.
    "Cache-Control": "no-cache",
}


def mount_page(app: FastAPI) -> None:
    """Add the page and its files to the routes of `app`."""
    for file in resources.files("goldfinch.serving").joinpath("page").iterdir():
        if file.name.partition(".")[2] in MEDIA_TYPES:
            _add_route(app, "/" if file.name == "index.html" else PREFIX + file.name, file)


def _add_route(app: FastAPI, path: str, file: Traversable) -> None:
    content = file.read_bytes()
    media_type = MEDIA_TYPES[file.name.partition(".")[2]]
    headers = HEADERS | {"ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}

    @app.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)
    async def page_file(request: Request) -> Response:
        if headers["ETag"] in request.headers.get("If-None-Match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)
