"""Chats: an owner's conversations: which one is active, which there are, and what they come to."""

from __future__ import annotations

import asyncio
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final
from weakref import WeakValueDictionary

import orjson
import sqlalchemy as sa

from letopis.outbox.counting import Stretch, beyond, count, pending_lanes, retained_lanes
from letopis.outbox.lanes import find_lane
from letopis.outbox.overlay import Overtaken
from letopis.outbox.owners import Mark, last_activation, mark_alone, mark_over
from letopis.outbox.reach import AWAY
from letopis.outbox.receipts import Receipt
from letopis.outbox.rewinding import Rewinding
from letopis.store.asking import EVERYDAY, check_count, check_states
from letopis.store.conversation import Conversation, Page, Seen
from letopis.store.errors import ConversationGone, InvalidInput
from letopis.store.faults import StoreFault
from letopis.store.history import ConversationStore
from letopis.store.identifiers import check_identifier, uuid7
from letopis.store.reads import StoreView
from letopis.store.statistics import Counted, Counting, Period, Statistics
from letopis.store.vocabulary import (
    Body,
    ConversationActivated,
    ConversationAnnotated,
    ConversationArchived,
    ConversationDeleted,
    ConversationRestored,
    ConversationStarted,
)

_LANES_AT_ONCE: Final = 200
"""Lanes that are counted in one read of the file: other reads wait for it."""


_LOOKS: Final = 5


