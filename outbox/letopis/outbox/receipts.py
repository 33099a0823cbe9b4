"""Receipts: what an append gives back, and how to learn that the history store holds it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import orjson
import sqlalchemy as sa

from letopis.outbox.append import Appended
from letopis.outbox.file import OutboxFile
from letopis.store.conversation import Saved, Seen
from letopis.store.errors import Closed, InvalidInput, OutboxUnavailable
from letopis.store.making import quick

logger = logging.getLogger("letopis.outbox.history")

FASTEST: Final = 0.005
SLOWEST: Final = 0.25
"""Seconds between two looks at what another process may have delivered: fast at first, then slower."""
SHARE: Final = 20
"""Times as long as a look took is waited before the next one: looking takes no more than so small a part of a core."""

FOREVER: Final = 1e9
"""Seconds that nobody waits; what is longer, an event loop cannot wait for."""

_LOOK: Final = (
    "SELECT l.conversation_id, l.delivered, l.state, json_extract(w.value, '$[1]'), e.event_id"
    " FROM json_each(?) AS w"
    " JOIN letopis_outbox_lanes AS l ON l.conversation_id = json_extract(w.value, '$[0]')"
    " LEFT JOIN letopis_outbox_events AS e"
    " ON e.conversation_id = l.conversation_id AND e.sequence = json_extract(w.value, '$[1]')"
)

_SUPERSEDED: Final = "SELECT 1 FROM letopis_outbox_superseded WHERE event_id = ?"
_SKIPPED: Final = (
    "SELECT 1 FROM letopis_outbox_repairs AS s WHERE s.event_id = ? AND s.verb = 'skip' AND NOT EXISTS ("
    "SELECT 1 FROM letopis_outbox_repairs AS r WHERE r.repair_id > s.repair_id AND r.verb = 'restore'"
    " AND r.conversation_id = s.conversation_id AND r.sequence = s.sequence)"
)
"""Whether a tombstone was put in an event's place, and the event not put back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Proof that events are in the outbox, durably, or will be with the caller's own commit.

    :ivar event_ids: in the order in which they were given; running the append again with them is always safe.
    :ivar message_id: of the last message among them; ``None`` where there is none.
    :ivar sequence: of the last event in its conversation in this outbox.
    """

    conversation_id: str
    event_ids: tuple[UUID, ...]
    message_id: str | None
    sequence: int
    _last: UUID = field(repr=False, compare=False)
    _deliveries: Deliveries = field(repr=False, compare=False)
    _void: asyncio.Event | None = field(default=None, repr=False, compare=False)

    async def saved(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - the answer is False, no error
        """Wait until the history store holds the events, at most ``timeout`` seconds.

        Returns ``True`` once it does. Returns ``False`` when the time is over, and at once where nothing will come by
        itself: the conversation is blocked and waits for a person, a person has skipped the event, or the transaction
        was rolled back. ``False`` does not mean lost: what was appended stays in the outbox and is delivered when it
        can be; of a skipped event the outbox keeps the content, and the history a tombstone.

        Without a relay, here or in another process, nothing is ever delivered: give a timeout.

        :raises InvalidInput: ``timeout`` is no number of seconds.
        :raises Closed: the history is closed.
        """
        timeout = check_timeout(timeout)
        if self._void is not None and self._void.is_set():
            return False
        return await self._deliveries.wait(self.conversation_id, self.sequence, self._last, timeout=timeout)

    @property
    def seen(self) -> Seen:
        """What to append after, for an answer to this: the conversation as far as this outbox holds it."""
        return Seen(sequence=self.sequence)

    async def superseded(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - the answer is False, no error
        """Wait until the events are saved, as ``saved()`` does; whether the history store has put any of them aside.

        That happens where they were appended with a condition and another outbox was first, or where the conversation
        was deleted meanwhile. ``False`` where they are not saved in time: then it is not known yet.

        :raises Closed: the history is closed.
        """
        return await self.saved(timeout) and await self._deliveries.superseded(self.event_ids)

    async def state(self) -> Saved:
        """Return how far the events have got: saved, pending or blocked; blocked also where a person skipped the last.

        Of a transaction that was rolled back nothing will come: it says pending, never saved.

        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        if self._void is not None and self._void.is_set():
            return Saved.PENDING
        return await self._deliveries.state(self.conversation_id, self.sequence, self._last)


def check_timeout(value: object) -> float | None:
    """Return how many seconds to wait at most; ``None`` is for ever.

    :raises InvalidInput: it is no number.
    """
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or value != value:  # NaN
        raise InvalidInput("timeout", "must be a number of seconds, or None to wait for as long as it takes")
    return min(value, FOREVER)


_receipt: Final = quick(Receipt)


def receipt_of(appended: Appended, deliveries: Deliveries, *, void: asyncio.Event | None = None) -> Receipt:
    """Return the receipt of an append."""
    sequence = max(appended.sequences)
    return _receipt(
        conversation_id=appended.conversation_id,
        event_ids=appended.event_ids,
        message_id=appended.message_id,
        sequence=sequence,
        _last=appended.event_ids[appended.sequences.index(sequence)],
        _deliveries=deliveries,
        _void=void,
    )


