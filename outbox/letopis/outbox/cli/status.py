"""``letopis status``: how an outbox and its relay are."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import click

from letopis.outbox.cli.exits import Ended, Exit
from letopis.outbox.cli.options import settings, with_options
from letopis.outbox.cli.output import JSON, clean, print_json, span

if TYPE_CHECKING:
    from letopis.outbox.status import Status

LANES: Final = ("ready", "retrying", "blocked", "paused")


@click.command()
@click.option("--check", is_flag=True, help="Exit with 1 where not all is well.")
@JSON
@with_options
def status(check: bool, as_json: bool) -> None:
    """Show what is pending, blocked and delivered.

    Reads the outbox file alone: it creates nothing, changes nothing, and needs no history store.
    """
    from letopis.outbox.cli.places import existing_outbox
    from letopis.outbox.file import look
    from letopis.outbox.status import read_status
    from letopis.store.events import to_microseconds, utc_now

    path = existing_outbox(settings())
    found = asyncio.run(look(path, lambda connection: read_status(connection, now_us=to_microseconds(utc_now()))))
    if as_json:
        print_json({"outbox": path.name, **found.to_json()})
    else:
        click.echo(_told(found))
    if check and not found.healthy:
        raise Ended(Exit.FAILED)


def _told(found: Status) -> str:
    """Return the status for people: the verdict first."""
    relay, breaker = found.relay, found.breaker
    lines = [_verdict(found), ""]
    lines.append(f"pending    {found.pending} events, {found.pending_bytes} bytes")
    lines.append(f"oldest     {span(found.oldest_owed_seconds)}")
    lines.append(f"delivered  {found.delivered} events")
    busy = ", ".join(f"{found.lanes.get(state, 0)} {state}" for state in LANES if found.lanes.get(state, 0))
    lines.append(f"waiting    {busy or 'no conversation'}")
    reason = f", {clean(breaker.reason)}" if breaker.reason else ""
    store = _STORE.get(breaker.state, clean(breaker.state)) if relay.holder else "no relay has asked it yet"
    lines.append(f"store      {store}{reason}")
    running = "running" if relay.running else "not running"
    holder = f", {'' if relay.running else 'last '}{clean(relay.holder)}" if relay.holder else ""
    progress = f", moved {span(relay.last_progress_seconds)} ago" if relay.last_progress_seconds is not None else ""
    lines.append(f"relay      {running}{holder}{progress}")
    if relay.held_since is not None:
        why = f": {clean(relay.held_reason)}" if relay.held_reason else ""
        lines.append(f"held back  since {relay.held_since:%Y-%m-%d %H:%M}Z{why}")
    lines += [
        f"incident   {case.kind}, {case.state}, since {case.opened_at:%Y-%m-%d %H:%M}Z"
        + (f", {clean(case.conversation_id)}" if case.conversation_id else "")
        for case in found.incidents
    ]
    return "\n".join(lines)


_STORE: Final = {
    "closed": "delivered to",
    "open": "away, asked again from time to time",
    "half_open": "away, asked again now",
}


def _verdict(found: Status) -> str:
    blocked = found.lanes.get("blocked", 0)
    if blocked:
        return f"{blocked} conversation{' waits' if blocked == 1 else 's wait'} for a person; nothing is lost."
    if found.incidents:
        return "Something is stuck; nothing is lost."
    if not found.pending:
        return "Everything is in the history store."
    if found.relay.held_since is not None:
        return f"{found.pending} events wait: the relay is held back until `letopis resume`."
    if found.breaker.state != "closed":
        return f"{found.pending} events wait for the history store to come back; nothing is lost."
    if not found.relay.running:
        return f"{found.pending} events wait, and no relay runs: start the bot, or `letopis relay`."
    return f"{found.pending} events are on their way."
