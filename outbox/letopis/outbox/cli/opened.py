"""Change an outbox file that a bot and a relay may have open at the same time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from letopis.outbox.cli.places import existing_outbox

if TYPE_CHECKING:
    from letopis.outbox.config import Settings
    from letopis.outbox.file import OutboxFile

T = TypeVar("T")


async def changed_outbox(found: Settings, work: Callable[[OutboxFile], Awaitable[T]]) -> T:
    """Run ``work`` on the outbox file, which must be there, and close it again.

    :raises Ended: there is no outbox.
    """
    from letopis.outbox.file import OutboxFile

    file = await OutboxFile.open(existing_outbox(found), create=False)
    try:
        return await work(file)
    finally:
        await file.close()
