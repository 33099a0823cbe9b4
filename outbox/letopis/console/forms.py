"""Read the fields of a form, within limits."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect, Request

MAX_FIRST_BYTES: Final = 4096
"""Bytes that are read of a form before its sender is known; the form token must be among them."""
MAX_FORM_BYTES: Final = 32 * 1024 * 1024
"""The largest event has 8 MiB, and a form may need three bytes for each of its bytes."""
MAX_FIELDS: Final = 2_000
FORM_TOKEN: Final = re.compile(rb"(?:^|&)form_token=(\w+)")


class FormRefused(Exception):
    """The request is not a form, or the form is too large; the message says which."""


class ForeignForm(Exception):
    """The form does not carry the token of the sender's session."""


async def read_form(request: Request, *, is_token: Callable[[str], bool] | None = None) -> dict[str, list[str]]:
    """Return the fields of a form by name, each with its values in order.

    :param is_token: checks the form token, before more than 4 KiB are read; with ``None``, no more are.
    :raises ForeignForm: the form token is wrong, or is not in the first 4 KiB.
    :raises FormRefused: it is larger than 4 KiB, or with a form token 32 MiB; it has too many fields, or does not have
        a form's encoding; or its sender disconnected.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise FormRefused("a form must be application/x-www-form-urlencoded")
    length = request.headers.get("content-length", "0")
    limit = MAX_FIRST_BYTES if is_token is None else MAX_FORM_BYTES
    if not length.isdecimal() or int(length[:20]) > limit:
        raise FormRefused("the form is too large")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if is_token is not None and len(body) >= MAX_FIRST_BYTES:
                _check(body, is_token)
                is_token = None
            if len(body) > limit:
                raise FormRefused("the form is too large")
    except ClientDisconnect:
        raise FormRefused("the form is incomplete") from None
    if is_token is not None:
        _check(body, is_token)
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


def _check(body: bytearray, is_token: Callable[[str], bool]) -> None:
    carried = FORM_TOKEN.search(body[:MAX_FIRST_BYTES])
    if carried is None or not is_token(carried[1].decode("ascii")):
        raise ForeignForm
