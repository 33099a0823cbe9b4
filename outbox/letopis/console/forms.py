"""Read the fields of a form, within limits."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl

from starlette.requests import Request

MAX_FORM_BYTES: Final = 32 * 1024 * 1024
"""The largest event has 8 MiB, and a form may need three bytes for each of its bytes."""
MAX_FIELDS: Final = 2_000


class FormRefused(Exception):
    """The request is not a form, or the form is too large; the message says which."""


async def read_form(request: Request) -> dict[str, list[str]]:
    """Return the fields of a form by name, each with its values in order.

    :raises FormRefused: it is larger than 32 MiB, has too many fields, or does not have a form's encoding.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise FormRefused("a form must be application/x-www-form-urlencoded")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            raise FormRefused("the form is too large")
    try:
        pairs = parse_qsl(
            bytes(body).decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict"
        )
    except ValueError:
        raise FormRefused("the form is not readable") from None
    fields: dict[str, list[str]] = {}
    for name, value in pairs:
        fields.setdefault(name, []).append(value)
    return fields
