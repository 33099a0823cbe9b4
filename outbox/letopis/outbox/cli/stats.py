"""``letopis history stats``: what was asked, answered and spent."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import click

from letopis.outbox.cli.history import say_whether_complete
from letopis.outbox.cli.options import settings, with_options
from letopis.outbox.cli.output import JSON, cut, print_json, table

if TYPE_CHECKING:
    from datetime import datetime

    from letopis.store.statistics import Figures, Statistics

_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


@click.command()
@click.option("--owner", metavar="ID", help="Only the conversations of this owner.")
@click.option("--since", metavar="TIME", help="From this moment on: 2026-01-31, a day in UTC, or 2026-01-31T12:00:00Z.")
@click.option("--until", metavar="TIME", help="Before this moment.")
@click.option("--by", metavar="KEY", help="By the values of this key of the messages' metadata too.")
@JSON
@with_options
def stats(owner: str | None, since: str | None, until: str | None, by: str | None, as_json: bool) -> None:
    """Count questions, answers and tokens in a period.

    Everything counts that was said and paid for, also what was taken back since.
    """
    import anyio

    from letopis.outbox.cli.places import opened_source

    period = {"since": _moment(since, "since"), "until": _moment(until, "until")}

    async def count() -> Statistics:
        async with opened_source(settings()) as source:
            found: Statistics = await source.statistics(owner=owner, by=by, **period)
            return found

    found = anyio.run(count)
    if as_json:
        document: dict[str, Any] = {**_figures(found), "conversations": found.conversations, "complete": found.complete}
        if by is not None:
            document["by"] = [{"value": value, **_figures(one)} for value, one in found.by.items()]
        print_json(document)
    else:
        head = ("CONVERSATIONS", "MESSAGES", "QUESTIONS", "ANSWERS", "TOKENS")
        total = (found.conversations, found.messages, found.questions, found.answers, found.tokens)
        click.echo(table(head, [[str(number) for number in total]], right=range(5)))
        if by is not None:
            rows = [(_shown(value), *map(str, _row(one))) for value, one in found.by.items()]
            click.echo("")
            click.echo(table((cut(by, 40), *head[1:]), rows, right=range(1, 5)))
    say_whether_complete(found.complete)


def _figures(found: Figures) -> dict[str, int]:
    """Return the JSON of figures; the keys are documented and stay."""
    return {
        "messages": found.messages,
        "questions": found.questions,
        "answers": found.answers,
        "tokens": found.tokens,
    }


def _row(found: Figures) -> tuple[int, ...]:
    return found.messages, found.questions, found.answers, found.tokens


def _shown(value: str | None) -> str:
    return "-" if value is None else cut(value, 40) or '""'


def _moment(text: str | None, name: str) -> datetime | None:
    from letopis.store.errors import InvalidInput
    from letopis.store.transfer.moments import parse_moment

    if text is None:
        return None
    try:
        return parse_moment(f"{text}T00:00:00Z" if _DAY.fullmatch(text) else text, name)
    except InvalidInput as error:
        raise click.BadParameter(error.reason, param_hint=f"--{name}") from error
