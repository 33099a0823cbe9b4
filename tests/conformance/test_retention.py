"""Content leaves by age, by count, with an archived conversation, by owner and by tag; nothing else is touched."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from letopis.ops.cli.retain import find_due
from letopis.outbox import History, Relay
from letopis.outbox.relay import content_retention
from letopis.outbox.relay.content_retention import append_trims, due_content, keep_places
from letopis.store import PINNED, ContentRetention, ConversationStore, Message, RetentionRule
from letopis.store.maintenance.retention import Place, RetentionStep, read_again
from tests.conformance.tables import on_sqlite, stored_text
from tests.conformance.test_trims import assert_agrees
from tests.support.sayings import finish_tasks, problems

DAYS_30 = ContentRetention(max_age_days=30)
START = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Calendar:
    """The clock of a bot and its store."""

    def __init__(self) -> None:
        self.day = 0.0

    def now(self) -> datetime:
        return START + timedelta(days=self.day)


@pytest.fixture
def calendar() -> Calendar:
    return Calendar()


Opened = Callable[..., AbstractAsyncContextManager[History]]


@pytest.fixture
def opened(store_url: str, tmp_path: Path, calendar: Calendar) -> Opened:
    """Open an outbox of a store whose clock is the calendar's; nothing is delivered by itself."""

    @asynccontextmanager
    async def open_(name: str = "bot") -> AsyncIterator[History]:
        async with (
            ConversationStore.open(store_url, now=calendar.now) as store,
            History(tmp_path / f"{name}.outbox.db", store=store, relay=False, watch=False, now=calendar.now) as history,
        ):
            yield history

    return open_


@pytest.fixture
async def bot(opened: Opened) -> AsyncIterator[History]:
    async with opened() as history:
        yield history


async def retain(history: History, content: ContentRetention, calendar: Calendar) -> int:
    """Let a relay deliver, take away what is due, and deliver that; return how many conversations it trimmed."""
    relay = Relay(history.outbox, history.store, retention=content, now=calendar.now)
    await relay.drain()
    await finish_tasks(history.store)
    return relay.stats.trimmed


async def say(history: History, calendar: Calendar, name: str, *days: float, owner: str = "42") -> None:
    """Append and deliver one message a day."""
    for day in days:
        calendar.day = day
        await history.append(name, Message.user(f"t0ken-{name}-{day:g}", id=f"{name}-{day:g}", tokens=1), owner=owner)
        await Relay(history.outbox, history.store, now=calendar.now).drain()


async def kept(history: History, name: str) -> list[str]:
    """Return the messages with content, after checking that each is as it was appended."""
    shown = [message for message in await history.store.messages(name) if not message.redacted]
    assert [message.text for message in shown] == [f"t0ken-{message.id}" for message in shown]
    return [message.id for message in shown]


async def test_old_content_leaves_and_nothing_younger_is_touched(bot: History, calendar: Calendar) -> None:
    await say(bot, calendar, "a", 0, 1, 29, 31)
    await say(bot, calendar, "b", 40)
    before = {name: (await bot.store.messages(name)).items for name in ("a", "b")}
    calendar.day = 30.5
    assert await retain(bot, DAYS_30, calendar) == 1
    assert (await bot.store.messages("a")).items[1:] == before["a"][1:]
    assert (await bot.store.messages("b")).items == before["b"]
    assert await kept(bot, "a") == ["a-1", "a-29", "a-31"]
    held = await stored_text(bot.store)
    assert "t0ken-a-0" not in held and "t0ken-a-1" in held
    calendar.day = 60.5
    assert await retain(bot, DAYS_30, calendar) == 1
    assert await kept(bot, "a") == ["a-31"]
    # What has left takes no further event with it, whatever time goes by.
    calendar.day = 200
    assert await retain(bot, DAYS_30, calendar) == 2
    calendar.day = 400
    assert await retain(bot, DAYS_30, calendar) == 0
    events = (await bot.store.events("a")).items
    assert [event.type for event in events].count("conversation.trimmed") == 3
    assert events[-1].data == {"upto": 5, "rule": "default", "sequence": 5}
    await assert_agrees(bot.store, "a", "b")


async def test_content_leaves_with_an_archived_conversation(bot: History, calendar: Calendar) -> None:
    content = ContentRetention(archived_max_age_days=10)
    for name in ("archived", "restored", "live"):
        await say(bot, calendar, name, 0)
    await bot.chat("archived").archive()
    await bot.chat("restored").archive()
    await retain(bot, content, calendar)
    calendar.day = 5
    await bot.chat("restored").restore()
    assert await retain(bot, content, calendar) == 0
    await say(bot, calendar, "archived", 9)
    calendar.day = 11
    assert await retain(bot, content, calendar) == 1
    assert await kept(bot, "archived") == ["archived-9"]  # said after it was archived
    assert await kept(bot, "restored") == ["restored-0"] and await kept(bot, "live") == ["live-0"]
    await assert_agrees(bot.store, "archived", "restored", "live")


