"""Serve the style sheet and the scripts from the package, each under its content hash."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

STATIC: Final = Path(__file__).parent / "static"
FILES: Final = {
    "console.css": ("console.css", "text/css; charset=utf-8"),
    "console.js": ("console.js", "text/javascript; charset=utf-8"),
    "htmx.js": ("vendor/htmx.min.js", "text/javascript; charset=utf-8"),
    "hx-sse.js": ("vendor/hx-sse.min.js", "text/javascript; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
"""The files that can be requested: the name in the URL, the file and its type."""


@cache
def content(name: str) -> bytes:
    """Return the bytes of a file."""
    return (STATIC / FILES[name][0]).read_bytes()


@cache
def fingerprint(name: str) -> str:
    """Return the hash in the URL of a file."""
    return hashlib.sha256(content(name)).hexdigest()[:16]


async def serve(request: Request) -> Response:
    """Return a file; cacheable for a year if the URL contains its hash."""
    name = request.path_params["name"]
    if name not in FILES:
        return PlainTextResponse("there is no such file\n", status_code=404)
    headers = {}
    if request.query_params.get("v") == fingerprint(name):
        headers["cache-control"] = "public, max-age=31536000, immutable"
    return Response(content(name), media_type=FILES[name][1], headers=headers)
