"""Actions on stuck conversations: retry, fix, skip, put back, pause, resume, export."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator
from typing import Any, Final
from uuid import UUID

import orjson
from starlette.responses import Response, StreamingResponse

from letopis.console.pages.answers import action, problem
from letopis.console.pages.stuck import show_event
from letopis.console.visit import Fields, Visit, field
from letopis.outbox.operations.admin import OutboxAdmin
from letopis.outbox.operations.pending_events import PendingEvent, Selection, event_json
from letopis.outbox.operations.repair import NotRepairable, checked_reason
from letopis.store.errors import InvalidInput
from letopis.store.model.codec import Limits
from letopis.store.model.records import RECORD_PUT

MAX_SKIPPED: Final = 1_000
"""The most events that one form can skip."""
EXPORT_PAGE: Final = 200
WIDE: Final = Limits(max_bytes=8 * 1024 * 1024, max_depth=200)
"""The widest limits, because the bot's own are not known here, and its event may exceed the default."""


@action
async def retry(visit: Visit, fields: Fields) -> Response:
    """Retry the conversations named in the form, or all with a fault of a class."""
    changed = await visit.act(lambda admin: admin.retry(_selection(fields)))
    return _changed(visit, "retry", len(changed))


@action
async def pause(visit: Visit, fields: Fields) -> Response:
    """Pause one conversation."""
    changed = await visit.act(lambda admin: admin.pause(_selection(fields)))
    return _changed(visit, "pause", len(changed))


@action
async def resume(visit: Visit, fields: Fields) -> Response:
    """Resume paused conversations."""
    changed = await visit.act(lambda admin: admin.resume(_selection(fields)))
    return _changed(visit, "resume", len(changed))


@action
async def skip(visit: Visit, fields: Fields) -> Response:
    """Skip the next event of each conversation named in the form, with a reason."""
    reason = checked_reason(field(fields, "reason"))
    selection = _selection(fields, fronts=True)
    found = await visit.state.insight.pending(selection, limit=MAX_SKIPPED)

    async def skip_all(admin: OutboxAdmin) -> tuple[int, str]:
        done, refusal = 0, ""
        for one in found:
            try:
                await admin.skip(one.event_id, reason=reason)
                done += 1
            except NotRepairable as error:
                refusal = str(error)
                await admin.record(
                    "skip",
                    outcome=refusal,
                    conversation_id=one.conversation_id,
                    event_id=one.event_id,
                    reason=reason,
                )
        return done, refusal

    done, refusal = await visit.act(skip_all)
    if not done and refusal:
        raise NotRepairable(refusal)
    return _changed(visit, "skip", done)


@action
async def skip_missing(visit: Visit, fields: Fields) -> Response:
    """Put tombstones where neither the outbox nor the history store holds an event of a conversation."""
    conversation_id, reason = field(fields, "conversation"), field(fields, "reason")

    async def skipped(admin: OutboxAdmin) -> tuple[int, ...]:
        return await admin.skip_missing(visit.state.history.store, conversation_id, reason=reason)

    done = await visit.act(skipped, about={"action": "skip_missing", "conversation_id": conversation_id})
    return _changed(visit, "skip_missing", len(done))


@action
async def fix(visit: Visit, fields: Fields) -> Response:
    """Correct an event's data; on an error, the form is shown again as filled in."""
    _ = visit.language.gettext
    entry = await _entry(visit, fields)
    if entry is None:
        return _gone(visit)
    text, reason = field(fields, "data"), field(fields, "reason")
    try:
        data = _object(orjson.loads(text))
        about = {"action": "fix", "conversation_id": entry.conversation_id, "event_id": entry.event_id}
        await visit.act(lambda admin: admin.fix(entry.event_id, data, reason=reason, limits=WIDE), about=about)
    except orjson.JSONDecodeError as error:
        wrong = _("This is not JSON: line %(line)s, column %(column)s.") % {"line": error.lineno, "column": error.colno}
        return show_event(visit, entry, code=400, wrong=wrong, edited=text, reason=reason)
    except (InvalidInput, NotRepairable) as error:
        return show_event(visit, entry, code=400, wrong=str(error), edited=text, reason=reason)
    return _changed(visit, "fix", 1)


@action
async def restore(visit: Visit, fields: Fields) -> Response:
    """Restore an event as it was appended."""
    entry = await _entry(visit, fields)
    if entry is None:
        return _gone(visit)
    about = {"action": "restore", "conversation_id": entry.conversation_id, "event_id": entry.event_id}
    await visit.act(lambda admin: admin.restore(entry.event_id, reason=field(fields, "reason")), about=about)
    return _changed(visit, "restore", 1)


@action
async def export(visit: Visit, fields: Fields) -> Response:
    """Send the pending events named in the form as JSON Lines, as ``letopis outbox export`` writes them."""
    selection = _selection(fields)
    conversation = selection.conversation_ids[0] if len(selection.conversation_ids) == 1 else None
    await visit.act(lambda admin: admin.record("export", outcome="done", conversation_id=conversation))
    return StreamingResponse(
        _lines(visit, selection),
        media_type="application/jsonl",
        headers={"content-disposition": 'attachment; filename="pending.jsonl"'},
    )


async def _lines(visit: Visit, selection: Selection) -> AsyncIterator[bytes]:
    after = ("", 0)
    insight = visit.state.insight
    while True:
        found = await insight.pending(selection, limit=EXPORT_PAGE, after=after)
        for one in found:
            line: dict[str, Any] = event_json(one)
            if one.type == RECORD_PUT:
                value = await insight.value(one)
                line["value"] = None if value is None else b64encode(value).decode()
            yield orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        if len(found) < EXPORT_PAGE:
            return
        after = (found[-1].conversation_id, found[-1].sequence)


def _selection(fields: Fields, *, fronts: bool = False) -> Selection:
    """Return the conversations named in a form.

    :raises InvalidInput: it names none, or an id that is not valid.
    """
    conversations = tuple(one for one in fields.get("conversation", ()) if one)
    classes = tuple(one for one in fields.get("fault", ()) if one)
    states = tuple(one for one in fields.get("state", ()) if one)
    if not (conversations or classes or states or field(fields, "all")):
        raise InvalidInput("conversation", "the form names none")
    return Selection(conversation_ids=conversations, fault_classes=classes, states=states, fronts=fronts)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInput("data", "must be a JSON object")
    return value


async def _entry(visit: Visit, fields: Fields) -> PendingEvent | None:
    try:
        event_id = UUID(field(fields, "event"))
    except ValueError:
        return None
    found = await visit.state.insight.event(event_id)
    return None if found is None else found[0]


def _gone(visit: Visit) -> Response:
    _ = visit.language.gettext
    return problem(visit, 404, _("No pending event has this id: it was delivered or skipped, or never appended."))


def _changed(visit: Visit, what: str, count: int) -> Response:
    return visit.see("stuck", done=what if count else "nothing", count=count)
