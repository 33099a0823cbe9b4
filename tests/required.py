"""Required: a server that is missing is a reason to skip, or a failure where LETOPIS_TEST_REQUIRE names it."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

from tests.servers import ServerUnavailable


def missing(kind: str, reason: ServerUnavailable) -> NoReturn:
    """Fail or skip the test that needs a server of this kind."""
    if kind in os.environ.get("LETOPIS_TEST_REQUIRE", "").split(","):
        pytest.fail(f"{kind} is required here: {reason}", pytrace=False)
    pytest.skip(str(reason))
