"""``letopis follow``: print the log of the history store as it grows."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any, Final

import anyio
import click

from letopis.ops.cli.interface.exit_codes import CommandExit, Exit
from letopis.ops.cli.interface.locations import store_of
from letopis.ops.cli.interface.options import settings, verb
from letopis.ops.cli.interface.output import check_reader, emit, note, printable, truncate
from letopis.outbox.retry.policy import RetryPolicy

if TYPE_CHECKING:
    from letopis.store.conversation_store import ConversationStore
    from letopis.store.model.events import RecordedEvent

PAUSES: Final = RetryPolicy(base=1.0, factor=2.0, cap=30.0, jitter="none")


@verb("letopis follow", "letopis follow --json --from warehouse | ./load-into-warehouse", json=True)
@click.option(
    "--from",
    "name",
    metavar="NAME",
    help="Begin where the last run under this name ended, the first time at the beginning; its place is kept in the "
    "store. Without it: from now on.",
)
def follow(name: str | None) -> None:
    """Print every event of the history store as it is recorded, until interrupted: all conversations, all partitions.

    The events of a conversation come in order. With --from each event is printed at least once: after a crash, up to
    500 of each partition come again. A redaction is an event of its own. Remove what you copied when it arrives.
    """
    asyncio.run(_follow(name))


async def _follow(name: str | None) -> None:
    from letopis.store.conversation_store import ConversationStore
    from letopis.store.database.faults import StoreFault
    from letopis.store.projections.base import TRANSIENT_CLASSES

    store = ConversationStore(store_of(settings()), migrate=False)
    failures, positions = 0, dict[int, int]()
    try:
        while True:
            batches = _batches(store, name, positions)
            try:
                async for events in batches:
                    for event in events:
                        emit(_document(event), text=_line(event), line=True)
                    sys.stdout.flush()
                    check_reader()
                    failures = 0
            except StoreFault as fault:
                if fault.fault_class not in TRANSIENT_CLASSES:
                    raise CommandExit(Exit.CONFIGURATION, f"the history store: {fault}") from fault
                failures += 1
                seconds = PAUSES.bound(failures)
                note(f"the history store: {printable(str(fault))}; next try in {seconds:g} s")
                await anyio.sleep(seconds)
            finally:
                await batches.aclose()
    finally:
        await store.close()


async def _batches(
    store: ConversationStore, name: str | None, positions: dict[int, int]
) -> AsyncGenerator[Sequence[RecordedEvent], None]:
    """Yield what is new; without a name, after the heads that were there first, which ``positions`` keeps."""
    if name is not None:
        async for events in store.follower(name).batches():
            yield events
        return
    if not positions:
        positions.update({partition: await store.head(partition) for partition in range(await store.partitions())})
    async for event in store.subscribe(positions):
        yield (event,)
        positions[event.partition or 0] = event.position or 0


def _document(event: RecordedEvent) -> dict[str, Any]:
    """Return the JSON of an event; a documented, stable schema."""
    from letopis.store.transfer.timestamps import render_timestamp

    return {
        "conversation_id": event.conversation_id,
        "version": event.version,
        "event_id": str(event.event_id),
        "type": event.type,
        "schema_version": event.schema_version,
        "data": dict(event.data),
        "metadata": dict(event.metadata),
        "redacted": event.digest is None,
        "occurred_at": render_timestamp(event.occurred_at),
        "recorded_at": None if event.recorded_at is None else render_timestamp(event.recorded_at),
        "partition": event.partition,
        "position": event.position,
    }


def _line(event: RecordedEvent) -> str:
    content = event.data.get("content")
    words = printable(content) if isinstance(content, str) else ""
    head = f"{event.occurred_at:%Y-%m-%d %H:%M:%S}Z  {printable(event.conversation_id)}  {event.type}"
    return f"{head}  {truncate(words, 80)}".rstrip()
