"""``letopis relay``: deliver what an outbox holds, until told to stop, or once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from letopis.outbox.cli.exits import Ended, Exit
from letopis.outbox.cli.options import settings, with_options
from letopis.outbox.cli.output import note

if TYPE_CHECKING:
    from letopis.outbox.config import Settings
    from letopis.outbox.file import OutboxFile
    from letopis.outbox.lanes import Counts
    from letopis.outbox.relay import Relay

IDLE_STEPS: Final = 3
"""Steps in a row that deliver nothing, after which nothing more is due."""
RESTLESS_STEPS: Final = 100
"""Steps in a row that deliver nothing although something is due, after which it is left for later."""


@click.command()
@click.option(
    "--once", is_flag=True, help="Deliver what is due now and end: 0 if nothing is left, 75 if the store is down."
)
@click.option(
    "--log-level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    default="INFO",
    show_default=True,
    envvar="LETOPIS_LOG_LEVEL",
    show_envvar=True,
    help="What is worth a line on stderr.",
)
@click.option(
    "--log-format",
    type=click.Choice(["auto", "text", "json"]),
    default="auto",
    show_default=True,
    envvar="LETOPIS_LOG_FORMAT",
    show_envvar=True,
    help="auto: text on a terminal, else one JSON object a line.",
)
@with_options
def relay(once: bool, log_level: str, log_format: str) -> None:
    """Deliver what the outbox holds to the history store, until interrupted or terminated.

    Any number may run on one outbox: one works, the others stand by. A first signal lets the batch in flight finish, a
    second one does not wait for it; neither loses anything.
    """
    from letopis.outbox.logs import set_up

    set_up(level=log_level, style=log_format)
    found = settings()
    asyncio.run(_once(found) if once else _run(found))


async def _run(found: Settings) -> None:
    async with _opened(found) as (_, relay):
        task = asyncio.ensure_future(relay.run())
        signals = 0

        def end() -> None:
            nonlocal signals
            signals += 1
            if signals == 1:
                note("letopis: finishing the batch in flight; once more to end at once")
                relay.stop()
            else:
                task.cancel()

        with _on_signals(end):
            await asyncio.wait((task,))
        if not task.cancelled():
            task.result()


async def _once(found: Settings) -> None:
    from letopis.outbox.lanes import counts

    async with _opened(found) as (outbox, relay):
        if not await relay.lease.take():
            left = await outbox.read(counts)
            if left.pending:
                raise Ended(Exit.LATER, "another relay works on this outbox and delivers what is pending")
            return
        try:
            left = await _drain(outbox, relay)
        finally:
            await relay.lease.release()
        note(f"{relay.stats.delivered} delivered, {left.pending} left")
        _judge(left, relay)


async def _drain(outbox: OutboxFile, relay: Relay) -> Counts:
    """Deliver until nothing is due any more; return what is left."""
    from letopis.outbox.lanes import counts

    idle = 0
    while True:
        if await relay.drain_once():
            idle = 0
            continue
        idle += 1
        left = await outbox.read(counts)
        due = left.lanes["ready"] > 0
        if not relay.breaker.closed or idle >= (RESTLESS_STEPS if due else IDLE_STEPS):
            return left
        await asyncio.sleep(0.05 if due else 0)


def _judge(left: Counts, relay: Relay) -> None:
    """End with the code that what is left deserves."""
    trouble = relay.breaker.trouble
    if trouble is not None and trouble.fault_class == "misconfigured":
        raise Ended(Exit.CONFIGURATION, f"the history store: {trouble}")
    if trouble is not None:
        raise Ended(Exit.LATER, f"the history store: {trouble}; nothing is lost, try again later")
    if left.lanes["ready"] or left.lanes["retrying"]:
        raise Ended(Exit.LATER, "what is left is tried again later")
    if left.lanes["blocked"]:
        blocked = left.lanes["blocked"]
        raise Ended(Exit.FAILED, f"{blocked} conversation{'s wait' if blocked > 1 else ' waits'} for a person")


@asynccontextmanager
async def _opened(found: Settings) -> AsyncIterator[tuple[OutboxFile, Relay]]:
    """Open both ends, and make sure that a store which answers has its tables; one that is down may come later."""
    from letopis.outbox.cli.places import existing_outbox, store_of
    from letopis.outbox.file import OutboxFile
    from letopis.outbox.relay import Relay
    from letopis.outbox.tail import Pruner
    from letopis.store.faults import FaultClass, StoreFault
    from letopis.store.history import ConversationStore

    outbox = await OutboxFile.open(existing_outbox(found), create=False)
    try:
        store = ConversationStore(store_of(found), pool_size=2)
        try:
            try:
                await store.prepare()
            except StoreFault as fault:
                if fault.fault_class is FaultClass.MISCONFIGURED:
                    raise
            chores = (Pruner(found.retention, outbox.now_us),)
            yield outbox, Relay(outbox, store, policy=found.policy, holder="letopis relay", chores=chores)
        finally:
            await store.close()
    finally:
        await outbox.close()


@contextmanager
def _on_signals(act: Callable[[], None]) -> Iterator[None]:
    """Call ``act`` in the event loop at each SIGINT and SIGTERM, instead of what they do otherwise."""
    loop = asyncio.get_running_loop()
    wanted = (signal.SIGINT, signal.SIGTERM)
    before: dict[signal.Signals, Any] = {one: signal.getsignal(one) for one in wanted}

    def on_signal(*_: object) -> None:
        loop.call_soon_threadsafe(act)

    # Not loop.add_signal_handler: Windows has none.
    for one in wanted:
        signal.signal(one, on_signal)
    try:
        yield
    finally:
        for one, old in before.items():
            signal.signal(one, old)
