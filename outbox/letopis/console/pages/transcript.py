"""One conversation as a chat, now or after any of its versions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

from starlette.responses import Response

from letopis.console.i18n import Language
from letopis.console.pages.answers import page, problem
from letopis.console.rendering import MAX_SHOWN_CHARACTERS
from letopis.console.visit import Visit
from letopis.outbox.history.history import History
from letopis.store.errors import LetopisError, ReadTimeout
from letopis.store.model.conversations import Conversation, Delivery, Page, RecordedMessage, Saved
from letopis.store.model.parts import Data, File, Reasoning, Text, ToolCall, ToolResult
from letopis.store.rules.transcript import file_name

PER_PAGE: Final = 50
MAX_PRINTED: Final = 1_000
"""Messages on a page to be printed, the newest ones."""
PAST_TIMEOUT_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A note shown beside a message.

    :ivar level: ``good``, ``waiting``, ``bad`` or ``plain``.
    """

    level: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One part of a message: ``text``, or something shown folded, with a title."""

    kind: str
    title: str
    body: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bubble:
    """One message as the page shows it.

    :ivar day: the day, if it differs from that of the message before; otherwise ``None``.
    :ivar inherited: whether it belongs to the conversation from which this one was forked.
    :ivar latency: seconds since the question that it answers, if both are on the page; otherwise ``None``.
    :ivar details: labels and values.
    :ivar data: its JSON objects by label, as text.
    """

    message: RecordedMessage
    day: date | None
    pieces: tuple[Piece, ...]
    marks: tuple[Mark, ...]
    inherited: bool
    latency: float | None
    details: tuple[tuple[str, str], ...]
    data: tuple[tuple[str, str], ...]


@page
async def transcript(visit: Visit) -> Response:
    """Show a conversation."""
    _ = visit.language.gettext
    history, name = visit.state.history, visit.query("id")
    found = None if name is None else await history.chat(name).conversation()
    if found is None or name is None:
        return problem(visit, 404, _("There is no such conversation."))
    version = visit.whole("version")
    if version is not None and version > found.version:
        return problem(visit, 404, _("There is no such version yet, or the history store does not answer."))
    past = version is not None and version < found.version
    every, printing = visit.query("every") == "1", visit.query("print") == "1"
    try:
        messages = await _messages(history, visit, name, version if past else None, every=every)
    except ReadTimeout:
        text = _("The history store takes too long to rebuild this version: choose a later one.")
        return problem(visit, 503, text)
    earlier, later = around(visit, messages)
    return visit.render(
        "transcript.html",
        conversation=found,
        bubbles=bubbles(messages, name, visit.language),
        page=messages,
        version=version if past else found.version,
        past=past,
        every=every,
        printing=printing,
        earlier=earlier,
        later=later,
        done=visit.query("done"),
        forks=await visit.state.insight.forks(name) or [],
        moment=await _moment_of(history, name, version) if past and version else None,
    )


async def _messages(
    history: History, visit: Visit, name: str, version: int | None, *, every: bool
) -> Page[RecordedMessage]:
    asked: dict[str, Any] = {"every": every, "last": PER_PAGE}
    if visit.query("print") == "1":
        asked["last"] = MAX_PRINTED
    elif (after := visit.query("after")) is not None:
        asked = {"every": every, "last": None, "first": PER_PAGE, "after": after}
    elif visit.query("from") == "start":
        asked = {"every": every, "last": None, "first": PER_PAGE}
    elif (before := visit.query("before")) is not None:
        asked["before"] = before
    if version is not None:
        return await history.messages(name, as_of=version, timeout=PAST_TIMEOUT_SECONDS, **asked)
    return await history.messages(name, **asked)


def around(visit: Visit, messages: Page[RecordedMessage]) -> tuple[str | None, str | None]:
    """Return the cursors of the earlier and the later page, as ``before`` and ``after``; ``None`` at an end."""
    after, before = visit.query("after"), visit.query("before")
    if visit.query("print") == "1":
        return messages.next, None
    if after is not None:
        return _moved(after, 1), messages.next
    if visit.query("from") == "start":
        return None, messages.next
    return messages.next, None if before is None else _moved(before, -1)


def _moved(cursor: str, versions: int) -> str:
    """Return the cursor some versions on; one among inherited messages begins with their depth and a dot."""
    depth, dot, version = cursor.rpartition(".")
    return f"{depth}{dot}{max(0, int(version) + versions)}"


async def _moment_of(history: History, name: str, version: int) -> Any:
    """Return when the event of a version occurred; ``None`` if it is not known."""
    try:
        events = await history.chat(name).events(after=version - 1, first=1)
    except LetopisError:
        return None
    return events[0].occurred_at if events and events[0].version == version else None


def bubbles(messages: Sequence[RecordedMessage], name: str, language: Language) -> list[Bubble]:
    """Return the page's view of messages."""
    shown: list[Bubble] = []
    last: date | None = None
    tools: dict[str, str] = {}
    asked: datetime | None = None
    for message in messages:
        day, latency = message.occurred_at.date(), None
        if message.role == "user":
            asked = message.occurred_at
        elif message.role == "assistant" and asked is not None and not message.superseded:
            latency, asked = max(0.0, (message.occurred_at - asked).total_seconds()), None
        shown.append(
            Bubble(
                message=message,
                day=None if day == last else day,
                pieces=tuple(pieces(message, language, tools)),
                marks=tuple(marks(message, language)),
                inherited=message.conversation_id != name,
                latency=latency,
                details=tuple(details(message, latency, language)),
                data=tuple(data_of(message, language)),
            )
        )
        last = day
    return shown


