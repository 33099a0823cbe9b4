"""``letopis history``: the conversations, the pending events among them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import click

from letopis.outbox.cli.exits import Ended, Exit
from letopis.outbox.cli.lazy import LazyGroup
from letopis.outbox.cli.options import settings, with_options
from letopis.outbox.cli.output import JSON, clean, cut, note, print_json, table, write

if TYPE_CHECKING:
    from letopis.store.conversation import Conversation, RecordedMessage

VERBS: Final = {
    "list": ("letopis.outbox.cli.history:list_", "List conversations, the newest activity first."),
    "show": ("letopis.outbox.cli.history:show", "Show the messages of a conversation."),
    "stats": ("letopis.outbox.cli.stats:stats", "Count questions, answers and tokens."),
    "search": ("letopis.outbox.cli.search:search", "Find messages by their words."),
    "import": ("letopis.outbox.cli.transfer:import_", "Take conversations in from a file."),
    "export": ("letopis.outbox.cli.transfer:export", "Write conversations to a file."),
}


@click.group(cls=LazyGroup, verbs=VERBS)
@with_options
def history() -> None:
    """List, show, count, search, import and export conversations.

    What still waits in the outbox is part of what is read. Where there is no outbox and --store is given, the history
    store is read alone.
    """


@click.command(name="list")
@click.option("--owner", metavar="ID", help="Only the conversations of this owner.")
@click.option(
    "--state",
    type=click.Choice(["active", "archived", "deleted", "all"]),
    default="active",
    show_default=True,
    help="Only those in this state.",
)
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="At most so many.")
@click.option("--after", metavar="PLACE", help="Go on where an earlier list ended; it named the place.")
@JSON
@with_options
def list_(owner: str | None, state: str, limit: int, after: str | None, as_json: bool) -> None:
    """List conversations, the newest activity first; a star marks the one that is its owner's active one.

    Exits with 3 if there is none.
    """
    import anyio

    from letopis.outbox.cli.places import opened_source

    async def read() -> Any:
        async with opened_source(settings()) as source:
            page = await source.conversations(owner=owner, after=after, limit=limit, states=states)
            if owner is None or not hasattr(source, "chats"):
                return page
            # What is pending may move the mark.
            marked = await source.active(owner, create=False)
            name = None if marked is None else marked.conversation_id
            items = tuple(one.with_changes(active=one.conversation_id == name) for one in page)
            return replace(page, items=items)

    states = ("active", "archived", "deleted") if state == "all" else (state,)
    page = anyio.run(read)
    if as_json:
        print_json(
            {"conversations": [_conversation(one) for one in page], "next": page.next, "complete": page.complete}
        )
    elif page:
        rows = [
            (
                clean(one.conversation_id),
                clean(one.owner_id or "-"),
                "-" if one.number is None else str(one.number),
                "*" if one.active else "",
                *((one.state,) if state == "all" else ()),
                str(one.message_count),
                str(one.pending or "-"),
                _minute(one.updated_at),
                cut(one.title or "", 40),
            )
            for one in page
        ]
        more = ("STATE",) if state == "all" else ()
        head = ("CONVERSATION", "OWNER", "NUMBER", "ACTIVE", *more, "MESSAGES", "PENDING", "LAST", "TITLE")
        click.echo(table(head, rows, right=(2, 4 + len(more), 5 + len(more))))
        if page.next is not None:
            note(f"there are more: --after {page.next}")
    say_whether_complete(page.complete)
    if not page:
        raise Ended(Exit.NOTHING, "no conversations" if owner is None else "no conversations of this owner")


@click.command()
@click.argument("conversation")
@click.option(
    "--last",
    type=click.IntRange(1, 10_000),
    help="At most so many messages. Default: 50, or all of them with --transcript.",
)
@click.option("--before", metavar="PLACE", help="Only what was said before an earlier page; it named the place.")
@click.option(
    "--as-of", metavar="VERSION|TIME", help="As it was after this version, or at this time: 2026-01-31T12:00:00Z."
)
@click.option("--transcript", "as_text", is_flag=True, help="Print a text to read and to keep, with days and marks.")
@JSON
@with_options
def show(
    conversation: str, last: int | None, before: str | None, as_of: str | None, as_text: bool, as_json: bool
) -> None:
    """Show the last messages of a conversation, oldest first.

    Exits with 3 if there is no such conversation, or was none then.
    """
    import anyio

    from letopis.outbox.cli.places import opened_source

    if as_text and as_json:
        raise click.UsageError("--transcript and --json cannot be given together")
    if last is None and not as_text:
        last = 50
    moment = _as_of(as_of)

    async def read() -> Any:
        async with opened_source(settings()) as source:
            # The messages first: a conversation that begins in between is then there for both.
            messages = await source.messages(conversation, last=last, before=before, as_of=moment)
            return messages, await source.conversation(conversation, as_of=moment)

    page, found = anyio.run(read)
    if found is None and not page:
        say_whether_complete(page.complete)
        there = "is" if as_of is None else "was then"
        raise Ended(Exit.NOTHING, f"there {there} no conversation {conversation!r}")
    if as_json:
        print_json(
            {
                "conversation": None if found is None else _conversation(found),
                "messages": [{"conversation_id": one.conversation_id, **message_json(one)} for one in page],
                "next": page.next,
                "complete": page.complete,
            }
        )
    elif as_text:
        from letopis.store.transcript import transcript

        # UTF-8 whatever the terminal: it is mostly redirected into a file.
        whole = page.complete and page.next is None
        write(f"{transcript(found, page, whole=whole)}\n".encode())
        if page.next is not None:
            note(f"there are earlier ones: --before {page.next}")
    else:
        for one in page:
            click.echo(_said(one))
        if page.next is not None:
            note(f"there are earlier ones: --before {page.next}")
    say_whether_complete(page.complete)


def say_whether_complete(complete: bool) -> None:
    """Say on stderr that what was read is not all there is."""
    if not complete:
        note(
            "the history store cannot be read (`letopis db check` says why): this is what the outbox retains, "
            "older parts may be missing"
        )


def _conversation(found: Conversation) -> dict[str, Any]:
    """Return the JSON of a conversation; the keys are documented and stay."""
    from letopis.store.transfer.moments import render_moment

    return {
        "conversation_id": found.conversation_id,
        "owner": found.owner_id,
        "number": found.number,
        "title": found.title,
        "state": found.state,
        "active": found.active,
        "version": found.version,
        "messages": found.message_count,
        "tokens": found.tokens,
        "pending": found.pending,
        "created_at": render_moment(found.created_at),
        "updated_at": render_moment(found.updated_at),
    }


def message_json(found: RecordedMessage) -> dict[str, Any]:
    """Return the JSON of a message; the keys are documented and stay."""
    from letopis.store.messages import content_to_json
    from letopis.store.transfer.moments import render_moment

    said = found.message
    return {
        "id": said.id,
        "version": found.version,
        "role": said.role,
        "content": content_to_json(said.content),
        "name": said.name,
        "tokens": said.tokens,
        "usage": dict(said.usage),
        "external_ids": dict(said.external_ids),
        "metadata": dict(said.metadata),
        "occurred_at": render_moment(found.occurred_at),
        "recorded_at": None if found.recorded_at is None else render_moment(found.recorded_at),
        "saved": found.saved,
        "edited": found.edited,
        "redacted": found.redacted,
        "delivery": found.delivery,
        "delivery_data": dict(found.delivery_data),
    }


def _said(found: RecordedMessage) -> str:
    """Return a message for people: who and when, its marks, then the words."""
    marks = [mark for mark, there in (("edited", found.edited), (found.saved, found.saved != "saved")) if there]
    if found.delivery != "appended":
        marks.append(found.delivery)
    name = f" ({clean(found.message.name)})" if found.message.name else ""
    head = f"{_minute(found.occurred_at)}  {found.role}{name}{''.join(f'  [{mark}]' for mark in marks)}"
    parts = 0 if isinstance(found.content, str) else sum(1 for part in found.content if not hasattr(part, "text"))
    words = clean(found.text, lines=True) or ("" if parts else "(redacted)" if found.redacted else "(empty)")
    more = f"({parts} other part{'s' if parts > 1 else ''})" if parts else ""
    body = "\n".join(line for line in (words, more) if line)
    return head + "\n" + "\n".join(f"    {line}" for line in body.split("\n"))


def _minute(moment: Any) -> str:
    return f"{moment:%Y-%m-%d %H:%M}Z"


def _as_of(text: str | None) -> Any:
    """Return the version or the moment that ``--as-of`` names; the command knows no others."""
    from letopis.store.errors import InvalidInput
    from letopis.store.transfer.moments import parse_moment

    if text is None or (text.isascii() and text.isdigit() and len(text) <= 19):
        return None if text is None else int(text)
    try:
        return parse_moment(text, "as_of")
    except InvalidInput as error:
        raise click.BadParameter(
            f"must be a version, which is a whole number, or a time: {error.reason}", param_hint="--as-of"
        ) from error
