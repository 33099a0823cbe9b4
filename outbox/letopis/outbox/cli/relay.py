"""``letopis relay``: deliver what outboxes hold, until told to stop, or once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import click

from letopis.outbox.cli.exits import Ended, Exit
from letopis.outbox.cli.options import given_outboxes, settings, with_options
from letopis.outbox.cli.output import clean, note

if TYPE_CHECKING:
    from pathlib import Path

    from letopis.outbox.daemon import DaemonSettings
    from letopis.outbox.file import OutboxFile
    from letopis.outbox.lanes import Counts
    from letopis.outbox.relay import Relay

IDLE_STEPS: Final = 3
"""Steps in a row that deliver nothing, after which nothing more is due."""
RESTLESS_STEPS: Final = 100
"""Steps in a row that deliver nothing although something is due, after which it is left for later."""

LISTEN: Final = click.option(
    "--listen",
    metavar="[HOST:]PORT",
    envvar="LETOPIS_LISTEN",
    show_envvar=True,
    help="Answer /healthz/live, /healthz/ready and /metrics over HTTP; a bare port is one of 127.0.0.1. "
    "Needs letopis[daemon].",
)


@click.command()
@click.option(
    "--once", is_flag=True, help="Deliver what is due now and end: 0 if nothing is left, 75 if the store is down."
)
@LISTEN
@click.option(
    "--stop-timeout",
    metavar="SECONDS",
    type=click.FloatRange(0, 3600),
    envvar="LETOPIS_STOP_TIMEOUT",
    show_envvar=True,
    help="How long the batch in flight may take after the first signal. Default: 8.",
)
@click.option(
    "--log-level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    envvar="LETOPIS_LOG_LEVEL",
    show_envvar=True,
    help="What is worth a line on stderr. Default: INFO.",
)
@click.option(
    "--log-format",
    type=click.Choice(["auto", "text", "json"]),
    envvar="LETOPIS_LOG_FORMAT",
    show_envvar=True,
    help="auto, the default: text on a terminal, else one JSON object a line.",
)
@with_options
def relay(
    once: bool, listen: str | None, stop_timeout: float | None, log_level: str | None, log_format: str | None
) -> None:
    """Deliver what outboxes hold to the history store, until interrupted or terminated.

    --outbox may be repeated, and may be a pattern in quotes ('bots/*.outbox.db'): files that come to match it are
    served too. Any number of relays may run on one outbox: one works, the others stand by. A first signal lets the
    batch in flight finish, a second one does not wait for it; neither loses anything. SIGHUP reads the log level, the
    retry policy, the retention and the alerts from letopis.toml again.
    """
    from letopis.outbox.logs import set_up

    patterns = given_outboxes()
    context = click.get_current_context()

    def configure() -> DaemonSettings:
        with context.scope(cleanup=False):
            return _configured(
                patterns, listen=listen, stop_timeout=stop_timeout, log_level=log_level, log_format=log_format
            )

    found = configure()
    if once:
        set_up(level=found.log_level, style=found.log_format)
        asyncio.run(_all_once(found))
    else:
        asyncio.run(_run(configure))


def _configured(
    patterns: tuple[str, ...],
    *,
    listen: str | None,
    stop_timeout: float | None,
    log_level: str | None,
    log_format: str | None,
) -> DaemonSettings:
    """Return the settings: command line and environment, then letopis.toml as it is now, then the defaults."""
    from letopis.outbox.alert_settings import load_alerts
    from letopis.outbox.daemon import DaemonSettings
    from letopis.outbox.listening import parse_address

    found = settings(several=True)
    table = found.daemon
    default = DaemonSettings(outboxes=())
    address = listen or table.get("listen")
    return DaemonSettings(
        outboxes=patterns or (str(found.outbox),),
        store=found.store,
        policy=found.policy,
        retention=found.retention,
        alerts=load_alerts(found.alerts, folder=found.file.parent if found.file else None),
        listen=parse_address(str(address)) if address else None,
        stop_timeout=float(table.get("stop_timeout", default.stop_timeout)) if stop_timeout is None else stop_timeout,
        log_level=log_level or table.get("log_level", default.log_level),
        log_format=log_format or table.get("log_format", default.log_format),
    )


async def _run(configure: Callable[[], DaemonSettings]) -> None:
    from letopis.outbox.daemon import Daemon, on_signals

    daemon = Daemon(configure)
    with on_signals({"SIGINT": daemon.stop, "SIGTERM": daemon.stop, "SIGHUP": daemon.reload}):
        await daemon.run()


async def _all_once(found: DaemonSettings) -> None:
    """Deliver from one outbox after the other; end with the worst of what they come to."""
    from letopis.outbox.outboxes import find, holds_outbox

    named = [one for one in find(found.outboxes) if not one.matched or holds_outbox(one.path)]
    if not named:
        raise Ended(Exit.NOTHING, "no outbox matches")
    ends: list[Ended] = []
    for one in named:
        try:
            await _once(one.path, found)
        except Ended as ended:
            ends.append(ended if len(named) == 1 else Ended(ended.code, f"{one.path.name}: {ended}"))
    if ends:
        for other in ends[1:]:
            note(f"letopis: {clean(str(other))}")
        # A configuration stays wrong, what is for later mends itself, and a person is needed for the rest.
        order = (Exit.CONFIGURATION, Exit.LATER, Exit.FAILED)
        raise Ended(min((one.code for one in ends), key=order.index), str(ends[0]))


async def _once(path: Path, found: DaemonSettings) -> None:
    from letopis.outbox.lanes import counts

    async with _opened(path, found) as (outbox, relay):
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
async def _opened(path: Path, found: DaemonSettings) -> AsyncIterator[tuple[OutboxFile, Relay]]:
    """Open both ends, and make sure that a store which answers has its tables; one that is down may come later."""
    from letopis.outbox.file import OutboxFile
    from letopis.outbox.history import store_beside
    from letopis.outbox.relay import Relay
    from letopis.outbox.tail import Pruner
    from letopis.store.faults import FaultClass, StoreFault
    from letopis.store.history import ConversationStore

    outbox = await OutboxFile.open(path, create=False)
    try:
        store = ConversationStore(store_beside(path) if found.store is None else found.store, pool_size=2)
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
