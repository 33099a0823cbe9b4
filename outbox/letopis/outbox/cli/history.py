"""``letopis history``: list, show, count, search, import and export conversations."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import click

from letopis.outbox.cli._exit_codes import CommandExit, Exit
from letopis.outbox.cli._lazy_group import LazyGroup
from letopis.outbox.cli._options import settings, with_options
from letopis.outbox.cli._output import JSON, note, print_json, printable, table, truncate, write

if TYPE_CHECKING:
    from datetime import datetime

    from letopis.store.model.conversations import Conversation, RecordedMessage
    from letopis.store.rules.statistics import Figures, Statistics
    from letopis.store.search.results import Hit

_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)

VERBS: Final = {
    "list": ("letopis.outbox.cli.history:list_", "List conversations, newest activity first."),
    "show": ("letopis.outbox.cli.history:show", "Show the messages of a conversation."),
    "stats": ("letopis.outbox.cli.history:stats", "Count questions, answers and tokens."),
    "search": ("letopis.outbox.cli.history:search", "Search messages by words."),
    "import": ("letopis.outbox.cli.transfer:import_", "Import conversations from a file."),
    "export": ("letopis.outbox.cli.transfer:export", "Export conversations to a file."),
}


@click.group(cls=LazyGroup, verbs=VERBS)
@with_options
def history() -> None:
    """List, show, count, search, import and export conversations.

    Pending events in the outbox are included. Without an outbox, --store names a history store that is read alone.
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
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Print at most this many.")
@click.option("--after", metavar="PLACE", help="Continue where an earlier list ended, at the place that it printed.")
@JSON
@with_options
def list_(owner: str | None, state: str, limit: int, after: str | None, as_json: bool) -> None:
    """List conversations, newest activity first; a star marks each owner's active conversation.

    Exits with 3 if there is none.
    """
    import anyio

    from letopis.outbox.cli._locations import open_source

    async def read() -> Any:
        async with open_source(settings()) as source:
            page = await source.conversations(owner=owner, after=after, limit=limit, states=states)
            if owner is None or not hasattr(source, "chats"):
                return page
            # A pending event may change which one is active.
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
                printable(one.conversation_id),
                printable(one.owner_id or "-"),
                "-" if one.number is None else str(one.number),
                "*" if one.active else "",
                *((one.state,) if state == "all" else ()),
                str(one.message_count),
                str(one.pending or "-"),
                _minute(one.updated_at),
                truncate(one.title or "", 40),
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
        raise CommandExit(Exit.NOTHING, "no conversations" if owner is None else "no conversations of this owner")


@click.command()
@click.argument("conversation")
@click.option(
    "--last",
    type=click.IntRange(1, 10_000),
    help="Show at most this many messages. Default: 50, or all with --transcript.",
)
@click.option("--before", metavar="PLACE", help="Continue before an earlier page, at the place that it printed.")
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

    from letopis.outbox.cli._locations import open_source

    if as_text and as_json:
        raise click.UsageError("--transcript and --json cannot be given together")
    if last is None and not as_text:
        last = 50
    moment = _as_of(as_of)
    patience = 3.0 if moment is None else 60.0  # a conversation of the past is made of all its events up to there

    async def read() -> Any:
        async with open_source(settings(), read_timeout=patience) as source:
            # The messages first: a conversation that begins in between is then there for both.
            messages = await source.messages(conversation, last=last, before=before, as_of=moment)
            return messages, await source.conversation(conversation, as_of=moment)

    page, found = anyio.run(read)
    if found is None and not page:
        say_whether_complete(page.complete)
        there = "is" if as_of is None else "was then"
        raise CommandExit(Exit.NOTHING, f"there {there} no conversation {conversation!r}")
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
        from letopis.store.rules.transcript import transcript

        # UTF-8 whatever the terminal: it is usually redirected to a file.
        whole = page.complete and page.next is None
        write(f"{transcript(found, page, whole=whole)}\n".encode())
        if page.next is not None:
            note(f"there are earlier ones: --before {page.next}")
    else:
        for one in page:
            click.echo(_message_text(one))
        if page.next is not None:
            note(f"there are earlier ones: --before {page.next}")
    if found is not None and found.state == "deleted":
        note("this conversation was deleted: its messages are erased, and appends are refused")
    say_whether_complete(page.complete)


