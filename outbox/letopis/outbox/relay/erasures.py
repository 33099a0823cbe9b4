"""Carry out the erasures of the history store that an outbox lacks, and acknowledge them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

from letopis.outbox.event_log.bound_store import StoreBinding
from letopis.outbox.event_log.erasures import (
    LANES_PER_QUESTION,
    HeldSubjects,
    carry_out_step,
    end_erasures,
    erase_messages,
    lanes_without_owner,
    note_acknowledged,
    note_owner,
    note_report,
)
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.relay.outcome import log_context, logger
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.faults import FaultClass, StoreFault
from letopis.store.database.store_identity import expect_store
from letopis.store.erasures import Erasure
from letopis.store.rules.apply_plan import Origin

_KNOWN_KINDS: Final = frozenset({"owner", "person", "conversation"})
_MESSAGES_PER_STEP: Final = 500


class ErasureCarrier:
    """Carries out erasures in one outbox file, in the order of their numbers."""

    def __init__(self, outbox: OutboxFile, store: ConversationStore) -> None:
        self._outbox = outbox
        self._store = store
        self.reported = False  # the last report had something to tell

    async def carry_out(self, origin: Origin, bound: StoreBinding, last: int, *, incarnation: int) -> bool:
        """Carry out what the file lacks up to ``last``, and acknowledge it. False if another relay has taken over."""
        number = bound.erasures
        with expect_store(bound.store_id):
            while erasures := await self._store.erasures.after(number):
                holds = await self._store.erasures.holds()
                held = HeldSubjects(
                    conversations=frozenset(hold.subject for hold in holds if hold.kind == "conversation"),
                    owners=frozenset(hold.subject for hold in holds if hold.kind == "owner"),
                )
                for erasure in erasures:
                    if not await self._carry_out(erasure, held, incarnation=incarnation):
                        return False
                    number = erasure.number
            number = max(number, last)
            if not await self._outbox.write(partial(end_erasures, number=number, incarnation=incarnation)):
                return False
            await self._store.apply(replace(origin, erasures=number), [])
            await self._outbox.write(partial(note_acknowledged, number=number))
        return True

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
            return await self._outbox.write(partial(end_erasures, number=erasure.number, incarnation=incarnation))
        if erasure.kind != "conversation":
            await self._find_owner(erasure.subject)
        more: bool | None = True
        if erasure.kind == "person":
            for owner in held.owners:
                await self._find_owner(owner)
            more = await self._erase_stored(erasure.subject, held, incarnation=incarnation)
        while more:
            now_us = self._outbox.now_us()
            step = partial(carry_out_step, erasure=erasure, held=held, incarnation=incarnation, now_us=now_us)
            more = await self._outbox.write(step)
            self._outbox.truncate_wal()
        if more is not None:
            logger.info("erasure %d of the history store is carried out here", erasure.number, extra=log_context())
        return more is not None

    async def _erase_stored(self, author: str, held: HeldSubjects, *, incarnation: int) -> bool | None:
        """Erase what the file holds of messages that the store knows as an author's, such as an edit alone."""
        after: tuple[str, int] | None = None
        while True:
            page = await self._store.outbox_access.authored(author, after=after, limit=_MESSAGES_PER_STEP)
            by_conversation: dict[str, list[str]] = {}
            for message in page:
                after = message.conversation_id, message.version or 0
                by_conversation.setdefault(message.conversation_id, []).append(message.id)
            step = partial(erase_messages, message_ids=by_conversation, held=held, incarnation=incarnation)
            if not await self._outbox.write(step):
                return None
            if len(page) < _MESSAGES_PER_STEP:
                return True

    async def _find_owner(self, owner: str) -> None:
        """Note which conversations here are the owner's, though nobody named the owner here."""
        after = ""
        while page := await self._outbox.read(partial(lanes_without_owner, after=after)):
            owned = await self._store.outbox_access.owned(owner, page)
            if owned:
                await self._outbox.write(partial(note_owner, owner=owner, conversation_ids=owned))
            if len(page) < LANES_PER_QUESTION:
                return
            after = page[-1]