@dataclass(slots=True, eq=False)
class _Waiter:
    """One receipt that waits."""

    conversation_id: str
    sequence: int
    event_id: UUID
    answer: asyncio.Future[bool]


class Deliveries:
    """Tells receipts what has been delivered: one look at the file for all that wait, whoever the relay is."""

    def __init__(self, outbox: OutboxFile) -> None:
        self._outbox = outbox
        self._waiters: set[_Waiter] = set()
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    async def wait(
        self,
        conversation_id: str,
        sequence: int,
        event_id: UUID,
        *,
        timeout: float | None,  # noqa: ASYNC109 - the answer is False, no error
    ) -> bool:
        """Wait until an event is delivered; ``False`` when it will not be by itself, or the time is over."""
        if self._closed:
            raise Closed("the history is closed")
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(conversation_id, sequence, event_id, answer)
        self._waiters.add(waiter)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look(), name="letopis-deliveries")
        else:
            self._outbox.changed.ring()  # a look for the newcomer
        try:
            await asyncio.wait((answer,), timeout=timeout)
            return answer.result() if answer.done() else False
        finally:
            self._waiters.discard(waiter)
            answer.cancel()

    async def state(self, conversation_id: str, sequence: int, event_id: UUID) -> Saved:
        """Return how far an event has got."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(conversation_id, sequence, event_id, answer)
        found = await self._outbox.read(lambda connection: _read(connection, (waiter,)))
        return found.get(waiter, Saved.PENDING)

    async def superseded(self, event_ids: Iterable[UUID]) -> bool:
        """Return whether the history store has put one of these events aside."""
        ids = [event_id.bytes for event_id in event_ids]
        return await self._outbox.read(lambda connection: _any_superseded(connection, ids))

    async def close(self) -> None:
        """Refuse whatever still waits."""
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        for waiter in tuple(self._waiters):
            if not waiter.answer.done():
                waiter.answer.set_exception(Closed("the history was closed before the events were saved"))

    async def _look(self) -> None:
        pause = FASTEST
        while self._waiters:
            rings = self._outbox.changed.rings
            waiters = tuple(self._waiters)
            begun = time.monotonic()
            try:
                found = await self._outbox.read(lambda connection, these=waiters: _read(connection, these))  # type: ignore[misc]
            except OutboxUnavailable as error:
                logger.warning("cannot see what has been delivered: %s", error)
                found = {}
            for waiter, state in found.items():
                if state is not Saved.PENDING and not waiter.answer.done():
                    waiter.answer.set_result(state is Saved.SAVED)
            self._waiters.difference_update([one for one in waiters if one.answer.done()])
            fastest = max(FASTEST, SHARE * (time.monotonic() - begun))
            news = any(state is Saved.SAVED for state in found.values())
            pause = min(fastest if news else max(fastest, pause * 1.5), SLOWEST)
            try:
                async with asyncio.timeout(pause):
                    await self._outbox.changed.wait(rings)
            except TimeoutError:
                continue  # another process may have delivered


def _read(connection: sa.Connection, waiters: Iterable[_Waiter]) -> dict[_Waiter, Saved]:
    by_place: dict[tuple[str, int], list[_Waiter]] = {}
    for waiter in waiters:
        by_place.setdefault((waiter.conversation_id, waiter.sequence), []).append(waiter)
    found: dict[_Waiter, Saved] = {}
    cursor = connection.connection.cursor()
    try:
        cursor.execute(_LOOK, (orjson.dumps(list(by_place)).decode(),))
        for conversation_id, delivered, state, sequence, event_id in cursor.fetchall():
            for waiter in by_place[conversation_id, sequence]:
                if event_id != waiter.event_id.bytes and _skipped(cursor, waiter):
                    found[waiter] = Saved.BLOCKED
                elif event_id is not None and event_id != waiter.event_id.bytes:
                    continue  # that transaction was rolled back, and the place taken by another event
                elif sequence <= delivered:
                    # Not in the file any more: it was let go, which only what is delivered is.
                    found[waiter] = Saved.SAVED
                elif event_id is not None:
                    found[waiter] = Saved.BLOCKED if state == "blocked" else Saved.PENDING
    finally:
        cursor.close()
    return found


def _any_superseded(connection: sa.Connection, event_ids: list[bytes]) -> bool:
    cursor = connection.connection.cursor()
    try:
        return any(cursor.execute(_SUPERSEDED, (event_id,)).fetchone() is not None for event_id in event_ids)
    finally:
        cursor.close()


def _skipped(cursor: Any, waiter: _Waiter) -> bool:
    return cursor.execute(_SKIPPED, (waiter.event_id.bytes,)).fetchone() is not None


def waiting_for_nothing(connection: sa.Connection) -> bool | None:
    """Return whether nothing is pending; ``None`` where what is pending will not be delivered by itself."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(
            "SELECT count(*), coalesce(sum(state IN ('blocked', 'paused')), 0) FROM letopis_outbox_lanes"
            " WHERE delivered < head"
        )
        [(owed, held)] = cursor.fetchall()
    finally:
        cursor.close()
    if not owed:
        return True
    return None if owed == held else False
