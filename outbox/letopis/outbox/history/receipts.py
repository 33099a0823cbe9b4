"""Return receipts for appends, and tell them when the history store holds the events."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final
from uuid import UUID

import orjson
import sqlalchemy as sa

from letopis.outbox.concurrency.home_loop import at_home
from letopis.outbox.event_log.append_plan import Appended
from letopis.outbox.event_log.statements import fetch_all, query_one
from letopis.store.database.faults import StoreFault
from letopis.store.errors import Closed, InvalidInput, OutboxUnavailable
from letopis.store.model.conversations import Saved, Seen
from letopis.store.model.records import is_record_lane

if TYPE_CHECKING:
    from letopis.outbox.file.outbox_file import OutboxFile
    from letopis.outbox.history.find_message import MessageFinder
    from letopis.outbox.pending_reads.store_gateway import StoreGateway
    from letopis.store.conversation_store import ConversationStore

logger = logging.getLogger("letopis.outbox.history")

POLL_MIN_SECONDS: Final = 0.005
POLL_MAX_SECONDS: Final = 0.25  # between two polls for another process's deliveries: short at first, then longer
_IDLE_FACTOR: Final = 20  # a pause lasts this many times the poll before it, so that polling takes little of a core

MAX_TIMEOUT_SECONDS: Final = 1e9  # an event loop cannot wait longer than about this

_DELIVERED: Final = (
    "SELECT l.conversation_id, l.delivered, l.state, json_extract(w.value, '$[1]'), e.event_id"
    " FROM json_each(?) AS w"
    " JOIN letopis_outbox_lanes AS l ON l.conversation_id = json_extract(w.value, '$[0]')"
    " LEFT JOIN letopis_outbox_events AS e"
    " ON e.lane = l.lane AND e.sequence = json_extract(w.value, '$[1]')"
)

_PENDING: Final = (
    "SELECT count(*), coalesce(sum(state IN ('blocked', 'paused')), 0) FROM letopis_outbox_lanes"
    " WHERE pending_since IS NOT NULL AND delivered < head"
)
_SUPERSEDED: Final = "SELECT 1 FROM letopis_outbox_superseded WHERE event_id = ?"
_SKIPPED: Final = (
    "SELECT 1 FROM letopis_outbox_repairs AS s WHERE s.event_id = ? AND s.verb = 'skip' AND NOT EXISTS ("
    "SELECT 1 FROM letopis_outbox_repairs AS r WHERE r.repair_id > s.repair_id AND r.verb = 'restore'"
    " AND r.conversation_id = s.conversation_id AND r.sequence = s.sequence)"
)
"""Finds an event that an operator skipped and did not restore."""


class Receipt:
    """Proof that events are durable in the outbox, or will be with the caller's own commit; compared by them."""

    __slots__ = ("_appended", "_deliveries", "_void")

    def __init__(self, appended: Appended, deliveries: Deliveries, *, void: asyncio.Event | None = None) -> None:
        self._appended = appended
        self._deliveries = deliveries
        self._void = void

    @property
    def conversation_id(self) -> str:
        """The conversation that the events belong to."""
        return self._appended.conversation_id

    @property
    def event_ids(self) -> tuple[UUID, ...]:
        """The ids of the events in the order of the call; appending the same events again is always safe."""
        return self._appended.event_ids

    @property
    def message_ids(self) -> tuple[str, ...]:
        """The ids of all messages among them, in the order of the call."""
        return self._appended.message_ids

    @property
    def sequence(self) -> int:
        """The place of the last event in its conversation in this outbox."""
        return max(self._appended.sequences)

    @property
    def message_id(self) -> str | None:
        """The id of the last message; ``None`` if there is none."""
        return self.message_ids[-1] if self.message_ids else None

    async def saved(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - the answer is False, no error
        """Wait until the history store holds the events, at most ``timeout`` seconds; with 0, look once.

        Return True once it does. Return False after ``timeout``, and at once if waiting cannot help: an operator has to
        unblock the conversation or has skipped the event, the transaction was rolled back (after ``append_in`` that is
        known once another event has taken the place), or the history store has set the event aside, so that no
        conversation shows it (see :meth:`superseded`). False does not mean lost: the events stay in the outbox and are
        delivered when possible. Of a skipped event the outbox keeps the content, and the history a tombstone.

        Without a relay, here or in another process, nothing is ever delivered: give a timeout.

        :raises InvalidInput: ``timeout`` is not a number of seconds.
        :raises Closed: the history is closed.
        """
        return await self._delivered(timeout) is True

    async def _delivered(self, timeout: float | None) -> bool | None:  # noqa: ASYNC109 - the answer is None, no error
        timeout = check_timeout(timeout)
        if self._void is not None and self._void.is_set():
            return None
        return await self._deliveries.wait(self._last, event_ids=self.event_ids, timeout=timeout)

    @property
    def _last(self) -> _LastEvent:
        sequence = self.sequence
        last = self.event_ids[self._appended.sequences.index(sequence)]
        return _LastEvent(self.conversation_id, sequence, last, joined=self._void is not None)

    @property
    def seen(self) -> Seen:
        """How much of the conversation this outbox holds with these events: give it as ``after=`` of an answer."""
        return Seen(sequence=self.sequence)

    async def superseded(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - the answer is False, no error
        """Wait until the events are delivered, and return True if they are not shown.

        The history store sets them aside if they were appended with a condition and another outbox was first; if the
        conversation was deleted, or the message that they edit was erased, through another outbox meanwhile; and if the
        same message was there already and had been taken off the path. A message that has left the path since it was
        appended, by a rewind or with its conversation, counts too, as far as the outbox and the history store know:
        appending it again returns this receipt, and does not bring it back. If the events are not delivered within
        ``timeout``, the answer may be False because it is not known yet.

        :raises InvalidInput: ``timeout`` is not a number of seconds.
        :raises Closed: the history is closed.
        """
        stands = await self._delivered(timeout)
        if stands is False or not self.message_ids:
            return stands is False
        return await self._deliveries.left_path(self.conversation_id, self.message_ids, delivered=stands is True)

    async def state(self) -> Saved:
        """Return how far the events have got: saved, pending or blocked, or blocked if an operator skipped the last.

        Events that the history store has set aside count as saved: see :meth:`superseded`. Events of a transaction that
        was rolled back stay pending.

        :raises OutboxUnavailable: the outbox file cannot be read.
        """
        if self._void is not None and self._void.is_set():
            return Saved.PENDING
        return await self._deliveries.state(self._last)

    def _fields(self) -> tuple[object, ...]:
        return self.conversation_id, self.event_ids, self.message_ids, self.sequence

    def __eq__(self, other: object) -> bool:
        return self._fields() == other._fields() if isinstance(other, Receipt) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._fields())

    def __repr__(self) -> str:
        fields = zip(("conversation_id", "event_ids", "message_ids", "sequence"), self._fields(), strict=True)
        return f"Receipt({', '.join(f'{name}={value!r}' for name, value in fields)})"


def check_timeout(value: object) -> float | None:
    """Return the number of seconds to wait at most; ``None`` waits without limit."""
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or value != value:  # NaN
        raise InvalidInput("timeout", "must be a number of seconds, or None to wait for as long as it takes")
    return min(value, MAX_TIMEOUT_SECONDS)


@dataclass(frozen=True, slots=True)
class _LastEvent:
    """Where the last event of an append is, if it was committed."""

    conversation_id: str
    sequence: int
    event_id: UUID
    joined: bool  # with other things, so it may be rolled back: only the id tells it from another in its place


@dataclass(slots=True, eq=False)
class _Waiter:
    event: _LastEvent
    answer: asyncio.Future[bool | None]
    event_ids: tuple[UUID, ...] = ()


_Look = tuple[Saved | None, bool]
"""How far the event of a receipt has got, ``None`` if it was rolled back; and whether the store shows the append."""


@at_home(besides=("close",))
class Deliveries:
    """Tells receipts what was delivered, by any relay, with one poll of the file for all that wait."""

    def __init__(self, outbox: OutboxFile, gateway: StoreGateway, finder: MessageFinder | None = None) -> None:
        self._outbox = outbox
        self._gateway = gateway
        self._finder = finder
        self._home = outbox.home
        self._waiters: set[_Waiter] = set()
        self._polling: asyncio.Task[None] | None = None
        self._closed = False

    async def wait(
        self,
        event: _LastEvent,
        *,
        event_ids: tuple[UUID, ...],
        timeout: float | None,  # noqa: ASYNC109 - the answer is None, no error
    ) -> bool | None:
        """Wait for an event: True if the store shows all, False if it set one aside, ``None`` if neither comes."""
        if self._closed:
            raise Closed("the history is closed")
        answer: asyncio.Future[bool | None] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(event, answer, event_ids)
        if timeout is not None and timeout <= 0:  # one look, which takes longer than no time
            state, stands = (await self._look((waiter,))).get(waiter, (Saved.PENDING, False))
            return stands if state is Saved.SAVED else None
        self._waiters.add(waiter)
        if self._polling is None or self._polling.done():
            self._polling = asyncio.get_running_loop().create_task(self._poll(), name="letopis-deliveries")
        else:
            self._outbox.changed.notify()  # poll now, for this waiter too
        try:
            await asyncio.wait((answer,), timeout=timeout)
            return answer.result() if answer.done() else None
        finally:
            self._waiters.discard(waiter)
            answer.cancel()

    async def state(self, event: _LastEvent) -> Saved:
        """Return how far an event has got; one that was rolled back stays pending."""
        waiter = _Waiter(event, asyncio.get_running_loop().create_future())
        state, _ = (await self._look((waiter,))).get(waiter, (Saved.PENDING, False))
        return state or Saved.PENDING

    async def left_path(self, conversation_id: str, message_ids: Collection[str], *, delivered: bool) -> bool:
        """Return True if one of some messages is known to be off the path, or to have gone after its delivery."""
        assert self._finder is not None  # noqa: S101 - only receipts of records go without
        named, complete = await self._finder.named(conversation_id, message_ids)
        gone = delivered and complete and not named.keys() >= set(message_ids)
        return gone or not all(message.on_path for message in named.values())

    async def close(self) -> None:
        self._closed = True
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.gather(self._polling, return_exceptions=True)
        for waiter in tuple(self._waiters):
            if not waiter.answer.done():
                waiter.answer.set_exception(Closed("the history was closed before the events were saved"))

    async def _look(self, waiters: Sequence[_Waiter]) -> dict[_Waiter, _Look]:
        """Return what is known of the events of some receipts."""
        looks, unknown = await self._outbox.read(lambda connection: _read(connection, waiters))
        for waiter in unknown:
            if (held := await self._gateway.read(partial(_held, self._gateway.store, waiter.event))) is not None:
                looks[waiter] = (Saved.SAVED, True) if held else (None, False)
        return looks

    async def _poll(self) -> None:
        pause = POLL_MIN_SECONDS
        while self._waiters:
            seen = self._outbox.changed.generation
            waiters = tuple(self._waiters)
            begun = time.monotonic()
            try:
                looks = await self._look(waiters)
            except (OutboxUnavailable, StoreFault) as error:
                logger.warning("cannot see what was delivered: %s", error)
                looks = {}
            for waiter, (state, stands) in looks.items():
                if state is not Saved.PENDING and not waiter.answer.done():
                    waiter.answer.set_result(stands if state is Saved.SAVED else None)
            self._waiters.difference_update([waiter for waiter in waiters if waiter.answer.done()])
            shortest = max(POLL_MIN_SECONDS, _IDLE_FACTOR * (time.monotonic() - begun))
            progressed = any(state is Saved.SAVED for state, _ in looks.values())
            pause = min(shortest if progressed else max(shortest, pause * 1.5), POLL_MAX_SECONDS)
            with suppress(TimeoutError):  # another process may have delivered
                async with asyncio.timeout(pause):
                    await self._outbox.changed.wait(after=seen)


async def _held(store: ConversationStore, event: _LastEvent) -> bool:
    return event.event_id in await store.runtime.read(
        lambda reader, connection: reader.digests(connection, event.conversation_id, (event.event_id,))
    )


def _read(connection: sa.Connection, waiters: Iterable[_Waiter]) -> tuple[dict[_Waiter, _Look], list[_Waiter]]:
    """Return what the file tells of each waiter's event, and the waiters of whose event only the store knows."""
    by_place: dict[tuple[str, int], list[_Waiter]] = {}
    for waiter in waiters:
        by_place.setdefault((waiter.event.conversation_id, waiter.event.sequence), []).append(waiter)
    looks: dict[_Waiter, _Look] = {}
    unknown: list[_Waiter] = []
    with closing(connection.connection.cursor()) as cursor:
        cursor.execute(_DELIVERED, (orjson.dumps(list(by_place)).decode(),))
        for conversation_id, delivered, state, sequence, event_id in cursor.fetchall():
            for waiter in by_place[conversation_id, sequence]:
                mine = event_id == waiter.event.event_id.bytes
                if not mine and query_one(cursor, _SKIPPED, (waiter.event.event_id.bytes,)) is not None:
                    looks[waiter] = (Saved.BLOCKED, False)
                elif not mine and event_id is not None:
                    looks[waiter] = (None, False)  # it was rolled back, and another event has its place
                elif sequence <= delivered:
                    # An event that is no longer in the file was pruned, as delivered events are; or it was rolled back,
                    # and the event that took its place was pruned.
                    marks = (query_one(cursor, _SUPERSEDED, (appended.bytes,)) for appended in waiter.event_ids)
                    stands = all(mark is None for mark in marks)
                    if mine or not stands or not waiter.event.joined or is_record_lane(conversation_id):
                        looks[waiter] = (Saved.SAVED, stands)
                    else:
                        unknown.append(waiter)
                elif event_id is not None:
                    looks[waiter] = (Saved.BLOCKED if state == "blocked" else Saved.PENDING, True)
    return looks, unknown


def is_drained(connection: sa.Connection) -> bool | None:
    """Return True if nothing is pending; ``None`` if pending events wait for an operator."""
    [(pending, stuck)] = fetch_all(connection, _PENDING)
    if not pending:
        return True
    return None if pending == stuck else False


async def wait_until_drained(outbox: OutboxFile, timeout: float | None) -> bool:  # noqa: ASYNC109
    """Wait until nothing is pending, as ``History.drained`` does."""
    timeout = check_timeout(timeout)
    loop = asyncio.get_running_loop()
    deadline = None if timeout is None else loop.time() + timeout
    pause = POLL_MIN_SECONDS
    while True:
        seen = outbox.changed.generation
        done = await outbox.read(is_drained)
        if done is not False:
            return done is True
        left = pause if deadline is None else min(pause, deadline - loop.time())
        if left <= 0:
            return False
        try:
            async with asyncio.timeout(left):
                await outbox.changed.wait(after=seen)
        except TimeoutError:
            pause = min(pause * 1.5, POLL_MAX_SECONDS)
