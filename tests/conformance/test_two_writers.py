"""Two outboxes write one conversation: free appends both arrive; of two answers to one read, one wins, visibly."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from letopis import History, Page, RecordedMessage
from letopis.ops.new_origin import assign_new_origin
from letopis.outbox.event_log.append_encoding import After, prepare
from letopis.store import ConversationStore, Message, MessageEdited, ReactionAdded, Seen
from letopis.store.model.event_types import (
    Body,
    ConversationDeleted,
    ConversationRenamed,
    ConversationRewound,
    MessageRedacted,
)
from letopis.store.rules.preconditions import SUPERSEDED_KEY, Conflict
from letopis.store.testing.outbox import Outbox, assert_no_gaps
from letopis.store.testing.redaction import assert_is_the_fold
from tests.conformance.tables import on_sqlite
from tests.conformance.talk import path
from tests.support.relays import deliver_all
from tests.support.sayings import Bots, new_outbox, present, send

CHAT = "chat-1"


# --- Two outbox files, their relays running ------------------------------------------------------------------------


@pytest.fixture
async def pair(tmp_path: Path, store_url: str) -> AsyncIterator[tuple[History, History]]:
    async with (
        History(tmp_path / "one.outbox.db", store=store_url) as one,
        History(tmp_path / "two.outbox.db", store=store_url) as two,
    ):
        yield one, two


async def drained(*histories: History) -> None:
    for history in histories:
        assert await history.drained(timeout=30)


def order(page: Page[RecordedMessage]) -> list[tuple[str, int | None, bool, bool]]:
    return [(one.id, one.version, one.on_path, one.superseded) for one in page]


async def test_free_appends_arrive_and_strict_turns_conflict_exactly_once(pair: Bots) -> None:
    one, two = pair
    await one.append(CHAT, Message.user("what?", id="q"))
    await drained(one)

    async def speak(history: History, name: str) -> None:
        for number in range(20):
            await history.append(CHAT, Message.user(f"{name} {number}", id=f"{name}-{number}"))

    await asyncio.gather(speak(one, "a"), speak(two, "b"))
    await drained(one, two)
    both = await one.messages(CHAT)
    assert len(both) == 41
    assert order(both) == order(await two.messages(CHAT))

    pages = [await history.messages(CHAT) for history in pair]
    receipts = await asyncio.gather(
        *(
            history.append(CHAT, Message.assistant("so", id=f"turn-{name}"), expected=page)
            for history, page, name in zip(pair, pages, "ab", strict=True)
        )
    )
    lost = [await receipt.superseded(timeout=30) for receipt in receipts]
    assert sorted(lost) == [False, True]
    assert [await receipt.saved(timeout=60) for receipt in receipts] == [not late for late in lost]
    loser = pair[lost.index(True)]

    # The lane continues, and a writer that reads again is not late any more.
    again = await loser.append(CHAT, Message.assistant("now", id="again"), expected=await loser.messages(CHAT))
    free = await loser.append(CHAT, ReactionAdded(message_id="q", key="like"))
    assert (await again.superseded(timeout=30), await free.saved(timeout=30)) == (False, True)

    winner, late = f"turn-{'ab'[lost.index(False)]}", f"turn-{'ab'[lost.index(True)]}"
    for _ in range(3):
        for history in pair:
            shown = await path(history)
            assert shown[-2:] == [winner, "again"] and late not in shown
            every = await history.messages(CHAT, every=True)
            assert order(every) == order(await one.messages(CHAT, every=True))
            [aside] = [message for message in every if message.superseded]
            assert (aside.id, aside.text, aside.on_path) == (late, "so", False)
    assert await one.chat(CHAT).conversation() == await two.chat(CHAT).conversation()


# --- One file at a time, delivered by hand --------------------------------------------------------------------------


def turn(outbox: Outbox, *what: Message | Body, expected: After | None = None, after: After | None = None) -> list[int]:
    """Append with a condition to the memory of an outbox, unchecked; return the sequences."""
    events = prepare(CHAT, what, expected=expected, after=after).events
    first = len(outbox.lanes.get(CHAT, ())) + 1
    outbox.append_encoded(CHAT, events)
    return list(range(first, first + len(events)))


async def seen_of(store: ConversationStore, outbox: Outbox) -> Seen:
    found = await store.conversation(CHAT)
    return Seen(sequence=len(outbox.lanes.get(CHAT, ())), version=found.version if found else 0)


Rivals = tuple[Outbox, Outbox]


@pytest.fixture
async def rivals(store: ConversationStore) -> Rivals:
    one, two = Outbox("one"), Outbox("two")
    await send(store, one, CHAT, Message.user("what?", id="q"))
    await send(store, two, CHAT, ConversationRenamed(title="Tea"))
    return one, two


async def overtaken(store: ConversationStore, one: Outbox, two: Outbox) -> Seen:
    """Have the second speak after the first has read; return what the first saw."""
    seen = await seen_of(store, one)
    await send(store, two, CHAT, Message.user("and?"))
    return seen


async def verdicts(store: ConversationStore, outbox: Outbox, first: int, last: int) -> dict[int, Conflict]:
    [applied] = (await store.apply(outbox.origin, [outbox.batch(CHAT, first, last)])).applied
    return dict(applied.superseded)


@on_sqlite
@pytest.mark.parametrize(
    ("split", "rival_at"), [((3,), 0), ((1, 2), 0), ((2, 1), 1), ((1, 1, 1), 0), ((1, 1, 1), 1), ((1, 1, 1), 2)]
)
async def test_turn_stays_whole(store: ConversationStore, rivals: Rivals, split: Sequence[int], rival_at: int) -> None:
    """``rival_at``: before which part the other outbox speaks."""
    one, two = rivals
    sequences = turn(
        one,
        Message.assistant("call", id="call"),
        Message.tool("result", id="result"),
        Message.assistant("so", id="so"),
        after=await seen_of(store, one),
    )
    found: dict[int, Conflict] = {}
    start = sequences[0]
    for place, size in enumerate(split):
        if place == rival_at:
            await send(store, two, CHAT, Message.user("and?", id="rival"))
        found |= await verdicts(store, one, start, start + size - 1)
        start += size

    lost = rival_at == 0
    assert sorted(found) == (sequences if lost else [])
    shown = [message.id for message in await store.messages(CHAT) if message.id != "rival"]
    assert shown == (["q"] if lost else ["q", "call", "result", "so"])
    await assert_no_gaps(store)
    await assert_is_the_fold(store)


async def test_a_verdict_is_kept_with_its_event_and_given_again(store: ConversationStore, rivals: Rivals) -> None:
    one, two = rivals
    seen = await overtaken(store, one, two)
    turn(one, Message.assistant("late", tokens=7), Message.tool("late too"), after=seen)
    first = await verdicts(store, one, 2, 3)
    assert set(first) == {2, 3}
    *_, event, _ = await store.events(CHAT)
    assert event.metadata[SUPERSEDED_KEY] == {"expected": seen.version, "actual": (seen.version or 0) + 1}
    assert event.digest == one.lanes[CHAT][1].digest
    conversation = present(await store.conversation(CHAT))
    assert (conversation.message_count, conversation.tokens) == (2, 7)
    await send(store, two, CHAT, Message.user("and again?"))
    assert await verdicts(store, one, 2, 3) == await verdicts(store, one, 1, 3) == first
    assert await verdicts(store, one, 3, 3) == {3: first[3]}
    other = Outbox("copy of one")  # the same events by another way
    other.append_encoded(CHAT, one.lanes[CHAT])
    [applied] = (await other.deliver(store)).applied
    assert dict(applied.superseded) == first
    await assert_no_gaps(store)


LATE: list[Body] = [
    ConversationRewound(),
    ConversationRewound(to_message_id="q"),
    MessageEdited(message_id="q", content="changed"),
    MessageRedacted(message_id="q"),
    ConversationRenamed(title="late"),
    ReactionAdded(message_id="q", key="late"),
    ConversationDeleted(),
]


@on_sqlite
@pytest.mark.parametrize("late", LATE, ids=lambda body: body.type)
async def test_what_is_put_aside_has_no_effect(store: ConversationStore, rivals: Rivals, late: Body) -> None:
    one, two = rivals
    seen = await overtaken(store, one, two)
    before = await store.messages(CHAT, every=True), present(await store.conversation(CHAT))
    turn(one, late, expected=seen)
    assert set(await verdicts(store, one, 2, 2)) == {2}
    conversation = present(await store.conversation(CHAT))
    changed = conversation.with_changes(version=before[1].version, updated_at=before[1].updated_at)
    assert (await store.messages(CHAT, every=True), changed) == before
    await assert_is_the_fold(store)


async def test_lane_that_counts_more_than_is_stored_hides_no_rival(store: ConversationStore, rivals: Rivals) -> None:
    """The same event twice in a lane is stored once: then the lane's head says nothing of how many others there are."""
    one, _ = rivals
    one.append_encoded(CHAT, [one.lanes[CHAT][0]])
    await one.deliver(store)
    seen = Seen(sequence=2, version=1)  # what it had read before the other spoke
    turn(one, Message.assistant("late"), expected=seen)
    assert set(await verdicts(store, one, 3, 3)) == {3}


