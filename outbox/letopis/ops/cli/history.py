"""``letopis history``: list, show, count, search, import and export conversations."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Final

import click

from letopis.ops.cli.interface.command import LazyGroup
from letopis.ops.cli.interface.exit_codes import CommandExit, Exit
from letopis.ops.cli.interface.locations import open_source
from letopis.ops.cli.interface.options import settings, verb, with_options
from letopis.ops.cli.interface.output import emit, note, printable, remark, table, truncate
from letopis.ops.cli.interface.render import conversation_json, message_json, minute, say_whether_complete

if TYPE_CHECKING:
    from datetime import datetime

    from letopis.store.rules.statistics import Figures, Statistics
    from letopis.store.search.results import Hit

_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)

VERBS: Final = {
    "list": ("letopis.ops.cli.history:list_", "List conversations, newest activity first."),
    "show": ("letopis.ops.cli.show:show", "Show the messages of a conversation."),
    "stats": ("letopis.ops.cli.history:stats", "Count questions, answers and tokens."),
    "search": ("letopis.ops.cli.history:search", "Search messages by words."),
    "import": ("letopis.ops.cli.transfer:import_", "Import conversations from a file."),
    "export": ("letopis.ops.cli.transfer:export", "Export conversations to a file."),
    "hold": ("letopis.ops.cli.hold:hold", "Forbid the erasure of an owner or a conversation."),
    "tag": ("letopis.ops.cli.retain:tag", "Add tags to a conversation, or remove them."),
    "retain": ("letopis.ops.cli.retain:retain", "Take away content that the rules keep no longer."),
    "erase": ("letopis.ops.cli.erase:erase", "Erase conversations, or all those of an owner, for good."),
}


@click.group(cls=LazyGroup, verbs=VERBS)
@with_options
def history() -> None:
    """List, show, count, search, import and export conversations.

    Pending events in the outbox are included. Without an outbox, --store names a history store that is read alone.
    """


@verb(
    "letopis history list --limit 20",
    "letopis history list --owner 42 --state all",
    "letopis history list --json | jq -r '.conversations[].conversation_id'",
    name="list",
    json=True,
)
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
def list_(owner: str | None, state: str, limit: int, after: str | None) -> None:
    """List conversations, newest activity first.

    OWNER is whom the bot named as the owner, NUMBER counts the owner's conversations, and a star under ACTIVE marks the
    one that the owner's next message goes to. Exits with 3 if there is none.
    """

    async def read() -> Any:
        async with open_source(settings()) as source:
            return await source.conversations(owner=owner, after=after, limit=limit, states=states)

    states = ("active", "archived", "deleted") if state == "all" else (state,)
    page = asyncio.run(read())
    emit(
        {
            "conversations": [conversation_json(conversation) for conversation in page],
            "next": page.next,
            "complete": page.complete,
        },
        text=_conversations_text(page, with_state=state == "all") if page else "",
    )
    if page:
        _note_more(page)
    say_whether_complete(page.complete)
    if not page:
        raise CommandExit(Exit.NOTHING, "no conversations" if owner is None else "no conversations of this owner")


@verb(
    'letopis history search "blue shoes"',
    'letopis history search --owner 42 "refund -shipping"',
    """letopis history search '"order number"' --json | jq '.hits[].snippet'""",
    json=True,
)
@click.argument("query")
@click.option("--owner", metavar="ID", help="Only in the conversations of this owner.")
@click.option("--conversation", metavar="ID", help="Only in this conversation.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=20, show_default=True, help="Print at most this many.")
@click.option("--after", metavar="PLACE", help="Continue where an earlier page ended, at the place that it printed.")
def search(query: str, owner: str | None, conversation: str | None, limit: int, after: str | None) -> None:
    """Search for messages that contain all words of QUERY, in any inflected form, best matches first.

    "Words in quotation marks" match as a phrase, and -word excludes a word (put -- before the query). Exits with 3 if
    nothing was found.
    """

    async def find() -> Any:
        async with open_source(settings()) as source:
            return await source.search(query, owner=owner, conversation=conversation, limit=limit, after=after)

    page = asyncio.run(find())
    emit(
        {
            "hits": [
                {
                    "conversation_id": hit.conversation_id,
                    "message": message_json(hit.message),
                    "snippet": hit.snippet,
                    "marks": [list(mark) for mark in hit.marks],
                    "score": hit.score,
                }
                for hit in page
            ],
            "next": page.next,
            "complete": page.complete,
            "unindexed": page.unindexed,
        },
        text="\n".join(map(_hit_text, page)),
    )
    _note_more(page)
    if page.unindexed:
        note(
            f"the search index is being built: {page.unindexed} events were not searched; search again later, or run"
            " `letopis db index`"
        )
    else:
        say_whether_complete(page.complete)
    if not page and page.next is None:
        raise CommandExit(Exit.NOTHING, "nothing was found")


@verb(
    "letopis history stats --since 2026-01-01 --until 2026-02-01",
    "letopis history stats --by model --json",
    "letopis history stats --owner 42",
    json=True,
)
@click.option("--owner", metavar="ID", help="Only the conversations of this owner.")
@click.option("--since", metavar="TIME", help="From this time on: 2026-01-31, a day in UTC, or 2026-01-31T12:00:00Z.")
@click.option("--until", metavar="TIME", help="Before this time.")
@click.option("--by", metavar="KEY", help="Also group by this key of the messages' metadata.")
def stats(owner: str | None, since: str | None, until: str | None, by: str | None) -> None:
    """Count questions, answers and tokens in a period.

    Messages that were rewound or deleted later count too: they were answered and paid for.
    """
    period = {"since": _parse_time(since, "since"), "until": _parse_time(until, "until")}

    async def count() -> Statistics:
        async with open_source(settings()) as source:
            counted: Statistics = await source.statistics(owner=owner, by=by, **period)
            return counted

    counted = asyncio.run(count())
    head = ("CONVERSATIONS", "MESSAGES", "QUESTIONS", "ANSWERS", "TOKENS")
    text = table(head, [[str(number) for number in (counted.conversations, *_row(counted))]], right=range(5))
    document: dict[str, Any] = {
        **_figures_json(counted),
        "conversations": counted.conversations,
        "complete": counted.complete,
    }
    if by is not None:
        document["by"] = [{"value": value, **_figures_json(figures)} for value, figures in counted.by.items()]
        rows = [(_value_text(value), *map(str, _row(figures))) for value, figures in counted.by.items()]
        text += f"\n\n{table((truncate(by, 40), *head[1:]), rows, right=range(1, 5))}"
    emit(document, text=text)
    say_whether_complete(counted.complete)


def _note_more(page: Any) -> None:
    if page.next is not None:
        remark(f"there are more: --after {page.next}")


def _conversations_text(page: Any, *, with_state: bool) -> str:
    rows = [
        (
            printable(conversation.conversation_id),
            printable(conversation.owner_id or "-"),
            "-" if conversation.number is None else str(conversation.number),
            "*" if conversation.active else "",
            *((conversation.state,) if with_state else ()),
            str(conversation.message_count),
            str(conversation.pending or "-"),
            minute(conversation.updated_at),
            truncate(conversation.title or "", 40),
        )
        for conversation in page
    ]
    more = ("STATE",) if with_state else ()
    head = ("CONVERSATION", "OWNER", "NUMBER", "ACTIVE", *more, "MESSAGES", "PENDING", "LAST", "TITLE")
    return table(head, rows, right=(2, 4 + len(more), 5 + len(more)))


def _hit_text(hit: Hit) -> str:
    """Return a hit as text; on a terminal the matched words are bold."""
    from letopis.store.search.results import marked_pieces

    message = hit.message
    mark = "" if message.saved == "saved" else f"  [{message.saved}]"
    head = f"{printable(hit.conversation_id)}  {message.occurred_at:%Y-%m-%d %H:%M}Z  {message.role}{mark}"
    words = "".join(
        click.style(printable(text), bold=True) if marked else printable(text)
        for text, marked in marked_pieces(hit.snippet, hit.marks)
    )
    return f"{head}\n    {words}"


def _figures_json(figures: Figures) -> dict[str, int]:
    """Return the JSON of figures; a documented, stable schema."""
    return {name: getattr(figures, name) for name in ("messages", "questions", "answers", "tokens")}


def _row(figures: Figures) -> tuple[int, ...]:
    return tuple(_figures_json(figures).values())


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
