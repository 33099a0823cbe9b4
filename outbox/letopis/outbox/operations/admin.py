"""Let an operator unblock an outbox from Python; the command ``letopis outbox`` calls the same methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from functools import partial
from typing import Any, Final, Literal, TypeVar
from uuid import UUID

import sqlalchemy as sa

from letopis.outbox.event_log.bound_store import read_binding
from letopis.outbox.event_log.statements import fetch_all
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.operations import repair
from letopis.outbox.operations.pending_events import PendingEvent, Selection, list_pending
from letopis.outbox.relay import store_binding as binding
from letopis.outbox.relay.erasures import recorded_erasures
from letopis.outbox.relay.store_binding import Rebound, destination_of, store_heads
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.store_identity import check_not_moved, expect_store
from letopis.store.model.codec import DEFAULT_LIMITS, Limits
from letopis.store.model.events import from_microseconds

T = TypeVar("T")

MAX_ENTRIES: Final = 10_000  # entries that are kept, so that the log cannot fill the file
MAX_TEXT: Final = 2_000
DONE: Final = "done"  # the outcome of an action that took effect; any other outcome is why it was refused

Via = Literal["console", "command", "python"]  # by what an operator acted

_INSERT: Final = (
    "INSERT INTO letopis_outbox_audit"
    " (occurred_at, action, outcome, conversation_id, event_id, conversations, reason, actor, via)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_PRUNE: Final = (
    "DELETE FROM letopis_outbox_audit WHERE entry_id <= (SELECT max(entry_id) FROM letopis_outbox_audit) - ?"
)
_NEWEST: Final = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One action of an operator.

    :ivar entry_id: rises with each entry.
    :ivar action: ``retry``, ``fix``, ``skip``, ``skip_missing``, ``restore``, ``pause``, ``resume``, ``rebind``,
        ``pause_relay``, ``resume_relay``, ``verify`` or ``export``; of the console also ``sign_in``, ``test_alert``,
        ``rename``, ``archive``, ``unarchive``, ``reset``, ``delete`` and ``redact``.
    :ivar outcome: ``done``, or why it was refused.
    :ivar conversations: how many it was about.
    :ivar reason: as the operator gave it.
    :ivar actor: who, if known.
    :ivar via: ``console``, ``command`` or ``python``.
    """

    entry_id: int
    occurred_at: datetime
    action: str
    outcome: str
    conversation_id: str | None
    event_id: UUID | None
    conversations: int
    reason: str | None
    actor: str | None
    via: str


_COLUMNS: Final = tuple(column.name for column in fields(AuditEntry))
_LIST: Final = (
    f"SELECT {', '.join(_COLUMNS)} FROM letopis_outbox_audit WHERE entry_id < ? ORDER BY entry_id DESC LIMIT ?"  # noqa: S608
)


def list_actions(connection: sa.Connection, *, limit: int, before: int | None = None) -> list[AuditEntry]:
    """Return at most ``limit`` entries, the newest first."""
    rows = fetch_all(connection, _LIST, (_NEWEST if before is None else before, limit))
    return [_entry(dict(zip(_COLUMNS, row, strict=True))) for row in rows]


def _entry(values: dict[str, Any]) -> AuditEntry:
    event_id = None if values["event_id"] is None else UUID(bytes=values["event_id"])
    return AuditEntry(**values | {"occurred_at": from_microseconds(values["occurred_at"]), "event_id": event_id})