@pytest.mark.parametrize("said", range(3))
async def test_turns_applied_at_once_have_one_winner(store: ConversationStore, said: int) -> None:
    """However many of them have said something before: even the first words of a conversation have one winner."""
    crowd = [Outbox(f"bot {n}") for n in range(5)]
    for outbox in crowd[:said]:
        await send(store, outbox, CHAT, Message.user("before"))
    for outbox in crowd:
        turn(outbox, Message.assistant(outbox.origin.name), expected=Seen(sequence=99, version=said))

    results = await asyncio.gather(*(store.apply(outbox.origin, outbox.pending()) for outbox in crowd))
    lost = [len(applied.superseded) for result in results for applied in result.applied]
    assert sorted(lost) == [0, 1, 1, 1, 1]
    assert (len(await store.messages(CHAT)), len(await store.messages(CHAT, every=True))) == (said + 1, said + 5)
    await assert_no_gaps(store)
    await assert_is_the_fold(store)


# --- What a bot sees of it -------------------------------------------------------------------------------------------


async def a_lost_turn(bot: History, store: ConversationStore) -> Any:
    """Have the bot lose a turn of two messages; return the receipt."""
    await bot.append(CHAT, Message.user("what?", id="q"))
    await deliver_all(bot)
    page = await bot.messages(CHAT)
    await new_outbox(store, CHAT, Message.user("and?", id="rival"), name="rival")
    return await bot.append(CHAT, Message.assistant("late", id="l-1"), Message.tool("later", id="l-2"), after=page)


@on_sqlite
async def test_a_copy_that_lives_on_keeps_its_conditions(tmp_path: Path, store: ConversationStore) -> None:
    file = tmp_path / "bot.outbox.db"
    async with History(file, store=store, relay=False) as bot:
        await a_lost_turn(bot, store)
        await deliver_all(bot)
        page = await bot.messages(CHAT)
        fresh = await bot.append(CHAT, Message.assistant("so", id="so"), after=page)
        # As many as were delivered: numbered again, they must not be taken for those that lost.
        more = [Message.tool(str(number), id=f"more-{number}") for number in range(4)]
        await bot.append(CHAT, *more, after=fresh)
    await assign_new_origin(file)
    async with History(file, store=store, relay=False) as reborn:
        expected = ["q", "rival", "so", *(message.id for message in more)]
        assert await path(reborn) == expected
        await deliver_all(reborn)
        assert await path(reborn) == expected
    await assert_no_gaps(store)
