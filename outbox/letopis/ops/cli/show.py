"""``letopis history show``: print the messages of a conversation, and go on with what is new."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from letopis.ops.cli.interface.exit_codes import CommandExit, Exit
from letopis.ops.cli.interface.locations import open_source
from letopis.ops.cli.interface.options import settings, verb
from letopis.ops.cli.interface.output import (
    check_reader,
    emit,
    interval_option,
    note,
    printable,
    remark,
    wants_json,
    write,
)
from letopis.ops.cli.interface.render import (
    conversation_json,
    message_json,
    message_text,
    minute,
    say_whether_complete,
)

if TYPE_CHECKING:
    from uuid import UUID

    from letopis.store.model.conversations import Conversation, RecordedMessage

MAX_PAGES_BACK: Final = 20  # pages that are read back to the last message that is known, if very many have come at once


@verb(
    "letopis history show telegram:4711 --last 20",
    "letopis history show telegram:4711 --follow",
    "letopis history show telegram:4711 --as-of 2026-01-31T12:00:00Z",
    "letopis history show telegram:4711 --transcript >chat.txt",
    json=True,
)
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
@click.option(
    "--follow",
    is_flag=True,
    help="Keep printing new and changed messages until interrupted; with --json, one message per line.",
)
@interval_option("--follow", 1.0)
def show(
    conversation: str,
    last: int | None,
    before: str | None,
    as_of: str | None,
    as_text: bool,
    follow: bool,
    interval: float,
) -> None:
    """Show the last messages of a conversation, oldest first.

    Exits with 3 if there is no such conversation, or was none then.
    """
    if as_text and wants_json():
        raise click.UsageError("--transcript and --json cannot be given together")
    if follow:
        if before is not None or as_of is not None or as_text:
            raise click.UsageError("--follow shows the present: give it without --before, --as-of and --transcript.")
        asyncio.run(_follow(conversation, 50 if last is None else last, interval))
        return
    if last is None and not as_text:
        last = 50
    moment = _as_of(as_of)
    patience = 3.0 if moment is None else 60.0  # a conversation of the past is made of all its events up to there

    from letopis.ops.cli.hold import hold_on
    from letopis.outbox.history.authored import conversation_of

    async def read() -> Any:
        async with open_source(settings(), read_timeout=patience) as source:
            # The messages first: a conversation that begins in between is then there for both.
            messages = await source.messages(conversation, last=last, before=before, as_of=moment)
            held = await hold_on(source, conversation) if messages.complete else None
            return messages, await conversation_of(source, conversation, as_of=moment), held

    page, shown, held = asyncio.run(read())
    if shown is None and not page:
        say_whether_complete(page.complete)
        there = "is" if as_of is None else "was then"
        raise CommandExit(Exit.NOTHING, f"there {there} no conversation {conversation!r}")
    if as_text:
        from letopis.store.rules.transcript import transcript

        # UTF-8 whatever the terminal: it is usually redirected to a file.
        whole = page.complete and page.next is None
        write(f"{transcript(shown, page, whole=whole)}\n".encode())
    else:
        emit(
            {
                "conversation": None if shown is None else conversation_json(shown),
                "messages": [{"conversation_id": message.conversation_id, **message_json(message)} for message in page],
                "next": page.next,
                "complete": page.complete,
            },
            text="\n".join(map(message_text, page)),
        )
    if page.next is not None:
        remark(f"there are earlier ones: --before {page.next}")
    if shown is not None and shown.state == "deleted":
        note(_deleted(shown))
    if held is not None:
        note(f"{held.kind} {held.subject!r} is on hold: {printable(held.reason)}")
    say_whether_complete(page.complete)


def _deleted(conversation: Conversation) -> str:
    deleted = minute(conversation.updated_at)
    return f"this conversation was deleted on {deleted}: its messages are erased, appends are refused"


async def _follow(conversation: str, last: int, interval: float) -> None:
    """Print the last messages, then what is new and what changes, until interrupted or stdout has no reader."""
    import anyio

    from letopis.outbox.history.authored import conversation_of

    tail = Tail(_whole_state if wants_json() else _shown_state)
    complete = True
    async with open_source(settings()) as source:
        while True:
            messages, from_start, answered = await _newest(source, conversation, last, tail)
            if not messages:
                known = await conversation_of(source, conversation)
                if known is None and answered:
                    raise CommandExit(Exit.NOTHING, f"there is no conversation {conversation!r}")
                if known is not None and known.state == "deleted":
                    note(_deleted(known))
                    return
            for message in tail.news(messages, from_start=from_start):
                document = {"conversation_id": message.conversation_id, **message_json(message)}
                emit(document, text=message_text(message), line=True)
            sys.stdout.flush()
            if answered != complete:
                complete = answered
                say_whether_complete(complete)
                if complete:
                    note("the history store can be read again")
            await anyio.sleep(interval)
            check_reader()


async def _newest(source: Any, conversation: str, last: int, tail: Tail) -> tuple[list[RecordedMessage], bool, bool]:
    """Return the last and new messages, True if these are all there are, and True if the store could be read."""
    page = await source.messages(conversation, last=last)
    messages, answered = list(page), page.complete
    for _ in range(MAX_PAGES_BACK):
        if page.next is None or not tail.started or tail.knows(messages):
            break
        page = await source.messages(conversation, last=last, before=page.next)
        messages = [*page, *messages]
    return messages, page.next is None, answered and page.complete


def _shown_state(message: RecordedMessage) -> Hashable:
    """Return what a reader of the text sees of a message, except that it is not saved yet."""
    return message.text, message.redacted, message.edited, str(message.delivery), message.saved == "blocked"


def _whole_state(message: RecordedMessage) -> Hashable:
    import orjson

    return orjson.dumps(message_json(message))


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


MAX_REMEMBERED: Final = 20_000  # messages whose state is remembered; older ones count as new again


class Tail:
    """Compares the end of a conversation with what was seen of it before.

    A message is new if it follows one that is known. Older ones that come into view, because others were taken back or
    the store can be read again, are not.
    """

    def __init__(self, state: Callable[[RecordedMessage], Hashable]) -> None:
        self._state = state
        self._seen: dict[UUID, Hashable] = {}
        self._from_start = False

    @property
    def started(self) -> bool:
        return bool(self._seen)

    def knows(self, messages: Sequence[RecordedMessage]) -> bool:
        """Return True if one of the messages was seen before."""
        return any(message.event_id in self._seen for message in messages)

    def news(self, messages: Sequence[RecordedMessage], *, from_start: bool) -> list[RecordedMessage]:
        """Return the messages to show, in their order, and remember them all."""
        first_known = next((index for index, message in enumerate(messages) if message.event_id in self._seen), 0)
        begin = 0 if from_start and self._from_start else first_known
        shown: list[RecordedMessage] = []
        for index, message in enumerate(messages):
            state = self._state(message)
            if message.event_id in self._seen:
                if self._seen[message.event_id] != state:
                    shown.append(message)
            elif index >= begin:
                shown.append(message)
            self._seen[message.event_id] = state
        self._from_start = from_start
        for event_id in list(self._seen)[:-MAX_REMEMBERED]:
            del self._seen[event_id]
        return shown