class OutboxAdmin:
    """What an operator can do about a stuck outbox, beside the bot and relay that have it open::

        admin = OutboxAdmin(outbox)
        for event in await admin.pending(Selection(states=("blocked",), fronts=True)):
            await admin.skip(event.event_id, reason="sent by mistake")

    Works while the history store is unavailable, except :meth:`skip_missing` and :meth:`rebind`. Nothing is destroyed:
    a replaced event is kept in the file. Each change wakes the relay, and is in the audit log of the file, written in
    the same transaction. Every method raises ``OutboxUnavailable`` if the file cannot be read or written.

    :param by: the operator, for the record.
    :param via: by what the operator acts: ``console``, ``command`` or ``python``.
    """

    def __init__(self, outbox: OutboxFile, *, by: str | None = None, via: Via = "python") -> None:
        self._outbox = outbox
        self._by = by
        self._via: Via = via

    async def pending(self, selection: Selection, *, limit: int = 100) -> list[PendingEvent]:
        """Return at most ``limit`` pending events, by conversation and sequence."""
        return await self._outbox.read(partial(list_pending, selection=selection, limit=limit))

    async def retry(self, selection: Selection) -> list[str]:
        """Have blocked and retrying conversations retried now, with all their attempts; return their ids.

        A paused one stays paused: :meth:`resume` is for that.
        """
        return await self._change_lanes("retry", partial(repair.retry, selection=selection))

    async def pause(self, selection: Selection) -> list[str]:
        """Pause conversations until :meth:`resume`; what is appended meanwhile waits. Return their ids.

        A conversation that is named need not have pending events. A blocked one stays blocked.
        """
        return await self._change_lanes("pause", partial(repair.pause, selection=selection))

    async def resume(self, selection: Selection) -> list[str]:
        """Resume paused conversations; return their ids."""
        return await self._change_lanes("resume", partial(repair.resume, selection=selection))

    async def skip(self, event_id: UUID, *, reason: str) -> PendingEvent:
        """Give up an event; return it as it was. The history gets a tombstone with the reason in its place.

        :raises NotRepairable: the event is not the one that its conversation waits for, or is not stuck.
        :raises InvalidInput: the reason is empty or too long.
        """
        work = partial(repair.skip, event_id=event_id, reason=reason, **self._signed())
        return await self._change_event("skip", work, reason)

    async def skip_missing(self, store: ConversationStore, conversation_id: str, *, reason: str) -> tuple[int, ...]:
        """Put tombstones where neither the file nor the history store holds an event; return their sequences.

        For a conversation that is blocked as ``damaged`` or ``lost``.

        :raises NotRepairable: the conversation is not blocked, or nothing is missing.
        :raises StoreFault: the store cannot be asked how far it holds the conversation.
        :raises InvalidInput: the reason is empty or too long.
        """
        with expect_store((await self._outbox.read(read_binding)).store_id):
            heads = await store.lane_heads(self._outbox.origin.origin_id, [conversation_id])
        work = partial(
            repair.skip_missing,
            conversation_id=conversation_id,
            held=heads.get(conversation_id, 0),
            reason=reason,
            now_us=self._outbox.now_us(),
        )
        about = {"conversation_id": conversation_id, "reason": reason}
        return await self._change("skip_missing", work, lambda _: about)

    async def fix(
        self,
        event_id: UUID,
        data: Mapping[str, Any] | None,
        *,
        reason: str,
        metadata: Mapping[str, Any] | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> PendingEvent:
        """Give an event corrected data, under its id and in its place; return it as it was.

        :param data: ``None`` keeps it.
        :param metadata: ``None`` keeps it.
        :raises NotRepairable: the event is not the one that its conversation waits for, or is not stuck.
        :raises InvalidInput: the data is not valid for this type of event, or would be refused again; or the reason is
            empty or too long.
        """
        given: dict[str, Any] = {"data": data, "metadata": metadata, "limits": limits}
        work = partial(repair.fix, event_id=event_id, reason=reason, **given, **self._signed())
        return await self._change_event("fix", work, reason)

    async def restore(self, event_id: UUID, *, reason: str) -> PendingEvent:
        """Put an event back as it was appended, after :meth:`fix` or :meth:`skip`; return the event that it replaces.

        For a repair that was a mistake, or came too late because the history store already had the event.

        :raises NotRepairable: the event is not the one that its conversation waits for, or was never repaired.
        :raises InvalidInput: the reason is empty or too long.
        """
        work = partial(repair.restore, event_id=event_id, reason=reason, **self._signed())
        return await self._change_event("restore", work, reason)

    async def rebind(self, store: ConversationStore, *, dry_run: bool = False) -> Rebound:
        """Bind the outbox to another history store, because its own is gone for good; return the consequences.

        The next relay sends again what the outbox still holds of what it delivered. What has left it is lost, and its
        conversations are blocked as ``lost``. Before the first delivery this decides where the outbox delivers to.

        :param dry_run: return the consequences without any change.
        :raises StoreFault: the store cannot be asked, or its history was moved away.
        """
        identity = await store.identity()
        check_not_moved(identity.moved_to)
        heads, destination = await store_heads(store, self._outbox), destination_of(store.url)
        target: dict[str, Any] = {"store_id": identity.store_id, "destination": destination, "heads": heads}
        if dry_run:
            return await self._outbox.read(partial(binding.preview, **target))
        work = partial(
            binding.rebind_outbox, now_us=self._outbox.now_us(), erasures=await recorded_erasures(store), **target
        )
        return await self._change("rebind", work, lambda _: {"conversations": 0})

    async def pause_relay(self, *, reason: str | None = None) -> None:
        """Pause the relay of this outbox, in whichever process it runs, until :meth:`resume_relay`.

        The batch in flight is finished. Appends continue, and what then waits raises no alert. A restart changes
        nothing about it.

        :raises InvalidInput: the reason is empty or too long.
        """
        reason = None if reason is None else repair.checked_reason(reason)
        work = partial(repair.pause_relay, reason=reason, **self._signed())
        await self._change("pause_relay", work, lambda _: {"conversations": 0, "reason": reason})

    async def resume_relay(self) -> bool:
        """Resume the relay; return True if it was paused."""
        return await self._change("resume_relay", repair.resume_relay, lambda _: {"conversations": 0})

    async def record(self, action: str, *, outcome: str, **about: Any) -> None:
        """Record in the audit log an action that changes nothing, or that was refused.

        :param outcome: ``done``, or why it was refused.
        :param about: ``conversation_id``, ``event_id``, ``conversations`` and ``reason``, as far as they apply.
        """
        await self._outbox.write(lambda connection: self._record(connection, action, outcome=outcome, **about))

    async def audit(self, *, limit: int = 100, before: int | None = None) -> list[AuditEntry]:
        """Return what operators did to this outbox, the newest first.

        :param before: the ``entry_id`` of the last entry of the page before.
        """
        return await self._outbox.read(partial(list_actions, limit=limit, before=before))

    def _signed(self) -> dict[str, Any]:
        return {"now_us": self._outbox.now_us(), "by": self._by}

    async def _change_lanes(self, action: str, work: Callable[[sa.Connection], list[str]]) -> list[str]:
        def about(changed: list[str]) -> Mapping[str, Any] | None:
            only = changed[0] if len(changed) == 1 else None
            return {"conversation_id": only, "conversations": len(changed)} if changed else None

        return await self._change(action, work, about)

    async def _change_event(
        self, action: str, work: Callable[[sa.Connection], PendingEvent], reason: str
    ) -> PendingEvent:
        def about(old: PendingEvent) -> Mapping[str, Any]:
            return {"conversation_id": old.conversation_id, "event_id": old.event_id, "reason": reason.strip()}

        return await self._change(action, work, about)

    async def _change(
        self, action: str, work: Callable[[sa.Connection], T], about: Callable[[T], Mapping[str, Any] | None]
    ) -> T:
        """Run ``work`` in one transaction with the record of it, and wake the relay."""

        def recorded(connection: sa.Connection) -> T:
            result = work(connection)
            if (told := about(result)) is not None:
                self._record(connection, action, **told)
            return result

        result = await self._outbox.write(recorded)
        self._outbox.appended.notify()  # wakes a relay of this process; one elsewhere notices the file change
        return result

    def _record(
        self,
        connection: sa.Connection,
        action: str,
        *,
        outcome: str = DONE,
        conversation_id: str | None = None,
        event_id: UUID | None = None,
        conversations: int = 1,
        reason: str | None = None,
    ) -> None:
        """Record an action in the transaction that carries it out, and drop the oldest entries beyond the limit."""
        key = None if event_id is None else event_id.bytes
        texts = [None if text is None else text[:MAX_TEXT] for text in (reason, self._by)]
        values = (self._outbox.now_us(), action, outcome[:MAX_TEXT], conversation_id, key, conversations, *texts)
        connection.exec_driver_sql(_INSERT, (*values, self._via))
        connection.exec_driver_sql(_PRUNE, (MAX_ENTRIES,))
