"""``letopis outbox``: inspect pending events, and get stuck ones moving again."""

from __future__ import annotations

import asyncio
import sys
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from letopis.ops.cli.interface.command import VerbGroup
from letopis.ops.cli.interface.exit_codes import CommandExit, Exit
from letopis.ops.cli.interface.locations import read_outbox, store_of, with_outbox
from letopis.ops.cli.interface.options import settings, verb, with_options
from letopis.ops.cli.interface.output import (
    FORCE,
    counted,
    emit,
    note,
    open_output,
    printable,
    remark,
    wants_json,
    write,
)
from letopis.ops.cli.interface.selection import (
    YES,
    as_operator,
    confirm,
    current_selection,
    has_selection,
    required_selection,
    with_selection,
)
from letopis.ops.cli.move import rebind
from letopis.ops.cli.verify import salvage, verify_outbox

if TYPE_CHECKING:
    from letopis.outbox.file.outbox_file import OutboxFile
    from letopis.outbox.operations.pending_events import PendingEvent, Selection

T = TypeVar("T")

PAGE: Final = 200
MAX_REPAIRED: Final = 10_000  # events that one ``skip`` repairs at most
MAX_SHOWN: Final = 200
MAX_FILE_BYTES: Final = 16 * 1024 * 1024

REASON = click.option("--reason", metavar="TEXT", required=True, help="The reason; it is recorded.")


@click.group(cls=VerbGroup)
@with_options
def outbox() -> None:
    """Inspect pending events, and get stuck ones moving again.

    Works while the history store is down. Nothing is destroyed: the originals stay in the outbox file.
    """