@click.command()
@click.argument("query")
@click.option("--owner", metavar="ID", help="Only in the conversations of this owner.")
@click.option("--conversation", metavar="ID", help="Only in this conversation.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=20, show_default=True, help="Print at most this many.")
@click.option("--after", metavar="PLACE", help="Continue where an earlier page ended, at the place that it printed.")
@JSON
@with_options
def search(
    query: str, owner: str | None, conversation: str | None, limit: int, after: str | None, as_json: bool
) -> None:
    """Search for messages that contain all words of QUERY, in any inflected form, best matches first.

    "Words in quotation marks" match as a phrase, and -word excludes a word (put -- before the query). Exits with 3 if
    nothing was found.
    """
    import anyio

    from letopis.outbox.cli._locations import open_source

    async def find() -> Any:
        async with open_source(settings()) as source:
            return await source.search(query, owner=owner, conversation=conversation, limit=limit, after=after)

    page = anyio.run(find)
    if as_json:
        print_json({"hits": [_hit_json(one) for one in page], "next": page.next, "complete": page.complete})
    else:
        for one in page:
            click.echo(_hit_text(one))
        if page.next is not None:
            note(f"there are more: --after {page.next}")
    say_whether_complete(page.complete)
    if not page and page.next is None:
        raise CommandExit(Exit.NOTHING, "nothing was found")


@click.command()
@click.option("--owner", metavar="ID", help="Only the conversations of this owner.")
@click.option("--since", metavar="TIME", help="From this time on: 2026-01-31, a day in UTC, or 2026-01-31T12:00:00Z.")
@click.option("--until", metavar="TIME", help="Before this time.")
@click.option("--by", metavar="KEY", help="Also group by this key of the messages' metadata.")
@JSON
@with_options
def stats(owner: str | None, since: str | None, until: str | None, by: str | None, as_json: bool) -> None:
    """Count questions, answers and tokens in a period.

    Messages that were rewound or deleted later count too: they were answered and paid for.
    """
    import anyio

    from letopis.outbox.cli._locations import open_source

    period = {"since": _parse_time(since, "since"), "until": _parse_time(until, "until")}

    async def count() -> Statistics:
        async with open_source(settings()) as source:
            found: Statistics = await source.statistics(owner=owner, by=by, **period)
            return found

    found = anyio.run(count)
    if as_json:
        document: dict[str, Any] = {
            **_figures_json(found),
            "conversations": found.conversations,
            "complete": found.complete,
        }
        if by is not None:
            document["by"] = [{"value": value, **_figures_json(one)} for value, one in found.by.items()]
        print_json(document)
    else:
        head = ("CONVERSATIONS", "MESSAGES", "QUESTIONS", "ANSWERS", "TOKENS")
        total = (found.conversations, found.messages, found.questions, found.answers, found.tokens)
        click.echo(table(head, [[str(number) for number in total]], right=range(5)))
        if by is not None:
            rows = [(_value_text(value), *map(str, _row(one))) for value, one in found.by.items()]
            click.echo("")
            click.echo(table((truncate(by, 40), *head[1:]), rows, right=range(1, 5)))
    say_whether_complete(found.complete)


def say_whether_complete(complete: bool) -> None:
    """Print on stderr that older parts may be missing."""
    if not complete:
        note(
            "the history store cannot be read (`letopis db check` says why): this is what the outbox retains, "
            "older messages may be missing"
        )


def _conversation(found: Conversation) -> dict[str, Any]:
    """Return the JSON of a conversation; a documented, stable schema."""
    from letopis.store.transfer.timestamps import render_timestamp

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
        "created_at": render_timestamp(found.created_at),
        "updated_at": render_timestamp(found.updated_at),
    }


