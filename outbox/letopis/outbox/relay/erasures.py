"""Carry out the erasures of the history store that an outbox lacks, and acknowledge them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final
from uuid import UUID

from letopis.outbox.alerting.incident_table import record_finding
from letopis.outbox.alerting.incidents import IncidentKind
from letopis.outbox.event_log.acknowledge import is_current_lease
from letopis.outbox.event_log.bound_store import KnownErasures, StoreBinding, read_binding
from letopis.outbox.event_log.erasures import (
    LANES_PER_QUESTION,
    NOTHING_KNOWN,
    KnownByStore,
    begin_erasure,
    carry_out_step,
    conversations_of_records,
    conversations_without_owner,
    end_erasures,
    erase_messages_of,
    note_acknowledged,
    note_owner,
    note_report,
    open_conversations,
    set_aside,
)
from letopis.outbox.event_log.held import HeldSubjects
from letopis.outbox.event_log.known_erasures import compare_with_store, unknown_erasures
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.outcome import log_context, logger
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.store_identity import StoreIdentity, expect_store
from letopis.store.erasures import Erasure
from letopis.store.read.reader import Reader
from letopis.store.rules.apply_plan import Origin

if TYPE_CHECKING:
    import sqlalchemy as sa

_KNOWN_KINDS: Final = frozenset({"owner", "person", "conversation"})
_MESSAGES_PER_STEP: Final = 500


class ErasureCarrier:
    """Carries out erasures in one outbox file, in the order of their numbers."""

    def __init__(self, outbox: OutboxFile, store: ConversationStore) -> None:
        self._outbox = outbox
        self._store = store
        self.reported = False  # the last report had something to tell

    async def carry_out(self, origin: Origin, bound: StoreBinding, last: StoreIdentity, *, incarnation: int) -> bool:
        """Carry out what the file lacks, and acknowledge it. Return False if another relay has taken over.

        A store that was restored records fewer erasures than the file has carried out, or others under their numbers.

        :raises ErasuresPending: another one was recorded meanwhile.
        """
        with expect_store(bound.store_id):
            after = max(0, bound.erasures - 1)
            page = await self._store.erasures.after(after)
            if after and not (page and page[0].erasure_id == bound.erasure_id):
                after, page = 0, await self._store.erasures.after(0)
            number, erasure_id, recorded = last.erasures, last.erasure_id, set[UUID]()
            while page:
                held = await self.held()
                for erasure in await self._outbox.read(partial(unknown_erasures, erasures=page)):
                    if not await self._carry_out(erasure, held, incarnation=incarnation):
                        return False
                recorded.update(erasure.erasure_id for erasure in page)
                if page[-1].number >= number:
                    number, erasure_id = page[-1].number, page[-1].erasure_id
                page = await self._store.erasures.after(page[-1].number)
            settle = partial(_settle, number=number, erasure_id=erasure_id, recorded=recorded, every=after == 0)
            work = partial(settle, incarnation=incarnation, now_us=self._outbox.now_us())
            if (missing := await self._outbox.write(work)) is None:
                return False
            if missing:
                logger.error("%s", describe_missing(missing), extra=log_context())
            await self._store.apply(replace(origin, erasures=number, erasure_id=erasure_id), [])
            await self._outbox.write(partial(note_acknowledged, erasure_id=erasure_id))
        return True

    async def begin(self, erasure: Erasure) -> None:
        """Settle how far an erasure that this outbox has asked for reaches in it: what is appended now is new.

        So does each that it has asked for before: a process may have been killed as soon as that was recorded.
        """
        held, bound = await self.held(), await self._outbox.read(read_binding)
        number = min(bound.erasures, erasure.number - 1)
        while number < erasure.number and (page := await self._store.erasures.after(number)):
            number = page[-1].number
            for asked in await self._outbox.read(partial(unknown_erasures, erasures=page)):
                own = asked.origin_id == self._outbox.origin.origin_id and asked.number <= erasure.number
                if own and asked.kind in _KNOWN_KINDS and not held.forbids(asked):
                    await self._begin(asked, held)

    async def _begin(self, erasure: Erasure, held: HeldSubjects) -> None:
        known = await self._prepare(erasure, held)
        work = partial(begin_erasure, erasure=erasure, held=held, now_us=self._outbox.now_us(), known=known)
        await self._outbox.write(work)

    async def held(self) -> HeldSubjects:
        """Return what is on hold in the history store."""
        holds = await self._store.erasures.holds()
        return HeldSubjects(
            conversations=frozenset(hold.subject for hold in holds if hold.kind == "conversation"),
            owners=frozenset(hold.subject for hold in holds if hold.kind == "owner"),
        )

    async def report(self) -> None:
        """Have the status tell which outboxes have erasures to carry out, and what is held."""
        behind, holds = await self._store.erasures.unacknowledged(), await self._store.erasures.holds()
        report = {
            "unacknowledged": [
                {"name": late.name, "origin_id": str(late.origin_id), "since": late.since.isoformat()}
                for late in behind
            ],
            "holds": [{"kind": held.kind, "subject": held.subject, "reason": held.reason} for held in holds],
        }
        self.reported = any(report.values())
        await self._outbox.write(partial(note_report, report=report))

    async def _carry_out(self, erasure: Erasure, held: HeldSubjects, *, incarnation: int) -> bool:
        if erasure.kind not in _KNOWN_KINDS:
            reason = f"the history store records an erasure of a {erasure.kind}: install the release that recorded it"
            raise StoreFault(fault_class=FaultClass.MISCONFIGURED, code="erasure", reason=reason)
        if held.forbids(erasure):
            aside = "erasure %d is set aside in this outbox: a hold on its %s forbids it"
            logger.warning(aside, erasure.number, erasure.kind, extra=log_context())
            return await self._outbox.write(partial(set_aside, erasure=erasure, incarnation=incarnation))
        known = await self._prepare(erasure, held)
        more: bool | None = True
        if erasure.kind == "person":
            more = await self._erase_stored(erasure, held, known, incarnation=incarnation)
        while more:
            now_us = self._outbox.now_us()
            step = partial(carry_out_step, erasure=erasure, held=held, incarnation=incarnation, now_us=now_us)
            more = await self._outbox.write(partial(step, known=known))
            self._outbox.truncate_wal()
        if more is not None:
            logger.info("erasure %d of the history store is carried out here", erasure.number, extra=log_context())
        return more is not None

    async def _erase_stored(
        self, erasure: Erasure, held: HeldSubjects, known: KnownByStore, *, incarnation: int
    ) -> bool | None:
        """Erase what the file holds of messages that the store knows as a person's, such as an edit alone."""
        after: tuple[str, int] | None = None
        while True:
            page = await self._store.runtime.read(
                Reader.authored, erasure.subject, after=after, limit=_MESSAGES_PER_STEP
            )
            by_conversation: dict[str, list[str]] = {}
            for message in page:
                after = message.conversation_id, message.version or 0
                by_conversation.setdefault(message.conversation_id, []).append(message.id)
            work = partial(erase_messages_of, message_ids=by_conversation, held=held, incarnation=incarnation)
            step = partial(work, erasure=erasure, now_us=self._outbox.now_us(), known=known)
            if not await self._outbox.write(step):
                return None
            if len(page) < _MESSAGES_PER_STEP:
                return True

    async def _prepare(self, erasure: Erasure, held: HeldSubjects) -> KnownByStore:
        """Note what is of the owner who is erased, or is held, though nobody named the owner here.

        Return the bounds of conversations whose owner is named here, maybe only in a pending event: the store may have
        a part of them and not know that it is erased. What it knows by now may be of words that came after the erasure.
        """
        of_owner = erasure.kind != "conversation"
        names = await self._outbox.read(partial(open_conversations, erasure=erasure)) if of_owner else []
        for owner in (*((erasure.subject,) if of_owner else ()), *held.owners):
            async for owned in self._owned_by(owner, conversations_without_owner):
                await self._outbox.write(partial(note_owner, owner=owner, conversation_ids=owned))
        if not of_owner:
            return NOTHING_KNOWN
        register = self._store.erasures
        return KnownByStore(
            # Whom a draft names by mistake does not own what the store knows as another's.
            await register.erasure_bounds(erasure.number, names, owner=erasure.subject) if names else {},
            [name async for owned in self._owned_by(erasure.subject, conversations_of_records) for name in owned],
        )

    async def _owned_by(self, owner: str, find: Callable[..., list[str]]) -> AsyncIterator[Collection[str]]:
        """Yield those conversations of pages of the file that the store knows as an owner's."""
        after = ""
        while page := await self._outbox.read(partial(find, after=after)):
            if owned := await self._store.runtime.read(Reader.owned, owner, page):
                yield owned
            if len(page) < LANES_PER_QUESTION:
                return
            after = page[-1]


