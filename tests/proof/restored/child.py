"""Run a move in a process that prints a dot for each of its transactions, with a defect if one is named.

    python -P child.py DEFECT WORDS...

It imports nothing of the tests, so that it is quick to start.
"""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import sqlalchemy as sa

PAGE: Final = 20  # events that a move copies in a transaction: many, so that there are many moments to be killed at
OPEN_FOR: Final = 1.0
"""Seconds that a source which was not closed keeps accepting deliveries, after all that it had was copied."""


def no_closing() -> None:
    """Have a move close its source when it hands the history over, not before the last copy; nor count what it has."""
    from letopis.store.database.schema import log_heads, store
    from letopis.store.database.store_identity import LogState
    from letopis.store.ops.move import mover
    from letopis.store.ops.move.endpoint import Endpoint
    from letopis.store.ops.move.handover import StoreRecord, read_store_record

    async def close(source: Endpoint, _: str) -> StoreRecord:
        return replace(await source.read(read_store_record), state=LogState.CLOSING)

    async def hand_over(source: Endpoint, closed: StoreRecord) -> None:
        await asyncio.sleep(OPEN_FOR)

        async def work(connection: Any) -> None:
            await connection.execute(sa.update(store).values(moved_to="elsewhere", moved_at=1))
            await connection.execute(sa.update(log_heads).values(closed=LogState.MOVED))

        await source.write(work)

    async def count(_: Any) -> None:
        await asyncio.sleep(0)

    mover.close_source, mover.commit_handover = close, hand_over  # type: ignore[assignment]
    mover._Move._check_log = count  # type: ignore[method-assign]


def tell_of_transactions() -> None:
    """Print a dot at each transaction of a move."""
    from letopis.store.ops.move import copier, endpoint

    def told(real: Callable[..., Any]) -> Callable[..., Any]:
        async def transaction(self: Any, work: Any) -> Any:
            sys.stdout.write(".\n")
            sys.stdout.flush()
            return await real(self, work)

        return transaction

    copier.PAGE_ROWS = PAGE  # type: ignore[misc]
    endpoint.Endpoint.read, endpoint.Endpoint.write = told(endpoint.Endpoint.read), told(endpoint.Endpoint.write)  # type: ignore[method-assign]


def main() -> int:
    defect, *words = sys.argv[1:]
    tell_of_transactions()
    if defect == "closing":
        no_closing()
    from letopis.ops.cli import cli
    from letopis.ops.cli.interface.exit_codes import run

    return run(cli, words)


if __name__ == "__main__":
    sys.exit(main())
