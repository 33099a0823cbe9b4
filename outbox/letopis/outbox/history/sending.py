"""Send again the replies that were appended to be sent and never confirmed."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from letopis.outbox.concurrency.callbacks import call_with_timeout
from letopis.outbox.concurrency.clock import MICROSECONDS_PER_SECOND, Clock
from letopis.outbox.event_log.drafts import DraftKey, UnconfirmedDraft
from letopis.outbox.history.append import Appender
from letopis.outbox.history.find_message import MessageFinder
from letopis.outbox.history.open_replies import MAINTENANCE_INTERVAL_SECONDS, Replies
from letopis.outbox.history.options import Options, Sender, UnsentReply
from letopis.outbox.retry.policy import RetryPolicy
from letopis.outbox.telemetry.logging import describe_failure
from letopis.store.errors import InvalidInput, LetopisError, OutboxUnavailable, SendRefused
from letopis.store.model.event_types import MessageFailed, MessageSent
from letopis.store.model.events import from_microseconds

logger: Final = logging.getLogger("letopis.outbox.history")

SENDING_POLICY: Final = RetryPolicy(base=1.0, factor=2.0, cap=3600.0)
"""When a reply is sent again; its ``attempts`` do not count, the age of the reply does."""
MAX_CALLS: Final = 8  # conversations whose replies are sent at the same time
CALL_TIMEOUT_SECONDS: Final = 600.0
LIVE_SENDING_SECONDS: Final = 600.0  # how long later replies wait for one that a live process is still to confirm
_RECHECK_SECONDS: Final = 1.0
_STOP_TIMEOUT_SECONDS: Final = 5.0


@dataclass(slots=True)
class _Unsent:
    failures: int = 0
    failure: str = ""
    due: float = 0.0  # by the monotonic clock
    outcome: MessageSent | MessageFailed | None = None  # still to be recorded; it is not sent again


@dataclass(kw_only=True, eq=False)
class Resender:
    """Sends the replies of ended writers, and those of this process that are handed over."""

    sender: Sender
    options: Options
    replies: Replies
    appender: Appender
    finder: MessageFinder
    clock: Clock
    uniform: Callable[[float, float], float] = random.uniform
    unsent: dict[DraftKey, _Unsent] = field(default_factory=dict)
    calls: dict[str, asyncio.Task[None]] = field(default_factory=dict)  # by conversation
    _look_at: float = 0.0
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def take_over(self, conversation_id: str, message_id: str) -> bool:
        """Send an unconfirmed reply of this process. Return False if there is none."""
        taken = (conversation_id, message_id) in self.unsent
        taken = taken or await self.replies.release(conversation_id, message_id)
        self._look_at = 0.0
        self._wake.set()
        return taken

    async def run(self) -> None:
        """Send replies until cancelled."""
        try:
            while True:
                self._wake.clear()
                try:
                    seconds = await self.step()
                except OutboxUnavailable as error:
                    logger.warning("cannot see which replies were never confirmed: %s", error)
                    seconds = _RECHECK_SECONDS
                with suppress(TimeoutError):
                    # Before Python 3.12, wait_for loses a cancellation that comes as the wait ends.
                    async with asyncio.timeout(seconds):
                        await self._wake.wait()
        finally:
            # A call that is cut off is repeated by the next process, and may be shown twice.
            calls = asyncio.gather(*self.calls.values(), return_exceptions=True)
            with suppress(TimeoutError):
                await asyncio.wait_for(calls, _STOP_TIMEOUT_SECONDS)

    async def step(self) -> float:
        """Begin to send what is due, and return the seconds until more may be."""
        now = self.clock.monotonic()
        if now >= self._look_at:
            self._look_at = now + MAINTENANCE_INTERVAL_SECONDS
            for draft in await self.replies.adopt():
                self.unsent.setdefault((draft.conversation_id, draft.message_id), _Unsent())
        seconds = self._look_at - now
        if not self.unsent:
            return seconds
        # Before the list, which still has what a call that ends meanwhile confirms.
        handled = set(self.calls)
        drafts = await self.replies.list_unconfirmed()
        for key in self.unsent.keys() - {(draft.conversation_id, draft.message_id) for draft in drafts}:
            del self.unsent[key]  # confirmed, or erased
        for draft in drafts:
            if draft.conversation_id in handled:
                continue
            unsent = self.unsent.get((draft.conversation_id, draft.message_id))
            if unsent is None and not 0 <= self._age(draft) < LIVE_SENDING_SECONDS:
                continue
            handled.add(draft.conversation_id)
            if unsent is None or unsent.due > now:
                seconds = min(seconds, _RECHECK_SECONDS if unsent is None else unsent.due - now)
            elif len(self.calls) < MAX_CALLS:
                call = asyncio.create_task(self._handle(draft, unsent), name="letopis-send")
                self.calls[draft.conversation_id] = call
                call.add_done_callback(partial(self._ended, draft.conversation_id))
        return seconds

    def _ended(self, conversation_id: str, _: object) -> None:
        del self.calls[conversation_id]
        self._wake.set()

    def _age(self, draft: UnconfirmedDraft) -> float:
        return (self.clock.now_us() - draft.appended_at) / MICROSECONDS_PER_SECOND

    async def _handle(self, draft: UnconfirmedDraft, unsent: _Unsent) -> None:
        """Send one reply and record the outcome, or schedule the next attempt."""
        try:
            if unsent.outcome is None:
                unsent.outcome = await self._send(draft, unsent)
            if unsent.outcome is not None:
                await self.appender.change(draft.conversation_id, unsent.outcome)
                return
        except InvalidInput as error:  # what the sender returned cannot be kept
            unsent.failure = str(error)
            if unsent.outcome is not None:
                unsent.outcome = type(unsent.outcome)(message_id=draft.message_id)
        except Exception as error:  # whatever it was, the reply must not be forgotten
            unsent.failure = str(error) if isinstance(error, LetopisError) else describe_failure(error)
        unsent.failures += 1
        delay = SENDING_POLICY.delay(unsent.failures, uniform=self.uniform)
        if unsent.outcome is None:
            delay = min(delay, max(0.0, self.options.send_within - self._age(draft)))
        unsent.due = self.clock.monotonic() + delay
        logger.warning(
            "a reply is not %s yet, next attempt in %.1f s: %s",
            "sent" if unsent.outcome is None else "confirmed",
            delay,
            unsent.failure,
            extra=_context(draft),
        )

    async def _send(self, draft: UnconfirmedDraft, unsent: _Unsent) -> MessageSent | MessageFailed | None:
        """Send one reply and return what to record; ``None`` if it is to be tried again."""
        if self._age(draft) >= self.options.send_within:
            within = f"not sent within {self.options.send_within:g} s"
            return await self._give_up(draft, f"{within} {unsent.failure}".rstrip())
        current = await self.finder.find(draft.message_id, draft.conversation_id)
        if current is None or current.redacted or not current.on_path:
            return await self._give_up(draft, "no longer part of the conversation")
        reply = UnsentReply(
            conversation_id=draft.conversation_id,
            owner_id=draft.owner_id,
            message=current.message,
            appended_at=from_microseconds(draft.appended_at),
            idempotency_key=str(draft.event_id),
            attempt=unsent.failures + 1,
        )
        outcome = await call_with_timeout(self.sender, reply, seconds=CALL_TIMEOUT_SECONDS)
        if isinstance(outcome.exception, SendRefused):
            return await self._give_up(draft, str(outcome.exception))
        if outcome.done is not True:
            unsent.failure = outcome.error or "the sender did not end in time"
            return None
        logger.info("a reply that was never confirmed is sent", extra=_context(draft))
        if isinstance(outcome.value, MessageSent):
            return replace(outcome.value, message_id=draft.message_id)
        return MessageSent(message_id=draft.message_id, platform_ids=outcome.value)

    async def _give_up(self, draft: UnconfirmedDraft, reason: str) -> MessageFailed:
        logger.error("a reply is given up: %s", reason, extra=_context(draft))
        # Before it is recorded: if the process ends in between, the next one reports it again.
        if self.options.on_unconfirmed is not None:
            given_up = replace(await self.replies.describe(draft, abandoned=True), failure=reason)
            await self.replies.report(self.options.on_unconfirmed, given_up)
        return MessageFailed(message_id=draft.message_id, reason=reason)


def _context(draft: UnconfirmedDraft) -> dict[str, str]:
    return {
        "conversation_id": draft.conversation_id,
        "message_id": draft.message_id,
        "owner_id": draft.owner_id or "",
        "event_id": str(draft.event_id),
    }
