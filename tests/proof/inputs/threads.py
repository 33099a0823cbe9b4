"""Make the same calls on the blocking history, from a thread without an event loop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any
from uuid import UUID

from letopis.outbox import BlockingHistory, BlockingReceipt
from letopis.store import Message, RecordedEvent
from tests.proof.inputs.calls import ANSWERED, ASKED, OWNER, TABLES, World
from tests.proof.inputs.judging import Kept, Tally, found_in
from tests.proof.inputs.running import BLOCK_AT_ONCE, CONDITIONS, SAYS_MORE, TIMEOUT_SECONDS, plans


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Interrupt what takes longer; for the main thread."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def proved(url: str, folder: Path, *, many: int, random: Random) -> Tally:
    """Try the blocking classes on one store."""
    tally = Tally()
    with BlockingHistory(folder / "blocking.outbox.db", store=url, policy=BLOCK_AT_ONCE) as history:
        world = World("thread", 20 + 25 * many)
        for name in world.names():
            history.append(name, Message.user("words", id=ASKED), Message.assistant("more", id=ANSWERED), owner=OWNER)
        _calls(history, world, tally, many=many, random=random)
        if not history.drained(timeout=120):
            tally.blame(f"not everything is delivered: {history.status().lanes}")
        _compare(history, tally)
    return tally


def _calls(history: BlockingHistory, world: World, tally: Tally, *, many: int, random: Random) -> None:
    invoke: Mapping[str, Callable[[str, dict[str, Any]], Any]] = {
        "BlockingHistory": lambda method, given: _history(history, world, method, given),
        "BlockingChat": lambda method, given: _method(history.chat(given.pop("conversation_id")), method, given),
        "BlockingAllRecords": lambda method, given: _method(history.records, method, given),
        "BlockingReply": lambda method, given: _reply(history, world, method, given),
        "BlockingReceipt": lambda method, given: _method(
            history.append(world.lasting, Message.user("words")), method, given
        ),
        "BlockingTransaction": lambda method, given: _transaction(history, method, given),
    }
    for cls, call in invoke.items():
        for method, parameter, some in plans(cls, many=many, random=random):
            for hostile in some:
                label = f"{cls}.{method}({parameter}={hostile.name})"
                given = TABLES[cls][method](world)
                given[parameter] = hostile.value
                tally.tried += 1
                before = _said(history)
                try:
                    with patience(TIMEOUT_SECONDS):
                        outcome = call(method, given)
                except TimeoutError:
                    tally.blame(f"{label}: hangs")
                except Exception as error:  # whatever comes is what is looked for
                    tally.refusal(label, error)
                    if _said(history) != before and (cls.removeprefix("Blocking"), method) not in SAYS_MORE:
                        tally.blame(f"{label}: refused, and something is in the outbox all the same")
                else:
                    tally.accepted += 1
                    if isinstance(outcome, BlockingReceipt) and parameter not in CONDITIONS:
                        tally.kept.append(Kept(label, hostile.value, outcome.conversation_id, outcome.event_ids))
            try:
                call(method, TABLES[cls][method](world))
            except Exception as error:  # whatever comes is what is looked for
                tally.blame(f"{cls}.{method}: cannot be used after hostile {parameter}: {type(error).__name__} {error}")


def _said(history: BlockingHistory) -> int:
    status = history.status()
    return status.pending + status.delivered


def _compare(history: BlockingHistory, tally: Tally) -> None:
    status = history.status()
    if any(status.lanes[state] for state in ("blocked", "retrying")):
        tally.blame(f"blocked at delivery: {status.lanes}")
    for conversation_id in {one.conversation_id for one in tally.kept}:
        held: dict[UUID, RecordedEvent] = {}
        place: int | str | None = 0
        while place is not None:
            page = history.chat(conversation_id).events(after=place, limit=500)
            held.update({event.event_id: event for event in page if event.version is not None})
            place = page.next
        for one in tally.kept:
            if one.conversation_id != conversation_id:
                continue
            there = [held[event_id] for event_id in one.event_ids if event_id in held]
            tally.compared += 1
            if len(there) != len(one.event_ids):
                tally.blame(f"{one.label}: accepted, and not all of it is in the store")
            elif not found_in(one.value, there) and any(event.digest for event in there):
                tally.blame(f"{one.label}: accepted, and not found equal in the store")


def _method(subject: Any, method: str, given: dict[str, Any]) -> Any:
    more = given.pop("more", None)
    function = getattr(subject, method)
    if more is not None:
        first = [given.pop(name) for name in ("conversation_id", "what", "message_id") if name in given]
        return function(*first, more, **given)
    return function(**given)


def _history(history: BlockingHistory, world: World, method: str, given: dict[str, Any]) -> Any:
    if method == "transaction":
        with history.transaction() as transaction:
            return transaction.append(world.lasting, Message.user("words"))
    if method == "reply":
        with history.reply(**given) as reply:
            reply.add("words")
            receipt = reply.finish()
        return None if "every" in given else receipt
    return _method(history, method, given)


def _reply(history: BlockingHistory, world: World, method: str, given: dict[str, Any]) -> Any:
    with history.reply(world.lasting, every=None) as reply:
        if method == "add":
            reply.add(**given)
            return reply.finish()
        reply.add("words")
        if method == "finish":
            return reply.finish(**given)
        reply.finish()
        return _method(reply, method, given)


def _transaction(history: BlockingHistory, method: str, given: dict[str, Any]) -> Any:
    with history.transaction() as transaction:
        return _method(transaction, method, given)
