"""The part: everything that is killed, one row after the other."""

from __future__ import annotations

from collections.abc import Iterator

from tests.campaigns.victims import fork_server
from tests.proof.crash import exact
from tests.proof.options import Options
from tests.proof.rows import Row


def prove(options: Options) -> Iterator[Row]:
    """Kill processes."""
    context = fork_server("tests.proof.crash.script")
    yield from exact.prove(options, context)
