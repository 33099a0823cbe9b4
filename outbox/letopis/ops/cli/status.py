"""``letopis status``: show the state of an outbox and its relay."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from letopis.ops.cli.interface.exit_codes import CommandExit, Exit
from letopis.ops.cli.interface.locations import existing_outbox
from letopis.ops.cli.interface.options import settings, verb
from letopis.ops.cli.interface.output import (
    check_reader,
    emit,
    format_duration,
    interval_option,
    printable,
    wants_json,
)

if TYPE_CHECKING:
    from letopis.outbox.operations.status import Status

LANES: Final = ("ready", "retrying", "blocked", "paused")
_CLEAR: Final = "\x1b[H\x1b[2J"  # moves the cursor to the corner of the screen and erases it
_AGES: Final = ("oldest_pending_seconds", "verdict", "wal_bytes")
"""Values that change all the time although nothing happens."""


@verb(
    "letopis status",
    "letopis status --watch",
    "letopis status --check || echo 'needs attention'   # for a script",
    "letopis status --json | jq .verdict",
    json=True,
)
@click.option("--check", is_flag=True, help="Exit with 1 if not all is well.")
@click.option("--watch", is_flag=True, help="Keep showing it until interrupted; with --json, one line per change.")
@interval_option("--watch", 2.0)
def status(check: bool, watch: bool, interval: float) -> None:
    """Show what is pending, blocked and delivered.

    Reads only the outbox file: creates nothing, changes nothing, and needs no history store.
    """
    path = existing_outbox(settings())
    if watch:
        if check:
            raise click.UsageError("--watch does not end, so --check has nothing to say: give one of them.")
        _watch(path, seconds=interval)
        return
    current = status_of_file(path)
    emit(_document(path, current), text=_status_text(path.name, current))
    if check and not current.healthy:
        raise CommandExit(Exit.FAILED)


def status_of_file(path: Path) -> Status:
    """Return the status of an outbox, with nothing created and nothing changed."""
    from letopis.outbox.file.inspection import read_file
    from letopis.outbox.operations.status import status_of
    from letopis.store.model.events import now_microseconds

    return read_file(path, lambda cursor: status_of(cursor, now_us=now_microseconds()))


def _document(path: Path, current: Status) -> dict[str, Any]:
    return {"outbox": path.name, **current.to_json()}


def _watch(path: Path, *, seconds: float) -> None:
    """Draw each status over the previous one on a terminal; otherwise print it below, if anything has changed."""
    drawn_over, printed = sys.stdout.isatty() and not wants_json(), None
    while True:
        current = status_of_file(path)
        document, text = _document(path, current), _status_text(path.name, current)
        # What stays the same as long as nothing happens.
        kept = {name: value for name, value in document.items() if name not in _AGES}
        key = {**kept, "relay": {**document["relay"], "last_progress_seconds": None}}
        if drawn_over:
            title = f"{printable(path.name)}, every {seconds:g} s, {current.read_at:%H:%M:%S}Z (Ctrl-C ends)"
            click.echo(f"{_CLEAR}{title}\n\n{text}")
        elif key != printed:
            emit(document, text=text if printed is None else f"\n{text}", line=True)
        printed = key
        sys.stdout.flush()
        time.sleep(seconds)
        check_reader()


def _status_text(name: str, current: Status) -> str:
    """Return the status as text, the verdict first."""
    relay = current.relay
    lines = [printable(current.verdict), ""]
    lines.append(f"outbox     {printable(name)}" + (f" ({current.outbox_id.hex[:8]})" if current.outbox_id else ""))
    lines.append(f"pending    {current.pending} events, {current.pending_bytes} bytes")
    lines.append(f"WAL        {current.wal_bytes} bytes")
    lines.append(f"oldest     {format_duration(current.oldest_pending_seconds)}")
    lines.append(f"delivered  {current.delivered} events")
    busy = ", ".join(f"{current.lanes.get(state, 0)} {state}" for state in LANES if current.lanes.get(state, 0))
    lines.append(f"waiting    {busy or 'no conversation'}")
    lines.append(f"store      {_place(current)}{_store_state(current)}")
    lines.append(f"relay      {_relay_state(current)}")
    if relay.paused_since is not None:
        why = f": {printable(relay.pause_reason)}" if relay.pause_reason else ""
        lines.append(f"paused     since {relay.paused_since:%Y-%m-%d %H:%M}Z{why}")
    if current.store_tasks:
        lines.append(f"store work {current.store_tasks} long rewinds or deletions, {current.store_rows} rows left")
    if (kept := current.retention).last_run_at is not None:
        deleted = f", {kept.checkpoints} checkpoints deleted" if kept.checkpoints else ""
        due = f", {kept.due} events to look at" if kept.due else ""
        look = f", last look {kept.last_run_at:%Y-%m-%d %H:%M}Z"
        lines.append(f"retention  {kept.trimmed} conversations trimmed{deleted}{look}{due}")
    lines += [
        f"erasures   not carried out in {printable(behind['name'])} since {behind['since'][:16].replace('T', ' ')}Z"
        for behind in current.unacknowledged
    ]
    lines += [
        f"forgotten  erasure {missing['number']} of {missing['kind']} {printable(missing['subject'])}, by the store"
        for missing in current.missing_erasures
    ]
    lines += [
        f"on hold    {held['kind']} {printable(held['subject'])}: {printable(held['reason'])}" for held in current.holds
    ]
    lines += [
        f"incident   {case.kind}, {case.state}, since {case.opened_at:%Y-%m-%d %H:%M}Z"
        + (f", {printable(case.conversation_id)}" if case.conversation_id else "")
        for case in current.incidents
    ]
    return "\n".join(lines)


def _relay_state(current: Status) -> str:
    """Return whether a relay is at work, which one is or was, and when it last got something done."""
    relay = current.relay
    state = "running" if relay.running else "not running"
    if relay.died:
        state = "not running: it ended without stopping, and its lock is free"
    holder = f", {'' if relay.running else 'last '}{printable(relay.holder)}" if relay.holder else ""
    if relay.last_progress_seconds is None:
        return f"{state}{holder}"
    return f"{state}{holder}, moved {format_duration(relay.last_progress_seconds)} ago"


def _place(current: Status) -> str:
    """Return the store's location and identity, as far as they are known."""
    store = current.store
    if store.destination is None:
        return ""
    bound = "not bound yet" if store.store_id is None else store.store_id.hex[:8]
    return f"{printable(store.destination)} ({bound}), "


def _store_state(current: Status) -> str:
    """Return whether the store takes deliveries; if not since when, why, and when it is tried next."""
    from letopis.outbox.alerting.incidents import fault_class
    from letopis.store.model.events import utc_now

    breaker, now = current.breaker, utc_now()
    if not current.relay.holder:
        return "not contacted by a relay yet"
    if breaker.state == "closed":
        return "reachable"
    state = "refuses events" if fault_class(breaker.reason) == "poison" else "unreachable"
    if breaker.since is not None:
        state += f" for {format_duration((now - breaker.since).total_seconds())}"
    if breaker.reason:
        state += f" ({printable(breaker.reason)})"
    if breaker.state == "half_open":
        return f"{state}; retrying now"
    if breaker.next_attempt_at is not None and breaker.next_attempt_at > now:
        return f"{state}; next attempt in {format_duration((breaker.next_attempt_at - now).total_seconds())}"
    return state
