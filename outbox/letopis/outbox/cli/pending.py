"""``letopis outbox list`` and ``show``: inspect pending events."""

from __future__ import annotations

from typing import Final

import click

from letopis.outbox.cli.interface.exit_codes import CommandExit, Exit
from letopis.outbox.cli.interface.locations import read_outbox
from letopis.outbox.cli.interface.options import settings, verb
from letopis.outbox.cli.interface.output import emit, note, printable, write
from letopis.outbox.cli.interface.selection import current_selection, has_selection, required_selection, with_selection

MAX_SHOWN: Final = 200


@verb(
    "letopis outbox list",
    "letopis outbox list --state blocked --json",
    "letopis outbox list --all --limit 1000   # everything that is pending",
    name="list",
    json=True,
)
@with_selection()
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Print at most this many."
)
def list_events(limit: int) -> None:
    """List pending events.

    Without filters: the event that each blocked, retrying or paused conversation is waiting on, and exit 0 if there is
    none. With filters, exits with 3 if nothing matched.
    """
    from letopis.outbox.cli.interface.render import event_table, missing_json
    from letopis.outbox.operations.pending_events import Selection, event_summary, list_missing, list_pending
    from letopis.outbox.operations.status import read_status
    from letopis.store.model.events import to_microseconds, utc_now

    narrowed = has_selection()
    selection = current_selection() if narrowed else Selection(states=("blocked", "retrying", "paused"), fronts=True)
    now_us = to_microseconds(utc_now())
    # One snapshot, so that the sentence of `letopis status` and the list cannot contradict each other.
    path, (events, missing, how) = read_outbox(
        settings(),
        lambda connection: (
            list_pending(connection, selection, limit=limit + 1),
            [] if narrowed else list_missing(connection, limit=limit + 1),
            read_status(connection, now_us=now_us),
        ),
    )
    more = len(events) + len(missing) > limit
    events, missing = events[:limit], missing[: max(0, limit - len(events))]
    emit(
        {
            "outbox": path.name,
            "events": [event_summary(event) for event in events],
            "missing": [missing_json(lane) for lane in missing],
            "more": more,
        },
        text=event_table(events, missing) if events or missing else "",
    )
    if more:
        note(f"there are more than {limit}: narrow it down, or raise --limit")
    if not (events or missing):
        if narrowed:
            raise CommandExit(Exit.NOTHING, "nothing matched")
        note(f"no conversation is blocked, retrying or paused. {printable(how.verdict)}")


@verb(
    "letopis outbox show --conversation telegram:4711",
    "letopis outbox show EVENT_ID --payload --json",
    "letopis outbox show EVENT_ID --data >event.json   # to correct it",
    json=True,
)
@with_selection()
@click.option("--payload", is_flag=True, help="Include data and metadata, which hold the messages.")
@click.option(
    "--data", "data_only", is_flag=True, help="Print the data of one event and nothing else, for `fix --file`."
)
def show(payload: bool, data_only: bool) -> None:
    """Show events with the state of their conversation, and their repairs.

    Exits with 3 if nothing matched.
    """
    from letopis.outbox.cli.interface.render import event_details, event_text, indented
    from letopis.outbox.operations.pending_events import list_pending, list_repairs

    selection = required_selection()
    path, entries = read_outbox(
        settings(),
        lambda connection: [
            (event, list_repairs(connection, event))
            for event in list_pending(connection, selection, limit=MAX_SHOWN + 1)
        ],
    )
    if not entries:
        raise CommandExit(Exit.NOTHING, "nothing matched")
    if data_only:
        if len(entries) > 1:
            raise click.UsageError(f"--data is for one event, and {len(entries)} matched.")
        write(indented(entries[0][0].data))
        return
    more, entries = len(entries) > MAX_SHOWN, entries[:MAX_SHOWN]
    events = [event_details(entry, done, payload=payload) for entry, done in entries]
    emit(
        {"outbox": path.name, "events": events, "more": more},
        text="\n\n".join(event_text(entry, done, payload=payload) for entry, done in entries),
    )
    if more:
        note(f"there are more than {MAX_SHOWN}: narrow it down")
