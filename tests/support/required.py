"""Skip a test whose server is missing, or fail it where LETOPIS_TEST_REQUIRE names the server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import pytest

from tests.support.servers import Server, ServerUnavailable

S = TypeVar("S", bound=Server)


def missing(kind: str, reason: ServerUnavailable) -> NoReturn:
    """Fail or skip the test that needs a server of this kind."""
    if kind in os.environ.get("LETOPIS_TEST_REQUIRE", "").split(","):
        pytest.fail(f"{kind} is required here: {reason}", pytrace=False)
    pytest.skip(str(reason))


@contextmanager
def required(kind: str, find: Callable[..., S], **options: Any) -> Iterator[S]:
    """Give the server that a function finds, and end it afterwards if it was started for this."""
    try:
        server = find(**options)
    except ServerUnavailable as reason:
        missing(kind, reason)
    with server:
        yield server
