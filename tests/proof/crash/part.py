"""Run everything that is killed, one row after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tests.campaigns.victims import fork_server
from tests.proof.crash import at_random, exact, matrix
from tests.proof.options import Options
from tests.proof.rows import Row

DRIVERS: Final = ("aiosqlite", "asyncpg", "asyncmy", "sqlalchemy.dialects.postgresql", "sqlalchemy.dialects.mysql")
"""Imported when the first connection is made, and so by every process again that is not born with them."""


def prove(options: Options) -> Iterator[Row]:
    """Kill processes."""
    context = fork_server("tests.proof.crash.mortals", *DRIVERS)
    yield from at_random.prove(options, context)
    yield from matrix.prove(options, context)
    yield from exact.prove(options, context)
