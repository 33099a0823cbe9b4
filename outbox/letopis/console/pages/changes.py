"""Actions on a conversation or one of its messages: rename, archive, erase, export."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final

from starlette.responses import Response, StreamingResponse

from letopis.console.pages.answers import action, problem
from letopis.console.visit import Fields, Visit, field
from letopis.outbox.history.chat import Chat
from letopis.outbox.history.exporter import Exporter, Incomplete, RecordSource
from letopis.outbox.history.receipts import Receipt
from letopis.outbox.operations.admin import OutboxAdmin
from letopis.outbox.operations.repair import checked_reason
from letopis.store.errors import ConversationGone, InvalidInput
from letopis.store.model.identifiers import check_identifier

AROUND: Final = 11
"""Versions from a message to the end of the page that is shown after its change."""

Verb = Callable[[Chat, Fields, str, str | None], Awaitable[Receipt]]

VERBS: Final[Mapping[str, Verb]] = {
    "redact": lambda chat, fields, reason, by: chat.redact(field(fields, "message"), by=by, reason=reason),
    "rename": lambda chat, fields, reason, by: chat.rename(_title(fields)),
    "archive": lambda chat, fields, reason, by: chat.archive(reason=reason),
    "unarchive": lambda chat, fields, reason, by: chat.restore(),
    "reset": lambda chat, fields, reason, by: chat.reset(reason=reason),
    "delete": lambda chat, fields, reason, by: chat.delete(reason=reason),
}
FINAL: Final = frozenset({"redact", "reset", "delete"})
"""What cannot be undone, so that the form has a box to check."""


@action
async def change(visit: Visit, fields: Fields) -> Response:
    """Append the change that the path names, through the outbox, and record it in the audit log."""
    _, name = visit.language.gettext, visit.request.path_params["change"]
    verb = VERBS.get(name)
    if verb is None:
        return problem(visit, 404, _("There is no such page."))
    conversation_id = check_identifier(field(fields, "conversation"), "conversation")
    reason = checked_reason(field(fields, "reason"))
    if name in FINAL and not field(fields, "sure"):
        return problem(visit, 400, _("Nothing was changed: check the box that says what will be erased."))
    about = {"conversation_id": conversation_id, "reason": reason}
    by = None if visit.session is None else visit.session.name

    async def append(admin: OutboxAdmin) -> None:
        chat = visit.state.history.chat(conversation_id)
        known = await chat.conversation()
        if known is None:
            raise InvalidInput("conversation", "is not known: there is none, or the history store does not answer")
        if known.state == "deleted":
            raise ConversationGone(conversation_id=conversation_id)
        receipt = await verb(chat, fields, reason, by)
        await admin.record(name, outcome="done", event_id=receipt.event_ids[0], **about)

    await visit.act(append, about={"action": name, **about})
    if name == "delete":
        return visit.see("conversations", done=name)
    version = field(fields, "version")
    before = int(version) + AROUND if version.isascii() and version.isdigit() and len(version) < 19 else None
    return visit.see("conversation", id=conversation_id, before=before, done=name)


@action
async def export(visit: Visit, fields: Fields) -> Response:
    """Send a conversation and its records as JSON Lines, as ``letopis history export`` writes them."""
    _, history = visit.language.gettext, visit.state.history
    conversation_id = check_identifier(field(fields, "conversation"), "conversation")
    lines = Exporter(history, RecordSource(history)).of_one(conversation_id)
    try:
        first = await anext(lines, None)
    except Incomplete:
        return problem(visit, 503, _("The history store does not answer, so older messages would be missing."))
    if first is None:
        return problem(visit, 404, _("There are no messages here."))
    await visit.act(lambda admin: admin.record("export", outcome="done", conversation_id=conversation_id))
    return StreamingResponse(
        _joined(first, lines),
        media_type="application/jsonl",
        headers={"content-disposition": 'attachment; filename="conversation.jsonl"'},
    )


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for line in rest:  # if the store stops answering, the connection breaks and the browser reports a failure
        yield line


def _title(fields: Fields) -> str:
    title = field(fields, "title").strip()
    if not title:
        raise InvalidInput("title", "must not be empty")
    return title