@on_sqlite
async def test_the_first_rule_that_matches_counts_alone(bot: History, calendar: Calendar) -> None:
    content = ContentRetention(
        max_age_days=30,
        rules=(
            RetentionRule(tag="keep"),
            RetentionRule(tag="short", max_age_days=2),
            RetentionRule(owner="7", max_age_days=10),
        ),
    )
    for name, owner, tags in (
        ("plain", "42", ()),
        ("keep", "7", ("keep", "short")),
        ("short", "7", ("short",)),
        ("seven", "7", ()),
        ("pinned", "7", ("short", PINNED)),
    ):
        await say(bot, calendar, name, 0, owner=owner)
        if tags:
            await bot.chat(name).tag(*tags)
    left = {}
    for day in (1, 3, 11, 31):
        calendar.day = day
        await retain(bot, content, calendar)
        left[day] = [name for name in ("plain", "keep", "short", "seven", "pinned") if not await kept(bot, name)]
    assert left == {1: [], 3: ["short"], 11: ["short", "seven"], 31: ["plain", "short", "seven"]}
    rules = {
        event.data["rule"]
        for name in ("plain", "short", "seven")
        for event in await bot.store.events(name)
        if event.type == "conversation.trimmed"
    }
    assert rules == {"default", "tag short", "owner 7"}
    # A pin that is removed lets the rules have it, also when its events were looked at long ago.
    await bot.chat("pinned").tag(remove=[PINNED])
    await retain(bot, content, calendar)
    assert await kept(bot, "pinned") == []
    await bot.chat("keep").reset()
    await retain(bot, content, calendar)
    assert "t0ken" not in await stored_text(bot.store)


@on_sqlite
async def test_other_rules_look_at_everything_again(bot: History, calendar: Calendar) -> None:
    await say(bot, calendar, "a", 0, 20)
    calendar.day = 25
    assert await retain(bot, DAYS_30, calendar) == 0
    assert await retain(bot, ContentRetention(max_age_days=10), calendar) == 1
    assert await kept(bot, "a") == ["a-20"]


@on_sqlite
async def test_clocks_that_differ_take_nothing_young(bot: History, calendar: Calendar) -> None:
    """A younger event stands before an older one: the age of each counts, and the place only bounds what leaves."""
    await say(bot, calendar, "a", 0, 20, 1, 2)
    calendar.day = 30.5
    (due,) = await find_due(bot, DAYS_30)
    assert (due.messages, due.oldest_kept) == (1, START + timedelta(days=1))
    calendar.day = 35
    await retain(bot, DAYS_30, calendar)
    assert await kept(bot, "a") == ["a-20", "a-1", "a-2"]
    calendar.day = 51
    await retain(bot, DAYS_30, calendar)
    assert await kept(bot, "a") == []


@on_sqlite
async def test_a_fork_gives_back_what_it_inherits_when_it_is_old_itself(bot: History, calendar: Calendar) -> None:
    await say(bot, calendar, "a", 0)
    calendar.day = 20
    await bot.chat("a").fork("f")
    await Relay(bot.outbox, bot.store, now=calendar.now).drain()
    await say(bot, calendar, "f", 25)
    calendar.day = 31
    await retain(bot, DAYS_30, calendar)
    assert await kept(bot, "a") == [] and await kept(bot, "f") == ["a-0", "f-25"]
    calendar.day = 51
    await retain(bot, DAYS_30, calendar)
    assert await kept(bot, "f") == ["f-25"]
    assert "t0ken-a-0" not in await stored_text(bot.store)
    assert await problems(bot.store) == []


