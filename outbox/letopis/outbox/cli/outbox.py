"""``letopis outbox``: look at what is pending, and get stuck events moving again."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from letopis.outbox.cli.choosing import YES, ask, choosing, chosen, named, named_fronts, said_which, whoever
from letopis.outbox.cli.exits import Ended, Exit
from letopis.outbox.cli.options import settings, with_options
from letopis.outbox.cli.output import JSON, clean, note, print_json, write
from letopis.outbox.cli.soundness import salvage, verify_outbox

if TYPE_CHECKING:
    import sqlalchemy as sa

    from letopis.outbox.file import OutboxFile
    from letopis.outbox.repair import Entry, Selection

T = TypeVar("T")

PAGE: Final = 200
MOST_AT_ONCE: Final = 10_000
"""Events that one ``skip`` lets go at most."""
MAX_FILE_BYTES: Final = 16 * 1024 * 1024

REASON = click.option("--reason", metavar="TEXT", required=True, help="Why: it is kept.")


@click.group()
@with_options
def outbox() -> None:
    """Look at what is pending, and get stuck events moving again.

    Works while the history store is down. Nothing here destroys anything: what is replaced is kept in the outbox file.
    """


@outbox.command(name="list")
@choosing()
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="At most so many.")
@JSON
@with_options
def list_events(limit: int, as_json: bool) -> None:
    """List pending events.

    Without a choice: the event at the front of each conversation that is blocked, retrying or paused. Exits with 3 if
    there is none.
    """
    from letopis.outbox.cli.pending import listed, summary
    from letopis.outbox.repair import Selection, entries

    selection = chosen() if said_which() else Selection(states=("blocked", "retrying", "paused"), fronts=True)
    path, found = _looked(lambda connection: entries(connection, selection, limit=limit + 1))
    more, found = len(found) > limit, found[:limit]
    if as_json:
        print_json({"outbox": path.name, "events": [summary(one) for one in found], "more": more})
    elif found:
        click.echo(listed(found))
    if not found:
        raise Ended(Exit.NOTHING, "nothing is stuck" if not said_which() else "nothing matched")
    if more:
        note(f"there are more than {limit}: narrow it down, or raise --limit")


@outbox.command()
@choosing()
@click.option("--payload", is_flag=True, help="Show data and metadata too: they are what people said.")
@click.option(
    "--data", "data_only", is_flag=True, help="Print the data of one event and nothing else, for `fix --file`."
)
@JSON
@with_options
def show(payload: bool, data_only: bool, as_json: bool) -> None:
    """Show events with the state of their conversation, and what was done to them.

    Exits with 3 if nothing matched.
    """
    from letopis.outbox.cli.pending import details, pretty, told
    from letopis.outbox.repair import entries, repairs_of

    selection = named()
    path, found = _looked(
        lambda connection: [
            (one, repairs_of(connection, one)) for one in entries(connection, selection, limit=PAGE + 1)
        ]
    )
    if not found:
        raise Ended(Exit.NOTHING, "nothing matched")
    if data_only:
        if len(found) > 1:
            raise click.UsageError(f"--data is for one event, and {len(found)} matched.")
        write(pretty(found[0][0].data))
        return
    more, found = len(found) > PAGE, found[:PAGE]
    if as_json:
        events = [details(entry, done, payload=payload) for entry, done in found]
        print_json({"outbox": path.name, "events": events, "more": more})
    else:
        click.echo("\n\n".join(told(entry, done, payload=payload) for entry, done in found))
    if more:
        note(f"there are more than {PAGE}: narrow it down")


@outbox.command()
@choosing()
@JSON
@with_options
def retry(as_json: bool) -> None:
    """Have blocked and retrying conversations tried again now, with all their attempts.

    Exits with 3 if none matched. A paused one stays paused.
    """
    from letopis.outbox import verbs

    selection = named()
    _lanes("retried", _changed(lambda file: verbs.retry(file, selection)), "tried again", as_json=as_json)


@outbox.command()
@choosing(whole=False)
@JSON
@with_options
def pause(as_json: bool) -> None:
    """Hold conversations back; what is said in them waits in the outbox. Exits with 3 if none matched.

    `letopis pause` holds back everything.
    """
    from letopis.outbox import verbs

    selection = named()
    _lanes("paused", _changed(lambda file: verbs.pause(file, selection)), "paused", as_json=as_json)


@outbox.command()
@choosing()
@JSON
@with_options
def resume(as_json: bool) -> None:
    """Let paused conversations go on. Exits with 3 if none matched."""
    from letopis.outbox import verbs

    selection = named()
    _lanes("resumed", _changed(lambda file: verbs.resume(file, selection)), "going on", as_json=as_json)


@outbox.command()
@choosing()
@REASON
@click.option(
    "--missing",
    is_flag=True,
    help="Of the one --conversation: the events that neither the outbox nor the history store holds any more. "
    "Asks the store.",
)
@YES
@JSON
@with_options
def skip(reason: str, missing: bool, yes: bool, as_json: bool) -> None:
    """Let stuck events go: the history gets a tombstone with the reason in the place of each.

    Of each conversation only the event at its front. Exits with 3 if nothing matched, with 2 where it has to ask and
    cannot.
    """
    if missing:
        _skip_missing(reason, yes=yes, as_json=as_json)
        return
    from letopis.outbox import verbs
    from letopis.outbox.repair import NotRepairable, checked_reason

    checked_reason(reason)
    found = _found(named_fronts())
    ask(f"Skip {_what(found)}? The history will hold {_tombstones(len(found))} instead.", yes=yes)

    async def work(file: OutboxFile) -> list[tuple[Entry, str | None]]:
        done: list[tuple[Entry, str | None]] = []
        for one in found:
            try:
                done.append((await verbs.skip(file, one.event_id, reason=reason, by=whoever()), None))
            except NotRepairable as error:
                done.append((one, str(error)))
        return done

    _repaired("skipped", _changed(work), as_json=as_json)


def _skip_missing(reason: str, *, yes: bool, as_json: bool) -> None:
    from letopis.outbox import verbs
    from letopis.outbox.cli.places import store_of
    from letopis.store.history import ConversationStore

    selection = named()
    if len(selection.conversation_ids) != 1 or selection.event_ids or selection.states or selection.fault_classes:
        raise click.UsageError("--missing is for one --conversation.")
    [conversation_id] = selection.conversation_ids
    ask(f"Give up what is missing of {clean(conversation_id)}? The history will hold tombstones instead.", yes=yes)

    async def work(file: OutboxFile) -> tuple[int, ...]:
        async with ConversationStore.open(store_of(settings()), migrate=False) as store:
            return await verbs.skip_missing(file, store, conversation_id, reason=reason)

    sequences = _changed(work)
    if as_json:
        print_json({"conversation_id": conversation_id, "skipped": list(sequences)})
    else:
        note(f"{clean(conversation_id)}: {_tombstones(len(sequences))} put in the place of what was missing")


@outbox.command()
@choosing(whole=False)
@REASON
@click.option("--file", "file", metavar="FILE", help='The corrected data, a JSON object; "-" is stdin.')
@click.option("--metadata-file", metavar="FILE", help="Corrected metadata, a JSON object. Without it, it stays.")
@click.option("--original", is_flag=True, help="Put the event back as it was before any fix or skip.")
@YES
@JSON
@with_options
def fix(file: str | None, metadata_file: str | None, original: bool, reason: str, yes: bool, as_json: bool) -> None:
    """Give one stuck event corrected data, under its id and in its place; the original is kept.

    The event is named by its id, or as the front of a --conversation. `letopis outbox show --data` prints what to
    correct. Exits with 3 if nothing matched, with 2 where the data will not do or where it has to ask and cannot.
    """
    from letopis.outbox import verbs
    from letopis.outbox.repair import checked_reason
    from letopis.store.codec import Limits

    if original == bool(file or metadata_file):
        raise click.UsageError("Give --file, --metadata-file or both; or --original.")
    checked_reason(reason)
    data = None if file is None else _object(file)
    metadata = None if metadata_file is None else _object(metadata_file)
    found = _found(named_fronts())
    if len(found) > 1:
        raise click.UsageError(f"fix is for one event, and {len(found)} matched.")
    [entry] = found
    ask(f"{'Put back' if original else 'Correct'} {_what(found)}?", yes=yes)

    async def work(file: OutboxFile) -> list[tuple[Entry, str | None]]:
        if original:
            done = await verbs.restore(file, entry.event_id, reason=reason, by=whoever())
        else:
            # As wide as limits go: the bot's own are not known here, and its event may be larger than the default.
            wide = Limits(max_bytes=8 * 1024 * 1024, max_depth=200)
            done = await verbs.fix(
                file, entry.event_id, data, metadata=metadata, reason=reason, by=whoever(), limits=wide
            )
        return [(done, None)]

    _repaired("restored" if original else "fixed", _changed(work), as_json=as_json)


@outbox.command()
@click.option("--file", "file", metavar="FILE", default="-", help="Where to; stdout by default.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@choosing()
@with_options
def export(file: str, force: bool) -> None:
    """Write pending events as JSON Lines, one event with everything about it a line; all of them by default.

    Needs nothing but the outbox file. FILE appears when it is whole, for its owner only. Exits with 3 if nothing
    matched.
    """
    import orjson

    from letopis.outbox.cli.outfile import written
    from letopis.outbox.cli.pending import whole

    selection = chosen()
    count = 0
    with written(file, force=force) as stream:
        for entry in _all(selection):
            stream.write(orjson.dumps(whole(entry), option=orjson.OPT_APPEND_NEWLINE))
            count += 1
        if not count:
            raise Ended(Exit.NOTHING, "nothing matched")
    note(f"{count} event{'' if count == 1 else 's'} exported")


outbox.add_command(verify_outbox)
outbox.add_command(salvage)


def _all(selection: Selection) -> Iterator[Entry]:
    """Yield all events of a selection, a page at a time, so that memory is bounded."""
    from letopis.outbox.repair import entries

    after = ("", 0)
    while True:
        _, page = _looked(lambda connection, after=after: entries(connection, selection, limit=PAGE, after=after))  # type: ignore[misc]
        yield from page
        if len(page) < PAGE:
            return
        after = (page[-1].conversation_id, page[-1].sequence)


def _found(selection: Selection) -> list[Entry]:
    from letopis.outbox.repair import entries

    _, found = _looked(lambda connection: entries(connection, selection, limit=MOST_AT_ONCE))
    if not found:
        raise Ended(Exit.NOTHING, "nothing matched: it was delivered, or never appended")
    return found


def _looked(work: Callable[[sa.Connection], T]) -> tuple[Path, T]:
    """Run ``work`` over the outbox file, which stays as it is."""
    from letopis.outbox.cli.places import existing_outbox
    from letopis.outbox.file import look

    path = existing_outbox(settings())
    return path, asyncio.run(look(path, work))


def _changed(work: Callable[[OutboxFile], Awaitable[T]]) -> T:
    """Run ``work`` on the open outbox file, beside whatever bot and relay have it open."""
    from letopis.outbox.cli.opened import changed_outbox

    return asyncio.run(changed_outbox(settings(), work))


def _what(found: Sequence[Entry]) -> str:
    """Return events for a question."""
    if len(found) > 1:
        return f"{len(found)} events, each at the front of its conversation"
    [one] = found
    return f"event {one.event_id} of {clean(one.conversation_id)} ({clean(one.type)}, {one.size} bytes)"


def _tombstones(count: int) -> str:
    return "a tombstone" if count == 1 else f"{count} tombstones"


def _lanes(word: str, conversations: list[str], said: str, *, as_json: bool) -> None:
    """Report what a verb did to conversations."""
    if as_json:
        print_json({word: conversations})
    if not conversations:
        raise Ended(Exit.NOTHING, "nothing matched")
    if not as_json:
        for one in conversations:
            click.echo(clean(one))
        note(f"{len(conversations)} conversation{'' if len(conversations) == 1 else 's'} {said}")


def _repaired(word: str, outcome: Sequence[tuple[Entry, str | None]], *, as_json: bool) -> None:
    """Report what a verb did to events; what could not be done makes it fail."""
    done = [one for one, error in outcome if error is None]
    failed = [(one, error) for one, error in outcome if error is not None]
    if as_json:
        print_json(
            {
                word: [_named(one) for one in done],
                "refused": [{**_named(one), "reason": error} for one, error in failed],
            }
        )
    else:
        for one in done:
            click.echo(f"{one.event_id}  {clean(one.conversation_id)}")
        for _, error in failed:
            note(f"letopis: {error}")
        note(f"{len(done)} event{'' if len(done) == 1 else 's'} {word}")
    if failed:
        raise Ended(Exit.FAILED)


def _named(entry: Entry) -> dict[str, Any]:
    return {
        "event_id": str(entry.event_id),
        "conversation_id": entry.conversation_id,
        "sequence": entry.sequence,
        "type": entry.type,
        "digest": entry.digest.hex(),
    }


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
        raise Ended(Exit.USAGE, f"{clean(file)} cannot be read: {error.strerror}") from error
    if len(held) > MAX_FILE_BYTES:
        raise Ended(Exit.USAGE, f"{clean(file)} is larger than an event can be")
    try:
        value = orjson.loads(held.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise Ended(Exit.USAGE, f"{clean(file)} is no JSON: line {error.lineno}, column {error.colno}") from None
    if not isinstance(value, dict):
        raise Ended(Exit.USAGE, f"{clean(file)} must hold a JSON object")
    return value
