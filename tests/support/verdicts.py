"""Whether what outboxes have delivered is whole, by the plain SQL of the campaigns."""

from letopis.outbox.file.outbox_file import OutboxFile
from tests.campaigns.invariants import check


async def assert_whole(outbox: OutboxFile, url: str, stored: int | None = None) -> None:
    """Check a drained outbox against its store, and how many events that holds."""
    verdict = await check([outbox.path], url, drained=True)
    assert verdict.ok, verdict
    assert stored is None or verdict.stored == stored


async def is_whole(outbox: OutboxFile, url: str, stored: int | None = None) -> bool:
    verdict = await check([outbox.path], url, drained=True)
    return verdict.ok and (stored is None or verdict.stored == stored)