async def recorded_erasures(store: ConversationStore) -> KnownErasures:
    """Return the numbers and ids of all erasures that a store records."""
    known: list[tuple[int, UUID]] = []
    while page := await store.erasures.after(known[-1][0] if known else 0):
        known += [(erasure.number, erasure.erasure_id) for erasure in page]
    return known


def describe_missing(missing: Collection[Erasure]) -> str:
    """Return in a sentence that the store has forgotten erasures, and what to do."""
    first = min(erasure.number for erasure in missing)
    return (
        f"the history store was restored from before erasure {first}: it lacks {len(missing)} that this outbox has"
        " carried out, and may show their content again; set holds that it lost again, then run"
        " `letopis history erase --repeat`"
    )


def _settle(
    connection: sa.Connection,
    *,
    number: int,
    erasure_id: UUID | None,
    recorded: Collection[UUID],
    every: bool,
    incarnation: int,
    now_us: int,
) -> list[Erasure] | None:
    if not is_current_lease(connection, incarnation):
        return None
    missing = compare_with_store(connection, recorded, every=every)
    end_erasures(connection, number, erasure_id)
    what = f"{describe_missing(missing)} [forgotten erasures]" if missing else None
    record_finding(connection, IncidentKind.ERASURES_MISSING, what, now_us=now_us)
    return missing
