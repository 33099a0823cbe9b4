"""``letopis relay``, ``pause`` and ``resume``: deliver pending events, or hold delivery back."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from letopis.ops.cli.interface.exit_codes import CommandExit, Exit, explain
from letopis.ops.cli.interface.locations import with_outbox
from letopis.ops.cli.interface.options import given_outboxes, settings, verb
from letopis.ops.cli.interface.output import env_option, note, printable
from letopis.ops.cli.interface.selection import as_operator

if TYPE_CHECKING:
    from pathlib import Path

    from letopis.ops.daemon.daemon import DaemonSettings
    from letopis.outbox.file.outbox_file import OutboxFile
    from letopis.outbox.relay.relay import Relay

PAUSE_SECONDS: Final = 1.0  # between two attempts of a drain
LISTEN: Final = env_option(
    "--listen",
    metavar="[HOST:]PORT",
    help="Serve /healthz/live, /healthz/ready and /metrics over HTTP; a bare port binds 127.0.0.1. "
    "Needs letopis[daemon].",
)

CONSOLE: Final = env_option(
    "--console", is_flag=True, help="Serve the console at /console/ of --listen too. Needs letopis[console]."
)


@verb(
    "letopis relay",
    "letopis relay --once   # for cron, or to deliver now",
    "letopis relay --drain 60   # before a container is stopped",
    "letopis relay --outbox 'bots/*.outbox.db' --listen 9464",
)
@click.option(
    "--once", is_flag=True, help="Deliver what is due and exit: 0 if nothing is left, 75 if the store is down."
)
@click.option(
    "--drain",
    metavar="SECONDS",
    type=click.FloatRange(0, 86_400),
    help="As --once, and wait up to SECONDS for what is retried later or delivered by another relay.",
)
@LISTEN
@CONSOLE
@env_option(
    "--stop-timeout",
    metavar="SECONDS",
    type=click.FloatRange(0, 3600),
    help="Seconds for the batch in flight after the first signal. Default: 8.",
)
@env_option(
    "--log-level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    help="The least level to log on stderr. Default: INFO.",
)
@env_option(
    "--log-format",
    type=click.Choice(["auto", "text", "json"]),
    help="auto, the default: text on a terminal, otherwise one JSON object per line.",
)
@env_option(
    "--trace-conversations",
    is_flag=True,
    help="Name the conversations on OpenTelemetry spans (gen_ai.conversation.id). Needs letopis[otel].",
)
def relay(once: bool, drain: float | None, **given: Any) -> None:
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
            return _configured(patterns, given)

    # This process only delivers, and makes next to no circles: looking for them less often saves a part of each drain.
    gc.set_threshold(20_000, 20, 20)
    config = configure()
    if once or drain is not None:
        configure_logging(level=config.log_level, style=config.log_format)
        asyncio.run(_drain(config, drain or 0.0))
    else:
        asyncio.run(_run(configure))


@verb("letopis pause --reason 'the database is being upgraded'")
@click.option("--reason", metavar="TEXT", help="The reason; `letopis status` shows it.")
def pause(reason: str | None) -> None:
    """Pause delivery, in whichever process the relay runs, until `letopis resume`.

    The batch in flight is finished. The bot keeps running: its events wait in the outbox, and no alerts are sent. A
    restart does not end the pause. `letopis outbox pause` pauses single conversations.
    """
    asyncio.run(with_outbox(settings(), lambda file: as_operator(file).pause_relay(reason=reason)))
    note("delivery is paused; `letopis resume` resumes it")


@verb("letopis resume")
def resume() -> None:
    """Resume delivery after `letopis pause`. Exits with 3 if it was not paused."""
    if not asyncio.run(with_outbox(settings(), lambda file: as_operator(file).resume_relay())):
        raise CommandExit(Exit.NOTHING, "delivery was not paused")
    note("delivery is resumed")


def _configured(patterns: tuple[str, ...], given: Mapping[str, Any]) -> DaemonSettings:
    """Return the settings of the daemon: as given, otherwise read from letopis.toml now."""
    from letopis.ops.cli.console import load_console
    from letopis.ops.config.settings import load_alerts
    from letopis.ops.daemon.daemon import DaemonSettings
    from letopis.ops.daemon.http import parse_address

    config = settings(several=True)
    default, folder = DaemonSettings(outboxes=()), config.file.parent if config.file else None

    def chosen(name: str) -> Any:
        value = given[name]
        return config.daemon.get(name, getattr(default, name)) if value in (None, "") or value is False else value

    address, console = chosen("listen"), None
    if chosen("console"):
        hosted, gate = load_console("hosted"), load_console("configuration").read_gate(config.console, folder)
        console = hosted.hosting(gate)
    return DaemonSettings(
        outboxes=patterns or (str(config.outbox),),
        store=config.store,
        policy=config.policy,
        retention=config.retention,
        alerts=load_alerts(config.alerts, folder=folder),
        listen=parse_address(str(address)) if address else None,
        console=console,
        stop_timeout=float(chosen("stop_timeout")),
        **{name: chosen(name) for name in ("log_level", "log_format", "trace_conversations")},
    )


async def _run(configure: Callable[[], DaemonSettings]) -> None:
    from letopis.ops.daemon.daemon import Daemon
    from letopis.ops.daemon.systemd import on_signals

    daemon = Daemon(configure)
    with on_signals({"SIGINT": daemon.stop, "SIGTERM": daemon.stop, "SIGHUP": daemon.reload}):
        await daemon.run()


async def _drain(config: DaemonSettings, seconds: float) -> None:
    """Deliver all once, and again while what is left may still be delivered and there is time."""
    end = time.monotonic() + seconds
    while True:
        try:
            return await _all_once(config)
        except CommandExit as left:
            if left.code is not Exit.LATER or time.monotonic() + PAUSE_SECONDS > end:
                raise
        await asyncio.sleep(PAUSE_SECONDS)


async def _all_once(config: DaemonSettings) -> None:
    """Deliver from one outbox after the other; exit with the worst of their codes."""
    from letopis.ops.daemon.discovery import find_outboxes, may_be_outbox
    from letopis.store.errors import LetopisError

    named = [match for match in find_outboxes(config.outboxes) if not match.matched or may_be_outbox(match.path)]
    if not named:
        raise CommandExit(Exit.NOTHING, "no outbox matches")
    ends: list[CommandExit] = []
    for match in named:
        try:
            await _once(match.path, config)
        except (CommandExit, LetopisError) as error:  # of this file: the others are delivered all the same
            code, line = explain(error)
            ends.append(CommandExit(code, line if len(named) == 1 else f"{match.path.name}: {line}"))
    if ends:
        for other in ends[1:]:
            note(f"letopis: {printable(str(other))}")
        # A wrong configuration stays wrong; a temporary failure resolves without help.
        order = (Exit.CONFIGURATION, Exit.LATER, Exit.FAILED)
        raise CommandExit(min((end.code for end in ends), key=order.index), str(ends[0]))


async def _once(path: Path, config: DaemonSettings) -> None:
    from letopis.outbox.event_log.lanes import count_lanes
    from letopis.outbox.relay.outcome import logger
    from letopis.outbox.retry.circuit_breaker import OPERATOR_CLASSES

    async with _opened(path, config) as (outbox, relay):
        logger.info("delivering once: %s", relay.route)
        delivered = await relay.drain()
        left = await outbox.read(count_lanes)
        if relay.standing_by:
            if left.pending:
                raise CommandExit(Exit.LATER, "another relay runs on this outbox and delivers its pending events")
            return
        note(f"{delivered} delivered, {left.pending} left")
        trouble = relay.breaker.outage
        if trouble is not None and trouble.fault_class in OPERATOR_CLASSES:
            raise CommandExit(Exit.CONFIGURATION, f"the history store: {trouble}")
        if trouble is not None:
            raise CommandExit(Exit.LATER, f"the history store: {trouble}; nothing is lost, try again later")
        if left.lanes["ready"] or left.lanes["retrying"]:
            raise CommandExit(Exit.LATER, "the rest will be retried later")
        if left.lanes["blocked"]:
            blocked = left.lanes["blocked"]
            are = "s are" if blocked > 1 else " is"
            raise CommandExit(Exit.FAILED, f"{blocked} conversation{are} blocked: see `letopis outbox list`")


@asynccontextmanager
async def _opened(path: Path, config: DaemonSettings) -> AsyncIterator[tuple[OutboxFile, Relay]]:
    """Open the outbox and the store; check the tables of a store that answers, one that is down may come back."""
    from letopis.outbox.file.inspection import store_beside
    from letopis.outbox.file.outbox_file import OutboxFile
    from letopis.outbox.operations.delivery import Deliverer, DeliveryOptions
    from letopis.outbox.relay.store_binding import find_refusal
    from letopis.store.conversation_store import ConversationStore
    from letopis.store.database.faults import FaultClass, StoreFault

    async with AsyncExitStack() as stack:
        outbox = await OutboxFile.open(path, create=False)
        stack.push_async_callback(outbox.close)
        store = ConversationStore(store_beside(path) if config.store is None else config.store, pool_size=2)
        stack.push_async_callback(store.close)
        try:
            if (refused := await find_refusal(outbox, store)) is not None:
                raise refused
            await store.prepare()
        except StoreFault as fault:
            if fault.fault_class in (FaultClass.MISCONFIGURED, FaultClass.WRONG_STORE):
                raise
        options = DeliveryOptions(policy=config.policy, retention=config.retention)
        yield outbox, Deliverer(outbox, options).add_relay(store, holder="letopis relay")
