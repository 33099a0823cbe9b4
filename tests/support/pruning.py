"""Prune an outbox at once, as it does by itself in quiet moments."""

from datetime import timedelta

from letopis.outbox import History, Retention
from letopis.outbox.event_log.retention import Pruner


async def prune(history: History, *, keep_last: int) -> None:
    """Prune what is delivered but for the newest events of each lane."""
    retention = Retention(keep_last=keep_last, keep_for=timedelta(0))
    await history.outbox.write(Pruner(retention, lambda: history.outbox.now_us() + 10**9))