class Chats(Rewinding):
    """The part of a history that keeps several conversations an owner."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._starting: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def start(
        self,
        owner: str,
        *,
        conversation_id: str | None = None,
        title: str | None = None,
        activate: bool = True,
        metadata: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Begin a conversation; the receipt holds its id.

        Its number, the owner's next, is given by the history store and is ``None`` until that has it. To start one
        again under the same id is safe: it only fills what was not known.

        :param conversation_id: by default a new UUIDv7.
        :param title: of any length.
        :param activate: whether it becomes the owner's active one.
        :param metadata: the conversation's own.
        :raises InvalidInput: an argument is wrong, or the conversation is somebody else's; nothing was written.
        :raises ConversationGone: it was deleted; nothing was written.
        """
        check_identifier(owner, "owner")
        said: list[Body] = [ConversationStarted(owner_id=owner, title=title)]
        if metadata is not None:
            said.append(ConversationAnnotated(metadata=metadata))
        if activate:
            said.append(ConversationActivated())
        name = str(uuid7()) if conversation_id is None else conversation_id
        return await self.append(name, *said, owner=owner)

    async def active(self, owner: str, *, create: bool = True) -> Conversation | None:
        """Return the owner's active conversation, what is pending included; where there is none, begin one.

        Concurrent calls of this history begin one only; two processes may each begin one, of which one is active then.
        While the history store is away, it is the one that this outbox made active last, else the owner's conversation
        with the newest activity in it.

        :param create: ``False`` to return ``None`` where there is none.
        :raises InvalidInput: ``owner`` cannot be one.
        """
        check_identifier(owner, "owner")
        found = await self._active(owner)
        if found is not None or not create:
            return found
        lock = self._starting.setdefault(owner, asyncio.Lock())
        async with lock:
            found = await self._active(owner)
            if found is None:
                receipt = await self.start(owner)
                found = await self.conversation(receipt.conversation_id)
        return None if found is None else found.with_changes(active=True)

    async def activate(self, conversation_id: str, *, owner: str | None = None) -> Receipt:
        """Make a conversation its owner's active one; an archived one is in the everyday list again.

        Of what one outbox says, the last activation wins, whatever is delivered first.

        :param owner: whose it is, where that was never said.
        :raises InvalidInput: there is no such conversation, or it is nobody's; nothing was written.
        :raises ConversationGone: it was deleted; nothing was written. So with those below.
        """
        owner = await self._owner_of(conversation_id, owner, needed=True)
        return await self.append(conversation_id, ConversationActivated(), owner=owner)

    async def archive(self, conversation_id: str, *, reason: str | None = None) -> Receipt:
        """Take a conversation out of the everyday list; nothing of it is lost.

        If it is the active one, the owner's live conversation with the newest activity becomes that, or none.

        :raises InvalidInput: there is no such conversation; nothing was written.
        """
        owner = await self._owner_of(conversation_id)
        return await self.append(conversation_id, ConversationArchived(reason=reason), owner=owner)

    async def restore(self, conversation_id: str) -> Receipt:
        """Put an archived conversation back into the everyday list; it does not become the active one.

        :raises InvalidInput: there is no such conversation; nothing was written.
        """
        owner = await self._owner_of(conversation_id)
        return await self.append(conversation_id, ConversationRestored(), owner=owner)

    async def delete(self, conversation_id: str, *, reason: str | None = None) -> Receipt:
        """Delete a conversation: its content goes for good, with the delivery; its id and number are never used again.

        Nothing can be appended to it after this. What forks read of it stays for them. If it is the active one, the
        owner's live conversation with the newest activity becomes that, or none.

        :param reason: stays in the log.
        :raises InvalidInput: there is no such conversation; nothing was written.
        :raises ConversationGone: it was deleted before; nothing was written.
        """
        owner = await self._owner_of(conversation_id)
        return await self.append(conversation_id, ConversationDeleted(reason=reason), owner=owner)

    async def chats(
        self, owner: str, *, after: str | None = None, limit: int = 50, states: Collection[str] = EVERYDAY
    ) -> Page[Conversation]:
        """Return a page of an owner's conversations: the active one first, then by last activity, unsaved included.

        Pages never repeat one. One that is written to while pages are turned moves to the front, so later pages may
        miss it.

        :param after: the ``next`` of the page before.
        :param states: ``active``, ``archived``, ``deleted``: those that are shown.
        :raises InvalidInput: an argument is wrong.
        """
        check_identifier(owner, "owner")
        check_count(limit, "limit")
        wanted = check_states(states)
        if after is None:
            first, place = await self._active(owner), None
            shown = None if first is None else first.conversation_id
        else:
            first, (shown, place) = None, _read_place(after)
        items = [first] if first is not None and first.state in wanted else []
        complete = True
        owed = {one.conversation_id for one in await self.outbox.read(lambda found: pending_lanes(found, owner))}
        while len(items) < limit:
            page = await self.conversations(owner=owner, after=place, limit=limit - len(items), states=wanted)
            for one in page:
                if one.conversation_id in owed and not one.pending:
                    # It was delivered while the list was read, which may show it as it was before.
                    again = await self.conversation(one.conversation_id)
                    if again is None or again.state not in wanted:
                        continue
                    one = again
                if one.conversation_id != shown:
                    items.append(one.with_changes(active=False) if one.active else one)
            complete, place = complete and page.complete, page.next
            if place is None:
                return Page(tuple(items), complete=complete)
        return Page(tuple(items), next=_place(shown, place), complete=complete)

    async def statistics(
        self,
        *,
        owner: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        by: str | None = None,
    ) -> Statistics:
        """Count what was said in a period, of one owner or of all, unsaved messages included, each once.

        Every message of the period is read, a page at a time: of all owners of a large store that takes its time.
        While the history store is away, what the outbox holds is counted, with ``complete`` set to ``False``.

        :param since: the first moment of the period, aware; ``until``: the first one after it. By ``occurred_at``.
        :param by: a key of the messages' metadata; the figures are told by its values as well.
        :raises InvalidInput: an argument is wrong, or the key has more than 10,000 values.
        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        period = Period.of(owner=owner, since=since, until=until, by=by)
        for _ in range(3):
            # What is pending is looked at first: what is delivered after that is told by how far its lane has got.
            pending = await self.outbox.read(lambda connection: pending_lanes(connection, period.owner))
            counted = await self._counted(period, pending)
            if counted is None:
                break
            counting = counted.counting
            try:
                names = await self._count(counting, beyond(pending, counted.heads, counted.owned, period.owner), period)
            except Overtaken:
                continue
            counting.conversations += len(names - counted.there)
            return counting.result()
        # Away, or it has lost events that the outbox does not hold any more either. What is here:
        retained = await self.outbox.read(lambda connection: retained_lanes(connection, period.owner))
        counting = Counting(period.by)
        counting.conversations = len(await self._count(counting, retained, period))
        return counting.result(complete=False)

    async def _counted(self, period: Period, pending: list[Stretch]) -> Counted | None:
        # Not within the deadline of reads: a count may well take longer, and each of its statements has its own.
        if await self._reach.read(_is_there) is None:
            return None
        try:
            return await self.store.counted(
                period, origin_id=self.outbox.origin.origin_id, lanes=[one.conversation_id for one in pending]
            )
        except StoreFault as fault:
            if fault.fault_class not in AWAY:
                raise
            return None

    async def _count(self, counting: Counting, stretches: list[Stretch], period: Period) -> set[str]:
        names: set[str] = set()
        for start in range(0, len(stretches), _LANES_AT_ONCE):
            some = stretches[start : start + _LANES_AT_ONCE]
            names.update(
                await self.outbox.read(
                    lambda connection, part=some: count(  # type: ignore[misc]
                        connection, counting, part, period, upcasters=self._upcasters
                    )
                )
            )
        return names

    async def _active(self, owner: str) -> Conversation | None:
        """Return the conversation that has the owner's mark, once all that is pending here is delivered."""
        mark, held, away = await self._mark(owner)
        if mark is not None and not mark.left:
            found = held if held is not None else await self.conversation(mark.conversation_id)
            if found is not None and found.state == "active":
                return found.with_changes(active=True)
        if mark is None and not away:
            return None
        return await self._newest(owner, but=None if mark is None else mark.conversation_id)

    async def _mark(self, owner: str) -> tuple[Mark | None, Conversation | None, bool]:
        """Return the owner's mark, its conversation if that is known by then, and whether the store is away."""
        activation = await self.outbox.read(lambda connection: last_activation(connection, owner))
        origin_id = self.outbox.origin.origin_id

        async def ask(store: ConversationStore) -> tuple[int, StoreView | None]:
            # How far the lanes had got is read before the marks, or with them: what is applied in between is then
            # applied once more here, to no effect.
            head = 0
            if activation is not None:
                name = activation.conversation_id
                head = (await store.lane_heads(origin_id, (name,))).get(name, 0)
            for _ in range(_LOOKS):
                if (stored := await store.active(owner)) is None:
                    break
                view = await store.view(stored.conversation_id, origin_id=origin_id, last=1)
                if view.conversation is not None and view.conversation.active:  # else it moved on in between
                    return head, view
            return head, None

        def lay(
            connection: sa.Connection, found: tuple[int, StoreView | None] | None
        ) -> tuple[Mark | None, Conversation | None, bool]:
            if found is None:
                return mark_alone(connection, activation), None, True
            head, view = found
            held = None if view is None else view.conversation
            mark = mark_over(
                connection,
                activation,
                activated_head=head,
                stored=None if held is None else held.conversation_id,
                stored_head=0 if view is None else view.sequence,
            )
            if mark is None or view is None or held is None or held.conversation_id != mark.conversation_id:
                return mark, None, False
            lane = find_lane(connection, held.conversation_id)
            here = 0 if lane is None else lane.head
            if here > view.sequence:
                return mark, None, False  # there is more of it in the file
            return mark, replace(held, seen=Seen(sequence=here, version=held.version)), False

        return await self._read(ask, lay)

    async def _newest(self, owner: str, *, but: str | None) -> Conversation | None:
        """Return the owner's live conversation with the newest activity, one left aside."""
        place = None
        while True:
            page = await self.conversations(owner=owner, after=place, limit=2)
            for one in page:
                if one.conversation_id == but:
                    continue
                # Looked at again: its deletion may have been delivered while the list was read.
                again = await self.conversation(one.conversation_id)
                if again is not None and again.state == "active":
                    return again.with_changes(active=True)
            if page.next is None:
                return None
            place = page.next

    async def _owner_of(self, conversation_id: str, owner: str | None = None, *, needed: bool = False) -> str | None:
        """Return whose a conversation is, so that this outbox knows it too.

        :raises InvalidInput: there is no such conversation; or it is nobody's, where somebody is needed.
        """
        check_identifier(conversation_id, "conversation_id")
        if owner is not None:
            return check_identifier(owner, "owner")
        found = await self.conversation(conversation_id)
        known = await self._reach.read(_is_there) is not None
        if found is None and known:
            found = await self.conversation(conversation_id)  # the store may have come back in between
            if found is None:
                raise InvalidInput("conversation_id", "there is no such conversation")
        if found is None:
            return None
        if found.state == "deleted":
            raise ConversationGone(conversation_id=conversation_id)
        if found.owner_id is None and needed and known:
            raise InvalidInput("owner", "the conversation is nobody's: say whose it is to be")
        return found.owner_id


async def _is_there(store: ConversationStore) -> bool:
    await store.ping()
    return True


def _place(shown: str | None, place: str | None) -> str:
    return urlsafe_b64encode(orjson.dumps([shown, place])).decode().rstrip("=")


def _read_place(after: str) -> tuple[str | None, str | None]:
    """Return which conversation was shown first, and where the others go on.

    :raises InvalidInput: it is no place of a page of chats.
    """
    try:
        if not isinstance(after, str) or len(after) > 8_000:
            raise TypeError  # noqa: TRY301 - all that is wrong with a place has one answer
        shown, place = orjson.loads(urlsafe_b64decode(after.encode("ascii") + b"=" * (-len(after) % 4)))
        if not isinstance(place, str | None):
            raise TypeError  # noqa: TRY301
        return None if shown is None else check_identifier(shown, "after"), place
    except (TypeError, ValueError) as error:
        raise InvalidInput("after", "must be the `next` of a page of chats") from error
