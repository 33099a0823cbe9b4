"""Keep an owner's conversations: begin, activate, list, archive and delete them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final
from weakref import WeakValueDictionary

from sqlalchemy.ext.asyncio import AsyncConnection

from letopis.outbox.event_log.bound_store import read_binding
from letopis.outbox.event_log.known_erasures import highest_number
from letopis.outbox.event_log.lookups import holds_conversation
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.history.append import Appender
from letopis.outbox.history.read import HistoryReader
from letopis.outbox.history.receipts import Receipt
from letopis.outbox.pending_reads.active_conversation import (
    ActiveConversation,
    PendingActive,
    active_alone,
    merge_active,
    read_active,
)
from letopis.outbox.pending_reads.store_gateway import StoreGateway, is_reachable
from letopis.outbox.relay.erasures import ErasureCarrier
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.store_identity import expect_store
from letopis.store.erasures import Erasure, How, Kind
from letopis.store.errors import ConversationGone, InvalidInput, StoreUnavailable
from letopis.store.model.conversations import Conversation, Page
from letopis.store.model.event_types import (
    Body,
    ConversationActivated,
    ConversationAnnotated,
    ConversationRewound,
    ConversationStarted,
)
from letopis.store.model.events import from_microseconds
from letopis.store.model.identifiers import check_identifier, uuid7
from letopis.store.read.lineage import Lineage
from letopis.store.read.paging import DEFAULT_STATES, STATES, CursorCodec, check_count, check_states
from letopis.store.read.reader import StoreView

_CURSOR: Final = CursorCodec("owner-conversations", "conversations")
_PAGE: Final = 20  # newest events that are read at a time


@dataclass(slots=True, kw_only=True, eq=False)
class Conversations:
    """Keeps several conversations for each owner."""

    outbox: OutboxFile
    store: ConversationStore
    gateway: StoreGateway
    reader: HistoryReader
    appender: Appender
    _starting: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)

    async def start(
        self,
        owner: str,
        *,
        conversation_id: str | None,
        title: str | None,
        activate: bool,
        metadata: Mapping[str, Any] | None,
    ) -> Receipt:
        bodies: list[Body] = [ConversationStarted(owner_id=owner, title=title)]
        if metadata is not None:
            bodies.append(ConversationAnnotated(metadata=metadata))
        if activate:
            bodies.append(ConversationActivated())
        name = str(uuid7()) if conversation_id is None else conversation_id
        return await self.appender.write(name, *bodies, owner=owner)

    async def active(self, owner: str, *, create: bool) -> Conversation | None:
        """Return the owner's active conversation as ``History.active`` does; never ``None`` with ``create``."""
        conversation = await self._active(owner)
        if conversation is not None or not create:
            return conversation
        lock = self._starting.setdefault(owner, asyncio.Lock())
        async with lock:
            conversation = await self._active(owner)
            if conversation is None:
                receipt = await self.start(owner, conversation_id=None, title=None, activate=True, metadata=None)
                conversation = await self.reader.conversation(receipt.conversation_id)
                if conversation is None:  # deleted by another process, and delivered and pruned, since
                    raise ConversationGone(conversation_id=receipt.conversation_id)
        return conversation.with_changes(active=True)

    async def activate(self, conversation_id: str, *, owner: str | None) -> Receipt:
        owner = await self._owner_of(conversation_id, owner, needed=True)
        return await self.appender.write(conversation_id, ConversationActivated(), owner=owner)

    async def erase(self, conversation_id: str, body: Body) -> Receipt:
        """Append a deletion or a reset, unless a hold forbids it."""
        owner = await self._owner_of(conversation_id)
        await self.check_not_held(conversation_id, owner)  # the owner may be known here alone
        return await self.appender.write(conversation_id, body, owner=owner)

    async def register_reset(self, conversation_id: str, *, reason: str | None) -> ConversationRewound:
        """Have every outbox erase what it holds of a conversation; return the reset to append after it."""
        owner = await self._owner_of(conversation_id)
        if await self.gateway.read(lambda: is_reachable(self.store)) is None:
            raise StoreUnavailable("what other outboxes have written")
        await self.check_not_held(conversation_id, owner)
        erasure = await register(self.outbox, self.store, "conversation", conversation_id, how="reset", reason=reason)
        await ErasureCarrier(self.outbox, self.store).begin(erasure)
        bounds = await self.store.erasures.erasure_bounds(erasure.number, [conversation_id])
        return ConversationRewound(reason=reason, erase=True, upto=bounds.get(conversation_id, 0))

    async def check_not_held(self, conversation_id: str, author: str | None) -> None:
        """Raise ``Held`` if a hold forbids an erasure, as far as the history store answers; delivery checks again.

        :param author: whose words are erased, as this outbox knows.
        """
        check_identifier(conversation_id, "conversation_id")
        await self.gateway.read(lambda: self.store.erasures.check_not_held(conversation=conversation_id, author=author))

    async def write(self, conversation_id: str, body: Body) -> Receipt:
        owner = await self._owner_of(conversation_id)
        return await self.appender.write(conversation_id, body, owner=owner)

    async def describe(self, conversation_id: str, body: Body) -> Receipt:
        """Append what describes a conversation; the store is asked only if the outbox does not hold it."""
        check_identifier(conversation_id, "conversation_id")
        if not await self.outbox.read(lambda connection: holds_conversation(connection, conversation_id)):
            await self._owner_of(conversation_id)
        return await self.appender.write(conversation_id, body)

    async def list_of(
        self, owner: str, *, after: str | None, limit: int, states: Collection[str]
    ) -> Page[Conversation]:
        """Return a page of an owner's conversations: the active one first, then by last activity."""
        check_count(limit, "limit")
        wanted = check_states(states)
        if after is None:
            first, cursor = await self._active(owner), None
            shown = None if first is None else first.conversation_id
        else:
            first, (shown, cursor) = None, _CURSOR.decode(after, _checked_place)
        items = [first] if first is not None and first.state in wanted else []
        complete = True
        while len(items) < limit:
            page = await self.reader.conversations(owner=owner, after=cursor, limit=limit - len(items), states=wanted)
            others = (item for item in page if item.conversation_id != shown)
            items += [item.with_changes(active=False) if item.active else item for item in others]
            complete, cursor = complete and page.complete, page.next
            if cursor is None:
                return Page(tuple(items), complete=complete)
        return Page(tuple(items), next=_CURSOR.encode(shown, cursor), complete=complete)

    async def _active(self, owner: str) -> Conversation | None:
        """Return the conversation that is the owner's active one once all that is pending here is delivered."""
        marked, unavailable, pending = await self._marked(owner)
        if marked is None and not unavailable:
            return None
        name, moment = (None, None) if marked is None else (marked.conversation_id, marked.left_at)
        if name is not None and moment is None:
            candidate = await self.reader.conversation(name)
            if candidate is not None and candidate.state == "active":
                return candidate.with_changes(active=True)
        left = {archived: from_microseconds(at) for archived, (_, at) in pending.left.items()}
        while True:
            then = None if moment is None else from_microseconds(moment)
            candidate = await self._newest(owner, but=name, moment=then, left=left)
            if candidate is None or candidate.state == "active":
                return None if candidate is None else candidate.with_changes(active=True)
            name = candidate.conversation_id
            moment = pending.left[name][1]  # it has left since, too

    async def _marked(self, owner: str) -> tuple[ActiveConversation | None, bool, PendingActive]:
        """Return the conversation that was activated last, whether the store is unavailable, and what is pending."""
        pending = await self.outbox.read(lambda connection: read_active(connection, owner))
        origin_id, lane = self.outbox.origin.origin_id, pending.lane

        async def read(lineage: Lineage, connection: AsyncConnection) -> tuple[StoreView, int]:
            view = await lineage.reader.active_view(connection, owner, origin_id=origin_id)
            heads = await lineage.reader.lane_heads(connection, origin_id, () if lane is None else (lane,))
            return view, heads.get(lane or "", 0)

        answer = await self.gateway.read(lambda: self.store.runtime.snapshot(read))
        if answer is None:
            return active_alone(pending), True, pending
        view, head = answer
        return merge_active(pending, view, head=head), False, pending

    async def _newest(
        self, owner: str, *, but: str | None, moment: datetime | None, left: Mapping[str, datetime]
    ) -> Conversation | None:
        """Return the owner's live conversation with the newest activity, except one, as the store finds it."""
        best: tuple[datetime, Conversation] | None = None
        cursor = None
        while True:
            states = DEFAULT_STATES if moment is None else STATES
            page = await self.reader.conversations(owner=owner, after=cursor, limit=2, states=states)
            for candidate in page:
                name = candidate.conversation_id
                live = candidate.state == "active" or (moment is not None and left.get(name, moment) > moment)
                if name == but or not live:
                    continue
                if moment is None or candidate.updated_at <= moment:
                    return candidate if best is None or best[0] < candidate.updated_at else best[1]
                at = await self._active_until(candidate, moment)
                if at is not None and (best is None or best[0] < at):
                    best = at, candidate
            if (cursor := page.next) is None:
                return None if best is None else best[1]

    async def _active_until(self, conversation: Conversation, moment: datetime) -> datetime | None:
        """Return when a conversation's last event up to a moment, in the log's order, occurred, if any."""
        before: str | None = None
        while True:
            page = await self.reader.events(
                conversation.conversation_id, after=0, first=_PAGE, last=_PAGE, before=before
            )
            for event in reversed(page):
                if event.occurred_at <= moment:
                    return event.occurred_at
            if (before := page.next) is None:
                # While the store is unavailable, later activity there is not known.
                return None if page.complete else conversation.created_at

    async def _owner_of(self, conversation_id: str, owner: str | None = None, *, needed: bool = False) -> str | None:
        """Return the owner of a conversation, so that this outbox knows it too."""
        check_identifier(conversation_id, "conversation_id")
        if owner is not None:
            return owner
        conversation = await self.reader.conversation(conversation_id)
        reachable = await self.gateway.read(lambda: is_reachable(self.store)) is not None
        if conversation is None and reachable:
            conversation = await self.reader.conversation(conversation_id)  # the store may have come back in between
            if conversation is None:
                raise InvalidInput("conversation_id", "there is no such conversation")
        if conversation is None:
            return None
        if conversation.state == "deleted":
            raise ConversationGone(conversation_id=conversation_id)
        if conversation.owner_id is None and needed and reachable:
            raise InvalidInput("owner", "the conversation has no owner: give one with owner=")
        return conversation.owner_id


async def register(
    outbox: OutboxFile,
    store: ConversationStore,
    kind: Kind,
    subject: str,
    *,
    how: How,
    reason: str | None,
    requested_by: str | None = None,
    answers: bool = False,
) -> Erasure:
    """Record an erasure in the history store of an outbox, which asks for it."""
    bound, used = await outbox.read(read_binding), await outbox.read(highest_number)
    origin = replace(outbox.origin, store_id=bound.store_id)
    with expect_store(bound.store_id):  # one that is gone is not created anew
        return await store.erasures.register(
            kind,
            subject,
            how=how,
            reason=reason,
            requested_by=requested_by,
            answers=answers,
            origin=origin,
            used=used,
        )


def _checked_place(shown: object, cursor: object) -> tuple[str | None, str | None]:
    if not isinstance(cursor, str | None):
        raise TypeError
    return None if shown is None else check_identifier(shown, "after"), cursor