def message_json(found: RecordedMessage) -> dict[str, Any]:
    """Return the JSON of a message; a documented, stable schema."""
    from letopis.store.model.parts import content_to_json
    from letopis.store.transfer.timestamps import render_timestamp

    message = found.message
    return {
        "id": message.id,
        "version": found.version,
        "role": message.role,
        "content": content_to_json(message.content),
        "name": message.name,
        "tokens": message.tokens,
        "usage": dict(message.usage),
        "external_ids": dict(message.external_ids),
        "metadata": dict(message.metadata),
        "occurred_at": render_timestamp(found.occurred_at),
        "recorded_at": None if found.recorded_at is None else render_timestamp(found.recorded_at),
        "saved": found.saved,
        "edited": found.edited,
        "redacted": found.redacted,
        "delivery": found.delivery,
        "delivery_data": dict(found.delivery_data),
    }


def _message_text(found: RecordedMessage) -> str:
    """Return a message as text: time, role and marks, then the content."""
    marks = [mark for mark, there in (("edited", found.edited), (found.saved, found.saved != "saved")) if there]
    if found.delivery != "appended":
        marks.append(found.delivery)
    name = f" ({printable(found.message.name)})" if found.message.name else ""
    head = f"{_minute(found.occurred_at)}  {found.role}{name}{''.join(f'  [{mark}]' for mark in marks)}"
    content = found.content or ()
    parts = 0 if isinstance(content, str) else sum(1 for part in content if not hasattr(part, "text"))
    words = printable(found.text, lines=True) or ("" if parts else "(redacted)" if found.redacted else "(empty)")
    more = f"({parts} other part{'s' if parts > 1 else ''})" if parts else ""
    body = "\n".join(line for line in (words, more) if line)
    return head + "\n" + "\n".join(f"    {line}" for line in body.split("\n"))


def _minute(moment: Any) -> str:
    return f"{moment:%Y-%m-%d %H:%M}Z"


def _as_of(text: str | None) -> Any:
    """Return the version or time that ``--as-of`` names."""
    from letopis.store.errors import InvalidInput
    from letopis.store.transfer.timestamps import parse_timestamp

    if text is None or (text.isascii() and text.isdigit() and len(text) <= 19):
        return None if text is None else int(text)
    try:
        return parse_timestamp(text, "as_of")
    except InvalidInput as error:
        raise click.BadParameter(
            f"must be a version, which is a whole number, or a time: {error.reason}", param_hint="--as-of"
        ) from error


def _hit_json(found: Hit) -> dict[str, Any]:
    """Return the JSON of a hit; a documented, stable schema."""
    return {
        "conversation_id": found.conversation_id,
        "message": message_json(found.message),
        "snippet": found.snippet,
        "marks": [list(mark) for mark in found.marks],
        "score": found.score,
    }


def _hit_text(found: Hit) -> str:
    """Return a hit as text; on a terminal the matched words are bold."""
    from letopis.store.search.snippets import marked_pieces

    message = found.message
    mark = "" if message.saved == "saved" else f"  [{message.saved}]"
    head = f"{printable(found.conversation_id)}  {message.occurred_at:%Y-%m-%d %H:%M}Z  {message.role}{mark}"
    words = "".join(
        click.style(printable(text), bold=True) if marked else printable(text)
        for text, marked in marked_pieces(found.snippet, found.marks)
    )
    return f"{head}\n    {words}"


def _figures_json(found: Figures) -> dict[str, int]:
    """Return the JSON of figures; a documented, stable schema."""
    return {
        "messages": found.messages,
        "questions": found.questions,
        "answers": found.answers,
        "tokens": found.tokens,
    }


def _row(found: Figures) -> tuple[int, ...]:
    return found.messages, found.questions, found.answers, found.tokens


def _value_text(value: str | None) -> str:
    return "-" if value is None else truncate(value, 40) or '""'


def _parse_time(text: str | None, name: str) -> datetime | None:
    from letopis.store.errors import InvalidInput
    from letopis.store.transfer.timestamps import parse_timestamp

    if text is None:
        return None
    try:
        return parse_timestamp(f"{text}T00:00:00Z" if _DAY.fullmatch(text) else text, name)
    except InvalidInput as error:
        raise click.BadParameter(error.reason, param_hint=f"--{name}") from error