def pieces(message: RecordedMessage, language: Language, tools: dict[str, str]) -> list[Piece]:
    """Return the parts of a message.

    :param tools: the names of tools by call id, from the messages so far; this function adds to it.
    """
    _ = language.gettext
    if message.redacted:
        return [Piece(kind="gone", title="", body=_("The content was removed."))]
    content = message.content
    if content is None or content in ("", ()):
        return [Piece(kind="gone", title="", body=_("No text."))]
    if isinstance(content, str):
        return [Piece(kind="text", title="", body=content)]
    found = []
    for part in content:
        match part:
            case Text():
                found.append(Piece(kind="text", title="", body=part.text))
            case Reasoning():
                found.append(Piece(kind="folded", title=_("Reasoning"), body=part.text))
            case File():
                found.append(Piece(kind="file", title=_("File"), body=file_name(part)))
            case ToolCall():
                tools[part.call_id] = part.name
                title = _("Call of %(name)s") % {"name": part.name}
                found.append(Piece(kind="folded", title=title, body=_shown(part.arguments)))
            case ToolResult():
                title = _("Result of %(name)s") % {"name": tools.get(part.call_id, part.call_id)}
                title += "" if part.status == "ok" else f" ({part.status})"
                found.append(Piece(kind="folded", title=title, body=_shown(part.output)))
            case Data():
                found.append(Piece(kind="folded", title=_("Data"), body=_shown(part.value)))
            case _:
                found.append(Piece(kind="folded", title=_("Other content"), body=_shown(part.value)))
    return found


def marks(message: RecordedMessage, language: Language) -> list[Mark]:
    """Return the notes beside a message: whether it is saved and sent, and what happened to it."""
    _ = language.gettext
    found = []
    if message.saved is Saved.BLOCKED:
        found.append(Mark(level="bad", text=_("not saved: blocked")))
    elif message.saved is Saved.PENDING:
        found.append(Mark(level="waiting", text=_("not saved yet")))
    if message.delivery is Delivery.FAILED:
        found.append(Mark(level="bad", text=_("not sent")))
    elif message.delivery is Delivery.SENT:
        found.append(Mark(level="good", text=_("sent")))
    if message.superseded:
        found.append(Mark(level="waiting", text=_("superseded: another turn came first")))
    elif not message.on_path:
        found.append(Mark(level="plain", text=_("taken back")))
    if message.edited:
        found.append(Mark(level="plain", text=_("edited")))
    if message.interrupted:
        found.append(Mark(level="plain", text=_("interrupted")))
    return found


def details(message: RecordedMessage, latency: float | None, language: Language) -> list[tuple[str, str]]:
    """Return what is known of a message beside its content: labels and values."""
    _, said = language.gettext, message.message
    recorded = message.recorded_at
    saved = None if recorded is None else max(0.0, (recorded - message.occurred_at).total_seconds())
    pairs = [
        (_("Id"), message.id),
        (_("Event"), str(message.event_id)),
        (_("Author"), said.author),
        (_("Version"), None if message.version is None else str(message.version)),
        (_("Tokens"), None if said.tokens is None else language.number(said.tokens)),
        (_("Time to answer"), None if latency is None else language.latency(latency)),
        (_("Occurred"), language.moment(message.occurred_at, seconds=True)),
        (_("Saved"), None if recorded is None else language.moment(recorded, seconds=True)),
        (_("Saved after"), None if saved is None else language.latency(saved)),
    ]
    return [(label, value) for label, value in pairs if value is not None]


def data_of(message: RecordedMessage, language: Language) -> list[tuple[str, str]]:
    """Return the JSON objects of a message that are not empty: labels and texts."""
    _, said = language.gettext, message.message
    objects = (
        (_("Metadata"), said.metadata),
        (_("Usage"), said.usage),
        (_("Ids elsewhere"), said.external_ids),
        (_("Delivery to the platform"), message.delivery_data),
    )
    return [(label, _shown(value)) for label, value in objects if value]


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    text = json.dumps(_plain(value), ensure_ascii=False, indent=2, default=str)
    return text[: MAX_SHOWN_CHARACTERS + 1]


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def title_of(conversation: Conversation) -> str:
    """Return the title of a conversation, or its id."""
    return conversation.title or conversation.conversation_id