async def test_two_relays_at_once_are_one(opened: Opened, calendar: Calendar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("letopis.store.maintenance.retention.STEP_SECONDS", 60.0)
    async with opened("one") as one, opened("two") as two:
        for day in (0, 31):
            for number in range(20):
                await say(one if number % 2 else two, calendar, f"c{number}", day)
        calendar.day = 30.5
        # Both look from the same places on before either has kept its own.
        found = [
            await due_content(one.store, DAYS_30, {(0, 0): 10_000}, origin_id=bot.outbox.origin.origin_id)
            for bot in (one, two)
        ]
        assert [due.conversation_id for due in found[0].due] == [due.conversation_id for due in found[1].due]
        assert await append_trims(two.outbox, found[1].due) == 20
        assert (await retain(one, DAYS_30, calendar), await retain(two, DAYS_30, calendar)) == (20, 0)
        for number in range(20):
            assert await kept(one, f"c{number}") == [f"c{number}-31"]
        await assert_agrees(one.store, *(f"c{number}" for number in range(20)))


@on_sqlite
async def test_the_log_is_read_again_on_request(bot: History, calendar: Calendar) -> None:
    await say(bot, calendar, "a", 0)
    calendar.day = 31
    store, places = bot.store, dict[Place, int]()
    while (step := await due_content(store, DAYS_30, places, origin_id=bot.outbox.origin.origin_id)).more:
        await keep_places(store, DAYS_30, step)  # as if a hold kept it
        places |= step.moved
    assert await retain(bot, DAYS_30, calendar) == 0
    await bot.store.runtime.write(read_again)
    await keep_places(store, DAYS_30, replace(step, moved={(0, 0): 5}, began=2))  # of a step that was under way
    assert await retain(bot, DAYS_30, calendar) == 1
    assert await kept(bot, "a") == []


@pytest.mark.parametrize("kind", ["owner", "conversation"])
async def test_what_is_held_stays_until_the_hold_is_released(bot: History, calendar: Calendar, kind: Any) -> None:
    await say(bot, calendar, "a", 0)
    await say(bot, calendar, "b", 0, owner="43")
    subject = "42" if kind == "owner" else "a"
    await bot.store.erasures.hold(kind, subject, reason="a court asked")
    calendar.day = 31
    assert (await retain(bot, DAYS_30, calendar), await kept(bot, "a"), await kept(bot, "b")) == (1, ["a-0"], [])
    assert await bot.store.erasures.release(kind, subject)
    assert (await retain(bot, DAYS_30, calendar), await kept(bot, "a")) == (1, [])


async def test_what_an_author_on_hold_wrote_ends_what_is_due(bot: History, calendar: Calendar) -> None:
    await say(bot, calendar, "a", 0)
    await bot.append("a", Message.user("t0ken-evidence", id="evidence", author="44"))
    await say(bot, calendar, "a", 1)
    await bot.store.erasures.hold("owner", "44", reason="a court asked")
    calendar.day = 41
    assert (await retain(bot, DAYS_30, calendar), await kept(bot, "a")) == (1, ["evidence", "a-1"])
    assert await bot.store.erasures.release("owner", "44")
    assert (await retain(bot, DAYS_30, calendar), await kept(bot, "a")) == (1, [])


@pytest.mark.parametrize("how", ["trimmed", "redacted"])
async def test_a_hold_on_an_author_keeps_nothing_back_for_what_had_left(
    bot: History, calendar: Calendar, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    steps = 0

    async def counted(*args: Any, **options: Any) -> RetentionStep:
        nonlocal steps
        steps += 1
        assert steps < 20, "the same content is due again and again"
        return await due_content(*args, **options)

    await bot.append("a", Message.user("t0ken-evidence", id="evidence", author="44"), owner="42")
    await Relay(bot.outbox, bot.store, now=calendar.now).drain()
    await say(bot, calendar, "a", 20)
    calendar.day = 31
    if how == "trimmed":
        assert (await retain(bot, DAYS_30, calendar), await kept(bot, "a")) == (1, ["a-20"])
    else:
        await bot.chat("a").redact("evidence")
        await Relay(bot.outbox, bot.store, now=calendar.now).drain()
    await bot.store.erasures.hold("owner", "44", reason="a court asked")
    calendar.day = 51
    monkeypatch.setattr(content_retention, "due_content", counted)
    assert (await retain(bot, DAYS_30, calendar), await kept(bot, "a")) == (1, [])
    assert [event.metadata for event in (await bot.store.events("a")).items if event.metadata] == []


@on_sqlite
async def test_a_round_ends_amid_new_events(bot: History, calendar: Calendar, monkeypatch: pytest.MonkeyPatch) -> None:
    """New events are for the next round: they must not keep the older ones from being looked at."""
    await say(bot, calendar, "a", 0, 31)
    calls = 0

    async def and_one_more(*args: Any, **options: Any) -> RetentionStep:
        nonlocal calls
        calls += 1
        assert calls < 20, "the round does not end"
        await say(bot, calendar, f"new-{calls}", 31 + calls / 1_000)
        return await due_content(*args, **options)

    monkeypatch.setattr(content_retention, "due_content", and_one_more)
    assert await retain(bot, DAYS_30, calendar) == 1
    assert await kept(bot, "a") == ["a-31"]
