"""``letopis history search``: find messages by their words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from letopis.outbox.cli.exits import Ended, Exit
from letopis.outbox.cli.history import message_json, say_whether_complete
from letopis.outbox.cli.options import settings, with_options
from letopis.outbox.cli.output import JSON, clean, note, print_json

if TYPE_CHECKING:
    from letopis.store.search.hits import Hit


@click.command()
@click.argument("query")
@click.option("--owner", metavar="ID", help="Only in the conversations of this owner.")
@click.option("--conversation", metavar="ID", help="Only in this conversation.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=20, show_default=True, help="At most so many.")
@click.option("--after", metavar="PLACE", help="Go on where an earlier page ended; it named the place.")
@JSON
@with_options
def search(
    query: str, owner: str | None, conversation: str | None, limit: int, after: str | None, as_json: bool
) -> None:
    """Find messages that have all words of QUERY, in any form, the best ones first.

    "Words in quotation marks" are to stand there as they are, and what a word with - before it names is not to be there
    (after a --, so that it is no option). Exits with 3 if nothing was found.
    """
    import anyio

    from letopis.outbox.cli.places import opened_source

    async def find() -> Any:
        async with opened_source(settings()) as source:
            return await source.search(query, owner=owner, conversation=conversation, limit=limit, after=after)

    page = anyio.run(find)
    if as_json:
        print_json({"hits": [_hit(one) for one in page], "next": page.next, "complete": page.complete})
    else:
        for one in page:
            click.echo(_shown(one))
        if page.next is not None:
            note(f"there are more: --after {page.next}")
    say_whether_complete(page.complete)
    if not page and page.next is None:
        raise Ended(Exit.NOTHING, "nothing was found")


def _hit(found: Hit) -> dict[str, Any]:
    """Return the JSON of a hit; the keys are documented and stay."""
    return {
        "conversation_id": found.conversation_id,
        "message": message_json(found.message),
        "snippet": found.snippet,
        "marks": [list(mark) for mark in found.marks],
        "score": found.score,
    }


def _shown(found: Hit) -> str:
    """Return a hit for people; on a terminal what was looked for stands out."""
    from letopis.store.search.marking import pieces

    message = found.message
    mark = "" if message.saved == "saved" else f"  [{message.saved}]"
    head = f"{clean(found.conversation_id)}  {message.occurred_at:%Y-%m-%d %H:%M}Z  {message.role}{mark}"
    words = "".join(
        click.style(clean(text), bold=True) if marked else clean(text)
        for text, marked in pieces(found.snippet, found.marks)
    )
    return f"{head}\n    {words}"
