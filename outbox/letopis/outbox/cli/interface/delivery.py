"""Wait until the history store has everything, and show how far that is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from letopis.outbox.cli.interface.progress import ProgressReport
    from letopis.outbox.history.history import History

POLL_SECONDS: Final = 0.25


async def deliver(history: History, report: ProgressReport, *, longest: float | None) -> None:
    """Wait until nothing is pending, or everything that is waits for an operator.

    :param longest: the longest wait in seconds; ``None`` for none.
    """
    import anyio

    at_first = (await history.status()).pending

    async def show() -> None:
        most = at_first
        while True:
            pending = (await history.status()).pending
            most = max(most, pending)
            report(most - pending, total=most, title="delivering", unit="events")
            await anyio.sleep(POLL_SECONDS)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(show)
        await history.drained(longest)
        tasks.cancel_scope.cancel()
