"""``letopis relay``, ``pause`` and ``resume``: deliver pending events, or hold delivery back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from letopis.outbox.cli.interface.command import Verb
from letopis.outbox.cli.interface.exit_codes import CommandExit, Exit, explain
from letopis.outbox.cli.interface.options import given_outboxes, settings, with_options
from letopis.outbox.cli.interface.output import note, printable

if TYPE_CHECKING:
    from pathlib import Path

    from letopis.outbox.config.settings import Settings
    from letopis.outbox.daemon.daemon import DaemonSettings
    from letopis.outbox.event_log.lanes import LaneCounts
    from letopis.outbox.file.outbox_file import OutboxFile
    from letopis.outbox.relay.relay import Relay

LISTEN: Final = click.option(
    "--listen",
    metavar="[HOST:]PORT",
    envvar="LETOPIS_LISTEN",
    show_envvar=True,
    help="Serve /healthz/live, /healthz/ready and /metrics over HTTP; a bare port binds 127.0.0.1. "
    "Needs letopis[daemon].",
)


CONSOLE: Final = click.option(
    "--console",
    is_flag=True,
    envvar="LETOPIS_CONSOLE",
    show_envvar=True,
    help="Serve the console at /console/ of --listen too. Needs letopis[console].",
)


@click.command(
    cls=Verb,
    examples=(
        "letopis relay",
        "letopis relay --once   # for cron, or to deliver now",
        "letopis relay --outbox 'bots/*.outbox.db' --listen 9464",
    ),
)
@click.option(
    "--once", is_flag=True, help="Deliver what is due and exit: 0 if nothing is left, 75 if the store is down."
)
@LISTEN
@CONSOLE
@click.option(
    "--stop-timeout",
    metavar="SECONDS",
    type=click.FloatRange(0, 3600),
    envvar="LETOPIS_STOP_TIMEOUT",
    show_envvar=True,
    help="Seconds for the batch in flight after the first signal. Default: 8.",
)
@click.option(
    "--log-level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    envvar="LETOPIS_LOG_LEVEL",
    show_envvar=True,
    help="The least level to log on stderr. Default: INFO.",
)
@click.option(
    "--log-format",
    type=click.Choice(["auto", "text", "json"]),
    envvar="LETOPIS_LOG_FORMAT",
    show_envvar=True,
    help="auto, the default: text on a terminal, otherwise one JSON object per line.",
)
@click.option(
    "--trace-conversations",
    is_flag=True,
    envvar="LETOPIS_TRACE_CONVERSATIONS",
    show_envvar=True,
    help="Name the conversations on OpenTelemetry spans (gen_ai.conversation.id). Needs letopis[otel].",
)
@with_options
def relay(
    once: bool,
    listen: str | None,
    console: bool,
    stop_timeout: float | None,
    log_level: str | None,
    log_format: str | None,
    trace_conversations: bool,
) -> None:
    """Deliver pending events to the history store, until interrupted or terminated.

    --outbox may be repeated, and may be a quoted pattern ('bots/*.outbox.db'): new matching files are picked up. Any
    number of relays may run on one outbox: one works, the others stand by. The first signal lets the batch in flight
    finish, the second does not wait for it; neither loses anything. SIGHUP reloads the log level, the retry policy, the
    retention and the alerts from letopis.toml.
    """
    from letopis.outbox.telemetry.logging import configure_logging

    patterns = given_outboxes()
    context = click.get_current_context()

    def configure() -> DaemonSettings:
        with context.scope(cleanup=False):
            return _configured(
                patterns,
                listen=listen,
                console=console,
                stop_timeout=stop_timeout,
                log_level=log_level,
                log_format=log_format,
                trace_conversations=trace_conversations,
            )

    found = configure()
    if once:
        configure_logging(level=found.log_level, style=found.log_format)
        asyncio.run(_all_once(found))
    else:
        asyncio.run(_run(configure))


@click.command(
    cls=Verb,
    examples=("letopis pause --reason 'the database is being upgraded'",),
)
@click.option("--reason", metavar="TEXT", help="The reason; `letopis status` shows it.")
@with_options
def pause(reason: str | None) -> None:
    """Pause delivery, in whichever process the relay runs, until `letopis resume`.

    The batch in flight is finished. The bot keeps running: its events wait in the outbox, and no alerts are sent. A
    restart does not end the pause. `letopis outbox pause` pauses single conversations.
    """
    from letopis.outbox.cli.interface.locations import with_outbox
    from letopis.outbox.cli.interface.selection import as_operator

    asyncio.run(with_outbox(settings(), lambda file: as_operator(file).pause_relay(reason=reason)))
    note("delivery is paused; `letopis resume` resumes it")


@click.command(cls=Verb, examples=("letopis resume",))
@with_options
def resume() -> None:
    """Resume delivery after `letopis pause`. Exits with 3 if it was not paused."""
    from letopis.outbox.cli.interface.locations import with_outbox
    from letopis.outbox.cli.interface.selection import as_operator

    if not asyncio.run(with_outbox(settings(), lambda file: as_operator(file).resume_relay())):
        raise CommandExit(Exit.NOTHING, "delivery was not paused")
    note("delivery is resumed")


def _configured(
    patterns: tuple[str, ...],
    *,
    listen: str | None,
    console: bool,
    stop_timeout: float | None,
    log_level: str | None,
    log_format: str | None,
    trace_conversations: bool,
) -> DaemonSettings:
    """Return the settings of the daemon, read from letopis.toml now."""
    from letopis.outbox.config.alerts import load_alerts
    from letopis.outbox.daemon.daemon import DaemonSettings
    from letopis.outbox.daemon.http import parse_address

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
        console=_hosting(found) if console or table.get("console") else None,
        stop_timeout=float(table.get("stop_timeout", default.stop_timeout)) if stop_timeout is None else stop_timeout,
        log_level=log_level or table.get("log_level", default.log_level),
        log_format=log_format or table.get("log_format", default.log_format),
        trace_conversations=trace_conversations or bool(table.get("trace_conversations", False)),
    )


def _hosting(found: Settings) -> Any:
    """Return what serves the console beside the relay."""
    from letopis.outbox.cli.console import load_console

    folder = found.file.parent if found.file else None
    return load_console("hosted").hosting(load_console("configuration").read_gate(found.console, folder))


async def _run(configure: Callable[[], DaemonSettings]) -> None:
    from letopis.outbox.daemon.daemon import Daemon
    from letopis.outbox.daemon.signals import on_signals

    daemon = Daemon(configure)
    with on_signals({"SIGINT": daemon.stop, "SIGTERM": daemon.stop, "SIGHUP": daemon.reload}):
        await daemon.run()


async def _all_once(found: DaemonSettings) -> None:
    """Deliver from one outbox after the other; exit with the worst of their codes."""
    from letopis.outbox.daemon.discovery import find_outboxes, may_be_outbox
    from letopis.store.errors import LetopisError

    named = [one for one in find_outboxes(found.outboxes) if not one.matched or may_be_outbox(one.path)]
    if not named:
        raise CommandExit(Exit.NOTHING, "no outbox matches")
    ends: list[CommandExit] = []
    for one in named:
        try:
            await _once(one.path, found)
        except (CommandExit, LetopisError) as error:  # of this file: the others are delivered all the same
            code, line = explain(error)
            ends.append(CommandExit(code, line if len(named) == 1 else f"{one.path.name}: {line}"))
    if ends:
        for other in ends[1:]:
            note(f"letopis: {printable(str(other))}")
        # A wrong configuration stays wrong; a temporary failure resolves without help.
        order = (Exit.CONFIGURATION, Exit.LATER, Exit.FAILED)
        raise CommandExit(min((one.code for one in ends), key=order.index), str(ends[0]))


async def _once(path: Path, found: DaemonSettings) -> None:
    from letopis.outbox.event_log.lanes import count_lanes
    from letopis.outbox.relay.outcome import logger

    async with _opened(path, found) as (outbox, relay):
        logger.info("delivering once: %s", relay.route)
        delivered = await relay.drain()
        left = await outbox.read(count_lanes)
        if relay.standing_by:
            if left.pending:
                raise CommandExit(Exit.LATER, "another relay runs on this outbox and delivers its pending events")
            return
        note(f"{delivered} delivered, {left.pending} left")
        _exit_with(left, relay)


def _exit_with(left: LaneCounts, relay: Relay) -> None:
    """Exit with the code for what is left, if anything."""
    from letopis.outbox.retry.circuit_breaker import OPERATOR_CLASSES

    trouble = relay.breaker.outage
    if trouble is not None and trouble.fault_class in OPERATOR_CLASSES:
        raise CommandExit(Exit.CONFIGURATION, f"the history store: {trouble}")
    if trouble is not None:
        raise CommandExit(Exit.LATER, f"the history store: {trouble}; nothing is lost, try again later")
    if left.lanes["ready"] or left.lanes["retrying"]:
        raise CommandExit(Exit.LATER, "the rest will be retried later")
    if left.lanes["blocked"]:
        blocked = left.lanes["blocked"]
        raise CommandExit(
            Exit.FAILED, f"{blocked} conversation{'s are' if blocked > 1 else ' is'} blocked: see `letopis outbox list`"
        )


@asynccontextmanager
async def _opened(path: Path, found: DaemonSettings) -> AsyncIterator[tuple[OutboxFile, Relay]]:
    """Open the outbox and the store; check the tables of a store that answers, one that is down may come back."""
    from letopis.outbox.event_log.retention import Pruner
    from letopis.outbox.file.outbox_file import OutboxFile
    from letopis.outbox.history.store_location import store_beside
    from letopis.outbox.relay.relay import Relay
    from letopis.outbox.relay.store_binding import find_refusal
    from letopis.store.conversation_store import ConversationStore
    from letopis.store.database.faults import FaultClass, StoreFault

    async with AsyncExitStack() as stack:
        outbox = await OutboxFile.open(path, create=False)
        stack.push_async_callback(outbox.close)
        store = ConversationStore(store_beside(path) if found.store is None else found.store, pool_size=2)
        stack.push_async_callback(store.close)
        try:
            if (refused := await find_refusal(outbox, store)) is not None:
                raise refused
            await store.prepare()
        except StoreFault as fault:
            if fault.fault_class in (FaultClass.MISCONFIGURED, FaultClass.WRONG_STORE):
                raise
        chores = (Pruner(found.retention, outbox.now_us),)
        yield outbox, Relay(outbox, store, policy=found.policy, holder="letopis relay", chores=chores)