@verb(
    "letopis outbox list",
    "letopis outbox list --state blocked --json",
    "letopis outbox list --all --limit 1000   # everything that is pending",
    name="list",
    group=outbox,
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
    from letopis.ops.cli.interface.render import event_table
    from letopis.outbox.operations.pending_events import Selection, event_summary, list_missing, list_pending
    from letopis.outbox.operations.status import read_status
    from letopis.store.model.events import now_microseconds

    narrowed = has_selection()
    selection = current_selection() if narrowed else Selection(states=("blocked", "retrying", "paused"), fronts=True)
    now_us = now_microseconds()
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
            "missing": [asdict(lane) for lane in missing],
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
    group=outbox,
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
    from letopis.ops.cli.interface.render import event_details, event_text, indented
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


@verb("letopis outbox retry --all", "letopis outbox retry --conversation telegram:4711", group=outbox, json=True)
@with_selection()
def retry() -> None:
    """Retry blocked and retrying conversations now, with a full set of attempts.

    Exits with 3 if none matched. A paused one stays paused.
    """
    selection = required_selection()
    _lanes("retried", _changed(lambda file: as_operator(file).retry(selection)), "will be retried")


@verb("letopis outbox pause --conversation telegram:4711", group=outbox, json=True)
@with_selection(whole=False)
def pause() -> None:
    """Pause conversations; their events wait in the outbox. Exits with 3 if none matched.

    `letopis pause` pauses all delivery.
    """
    selection = required_selection()
    _lanes("paused", _changed(lambda file: as_operator(file).pause(selection)), "paused")


@verb("letopis outbox resume --all", "letopis outbox resume --conversation telegram:4711", group=outbox, json=True)
@with_selection()
def resume() -> None:
    """Resume paused conversations. Exits with 3 if none matched."""
    selection = required_selection()
    _lanes("resumed", _changed(lambda file: as_operator(file).resume(selection)), "resumed")


@verb(
    'letopis outbox skip EVENT_ID --reason "duplicate of 2026-01-31"',
    "letopis outbox skip --fault-class poison --reason 'agreed with support' --yes",
    'letopis outbox skip --missing --conversation telegram:4711 --reason "no backup has it"',
    group=outbox,
    json=True,
)
@with_selection()
@REASON
@click.option(
    "--missing",
    is_flag=True,
    help="Skip the events of one --conversation that neither the outbox nor the history store holds any more. "
    "Queries the store.",
)
@YES
def skip(reason: str, missing: bool, yes: bool) -> None:
    """Skip stuck events: the history gets a tombstone with the reason in place of each.

    Only the event that each conversation is waiting on. Exits with 3 if nothing matched, with 2 if confirmation is
    required and stdin is not a terminal.
    """
    if missing:
        _skip_missing(reason, yes=yes)
        return
    from letopis.outbox.operations.repair import NotRepairable, checked_reason

    checked_reason(reason)
    events = _found(required_selection(fronts=True))
    confirm(f"Skip {_what(events)}? The history will hold {_tombstones(len(events))} instead.", yes=yes)

    async def work(file: OutboxFile) -> list[tuple[PendingEvent, str | None]]:
        done: list[tuple[PendingEvent, str | None]] = []
        for event in events:
            try:
                done.append((await as_operator(file).skip(event.event_id, reason=reason), None))
            except NotRepairable as error:
                done.append((event, str(error)))
        return done

    _repaired("skipped", _changed(work))


def _skip_missing(reason: str, *, yes: bool) -> None:
    from letopis.store.conversation_store import ConversationStore

    selection = required_selection()
    if len(selection.conversation_ids) != 1 or selection.event_ids or selection.states or selection.fault_classes:
        raise click.UsageError("--missing is for one --conversation.")
    [conversation_id] = selection.conversation_ids
    confirm(
        f"Skip the missing events of {printable(conversation_id)}? The history will hold tombstones instead.", yes=yes
    )

    async def work(file: OutboxFile) -> tuple[int, ...]:
        async with ConversationStore.open(store_of(settings()), migrate=False) as store:
            return await as_operator(file).skip_missing(store, conversation_id, reason=reason)

    sequences = _changed(work)
    emit(
        {"conversation_id": conversation_id, "skipped": list(sequences)},
        text=lambda: note(
            f"{printable(conversation_id)}: {_tombstones(len(sequences))} put in place of the missing events"
        ),
    )


@verb(
    "letopis outbox show EVENT_ID --data >event.json",
    'letopis outbox fix EVENT_ID --file event.json --reason "too long for the column"',
    'letopis outbox fix EVENT_ID --original --reason "the table is wider now"',
    group=outbox,
    json=True,
)
@with_selection(whole=False)
@REASON
@click.option("--file", "file", metavar="FILE", help='The corrected data, a JSON object; "-" is stdin.')
@click.option("--metadata-file", metavar="FILE", help="Corrected metadata, a JSON object. Unchanged without it.")
@click.option("--original", is_flag=True, help="Put the event back as it was before any fix or skip.")
@YES
def fix(file: str | None, metadata_file: str | None, original: bool, reason: str, yes: bool) -> None:
    """Correct the data of one stuck event, under the same id and in its place; the original is kept.

    Name the event by its id, or a --conversation for the event it is waiting on. `letopis outbox show --data` prints
    the data to correct. Exits with 3 if nothing matched, with 2 if the data is invalid, or if confirmation is required
    and stdin is not a terminal.
    """
    from letopis.outbox.operations.repair import checked_reason
    from letopis.store.model.codec import Limits

    if original == bool(file or metadata_file):
        raise click.UsageError("Give --file, --metadata-file or both; or --original.")
    checked_reason(reason)
    data = None if file is None else _object(file)
    metadata = None if metadata_file is None else _object(metadata_file)
    events = _found(required_selection(fronts=True))
    if len(events) > 1:
        raise click.UsageError(f"fix is for one event, and {len(events)} matched.")
    [entry] = events
    confirm(f"{'Put back' if original else 'Correct'} {_what(events)}?", yes=yes)

    async def work(file: OutboxFile) -> list[tuple[PendingEvent, str | None]]:
        if original:
            done = await as_operator(file).restore(entry.event_id, reason=reason)
        else:
            # The widest limits: the bot's own are not known here, and its event may be larger than the default.
            wide = Limits(max_bytes=8 * 1024 * 1024, max_depth=200)
            done = await as_operator(file).fix(entry.event_id, data, metadata=metadata, reason=reason, limits=wide)
        return [(done, None)]

    _repaired("restored" if original else "fixed", _changed(work))


@verb(
    "letopis outbox export --file pending.jsonl",
    "letopis outbox export --state blocked | jq -r .conversation_id",
    group=outbox,
)
@click.option("--file", "file", metavar="FILE", default="-", help="The file to write; stdout by default.")
@FORCE
@with_selection()
def export(file: str, force: bool) -> None:
    """Export pending events as JSON Lines, one complete event per line; all of them by default.

    The put of a record has its value as base64, or null where a later put replaced it; a message has its large content
    in place. Needs nothing but the outbox file. FILE appears when it is complete, for its owner only. Exits with 3 if
    nothing matched.
    """
    import orjson

    from letopis.outbox.operations.pending_events import event_json, value_of, whole_data
    from letopis.store.model.large_content import MARK_IN_JSON
    from letopis.store.model.records import RECORD_PUT

    selection = current_selection()
    count = 0
    with open_output(file, force=force) as stream:
        for entry in _all(selection):
            line = event_json(entry)
            if entry.type == RECORD_PUT:
                _, value = read_outbox(settings(), partial(value_of, entry=entry))
                line["value"] = None if value is None else b64encode(value).decode()
            elif MARK_IN_JSON in entry.data:
                _, line["data"] = read_outbox(settings(), partial(whole_data, entry=entry))
            stream.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
            count += 1
        if not count:
            raise CommandExit(Exit.NOTHING, "nothing matched")
    note(f"{counted(count, 'event')} exported")


for _command in (rebind, verify_outbox, salvage):
    outbox.add_command(_command)


def _all(selection: Selection) -> Iterator[PendingEvent]:
    """Yield all events of a selection, a page at a time, so that memory is bounded."""
    from letopis.outbox.operations.pending_events import list_pending

    after = ("", 0)
    while True:
        work = partial(list_pending, selection=selection, limit=PAGE, after=after)
        _, page = read_outbox(settings(), work)
        yield from page
        if len(page) < PAGE:
            return
        after = (page[-1].conversation_id, page[-1].sequence)


def _found(selection: Selection) -> list[PendingEvent]:
    from letopis.outbox.operations.pending_events import list_pending

    _, events = read_outbox(settings(), lambda connection: list_pending(connection, selection, limit=MAX_REPAIRED))
    if not events:
        raise CommandExit(Exit.NOTHING, "nothing matched: the events were delivered, or never appended")
    return events


def _changed(work: Callable[[OutboxFile], Awaitable[T]]) -> T:
    """Run ``work`` on the open outbox file; a bot and a relay may have it open too."""
    return asyncio.run(with_outbox(settings(), work))


def _what(events: Sequence[PendingEvent]) -> str:
    if len(events) > 1:
        return f"{len(events)} events, each of which its conversation is waiting on"
    [event] = events
    return f"event {event.event_id} of {printable(event.conversation_id)} ({printable(event.type)}, {event.size} bytes)"


def _tombstones(count: int) -> str:
    return "a tombstone" if count == 1 else f"{count} tombstones"


def _lanes(word: str, conversations: list[str], said: str) -> None:
    """Print what a verb did to conversations."""
    emit({word: conversations}, text="\n".join(map(printable, conversations)))
    if not conversations:
        raise CommandExit(Exit.NOTHING, "nothing matched")
    remark(f"{counted(len(conversations), 'conversation')} {said}")


def _repaired(word: str, outcome: Sequence[tuple[PendingEvent, str | None]]) -> None:
    """Print what a verb did to events; fail if one was refused."""
    done = [event for event, error in outcome if error is None]
    failed = [(event, error) for event, error in outcome if error is not None]
    emit(
        {
            word: [_named(event) for event in done],
            "refused": [{**_named(event), "reason": error} for event, error in failed],
        },
        text="\n".join(f"{event.event_id}  {printable(event.conversation_id)}" for event in done),
    )
    if not wants_json():
        for _, error in failed:
            note(f"letopis: {error}")
        note(f"{counted(len(done), 'event')} {word}")
    if failed:
        raise CommandExit(Exit.FAILED)


def _named(entry: PendingEvent) -> dict[str, Any]:
    from letopis.outbox.operations.pending_events import picked

    named = picked(entry, "conversation_id", "sequence", "type")
    return {"event_id": str(entry.event_id), **named, "digest": entry.digest.hex()}


def _object(file: str) -> Mapping[str, Any]:
    """Return the JSON object that a file holds; no error quotes it."""
    import orjson

    try:
        if file == "-":
            held = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        else:
            with Path(file).open("rb") as stream:
                held = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise CommandExit(Exit.USAGE, f"{printable(file)} cannot be read: {error.strerror}") from error
    if len(held) > MAX_FILE_BYTES:
        raise CommandExit(Exit.USAGE, f"{printable(file)} is larger than an event can be")
    try:
        value = orjson.loads(held.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise CommandExit(
            Exit.USAGE, f"{printable(file)} is no JSON: line {error.lineno}, column {error.colno}"
        ) from None
    if not isinstance(value, dict):
        raise CommandExit(Exit.USAGE, f"{printable(file)} must hold a JSON object")
    return value
