"""Draw policies and conversations, have the clock jump, and compare a dry run, the relay and the rules."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from letopis import PINNED, ContentRetention, ConversationStore, History, Message, RecordedMessage, Relay, RetentionRule
from letopis.ops.cli.retain import find_due
from tests.proof.harness import NO_DISK_BOUND, Experiment, Setting, Tally, migrated
from tests.support.sayings import finish_tasks, problems

POLICIES: Final = 100  # on each kind of store; 300 in all
POLICIES_A_STORE: Final = 5
ROUNDS: Final = 2
"""Rounds by one policy: the second begins where the first has read to."""
CHATS: Final = ("tea", "cocoa", "group", "hello")
OWNERS: Final = ("ann", "ben")
TAGS: Final = ("vip", "trial")
AGES: Final = (0.5, 3.0, 10.0, 30.0)
JUMPS: Final = (0.0, 0.01, 0.4, 2.0, 7.0, -0.3, -4.0)
"""Days by which the clock goes on or back between two acts: bots on several machines, and clocks that are corrected."""
START: Final = datetime(2026, 1, 1, tzinfo=UTC)
MOST: Final = 500


@dataclass(slots=True)
class World:
    """A bot and its store under one clock.

    :ivar latest: the day of the latest event, in the order of the days.
    :ivar behind: the latest time that was recorded before each message, by its id: what an age is counted from, since
        an event recorded by a clock that was ahead holds up those behind it in the log.
    """

    history: History
    chance: random.Random
    day: float = 0.0
    latest: float = 0.0
    appended: int = 0
    behind: dict[str, datetime] = field(default_factory=dict)

    def now(self) -> datetime:
        return START + timedelta(days=self.day)

    async def live(self, acts: int) -> None:
        for _ in range(acts):
            self.day = max(0.0, self.day + self.chance.choice(JUMPS))
            await self._act(self.chance.choice(CHATS))
            if self.chance.random() < 0.3:
                await self.deliver()
        await self.deliver()

    async def deliver(self, retention: ContentRetention | None = None) -> None:
        self.latest = max(self.latest, self.day)
        for number in range(len(self.behind), self.appended):
            self.behind[f"m{number + 1}"] = START + timedelta(days=self.latest)
        await Relay(self.history.outbox, self.history.store, retention=retention, now=self.now).drain()
        await finish_tasks(self.history.store)

    async def _act(self, name: str) -> None:
        chat, chance = self.history.chat(name), self.chance
        if await chat.conversation() is None or chance.random() < 0.7:
            self.appended += 1
            text, message_id = f"t0ken {self.appended}", f"m{self.appended}"
            message = Message.user(text, id=message_id, author=chance.choice((None, *OWNERS)))
            await self.history.append(name, message, owner=OWNERS[CHATS.index(name) % 2])
            return
        match chance.randrange(6):
            case 0:
                await chat.archive()
            case 1:
                await chat.restore()
            case 2:
                await chat.tag(chance.choice((PINNED, *TAGS)))
            case 3:
                await chat.tag(remove=(PINNED, *TAGS))
            case 4:
                await chat.undo()
            case _:
                await self._hold(name)

    async def _hold(self, name: str) -> None:
        register, subject = self.history.store.erasures, self.chance.choice((("conversation", name), ("owner", "ann")))
        if not await register.release(*subject):  # type: ignore[arg-type]
            await register.hold(*subject, reason="asked")  # type: ignore[arg-type]


def policy(chance: random.Random) -> ContentRetention:
    """Return a random policy with at least one limit."""

    def limits() -> dict[str, Any]:
        drawn = {
            "max_age_days": chance.choice(AGES),
            "max_messages": chance.randint(1, 6),
            "archived_max_age_days": chance.choice(AGES),
        }
        return {name: value for name, value in drawn.items() if chance.random() < 0.5}

    rules = [RetentionRule(owner=owner, **limits()) for owner in OWNERS if chance.random() < 0.3]
    rules += [RetentionRule(tag=tag, **limits()) for tag in TAGS if chance.random() < 0.3]
    chance.shuffle(rules)
    return ContentRetention(**(limits() or {"max_age_days": 10.0}), rules=tuple(rules))


async def compare(setting: Setting, *, days_between: float = 0.0) -> Tally:
    """Compare dry runs with what the relay takes; with days in between they have to differ."""
    tally, chance = Tally(), random.Random(setting.seed)
    for number in range(-(-setting.many(POLICIES, 10) // POLICIES_A_STORE)):
        with setting.apart(str(number)) as place:
            await migrated(place.url)
            async with opened(place, chance) as world:
                for _ in range(POLICIES_A_STORE):
                    retention = policy(chance)
                    tally.count += 1
                    for _ in range(ROUNDS):
                        await world.live(chance.randint(4, 14))
                        if chance.random() < 0.7:
                            world.day = world.latest
                        await round_of(world, retention, tally, days_between=days_between)
                tally.blame(await problems(world.history.store), where=f"store {number}")
    tally.notes = tally.told()
    return tally


@asynccontextmanager
async def opened(place: Setting, chance: random.Random) -> AsyncIterator[World]:
    world: World | None = None

    def now() -> datetime:
        return START if world is None else world.now()

    async with (
        ConversationStore.open(place.url, now=now) as store,
        History(
            place.folder / "bot.outbox.db", store=store, relay=False, watch=False, now=now, bounds=NO_DISK_BOUND
        ) as history,
    ):
        world = World(history, chance)
        yield world


async def round_of(world: World, retention: ContentRetention, tally: Tally, *, days_between: float) -> None:
    store, before = world.history.store, {name: await own_messages(world.history, name) for name in CHATS}
    states = {name: await store.conversation(name) for name in CHATS}
    held = {hold.subject for hold in await store.erasures.holds()}
    named = {due.conversation_id: (due.messages, due.oldest_kept) for due in await find_due(world.history, retention)}
    world.day += days_between
    await world.deliver(retention)
    where = f"{retention} on day {world.day:g}"
    for name, messages in before.items():
        after = await own_messages(world.history, name)
        gone = [message for message, now in zip(messages, after, strict=True) if now.redacted and not message.redacted]
        kept = [message.recorded_at for message in messages if message not in gone and not message.redacted]
        tally.figures += Counter({"messages gone": len(gone), "conversations named": name in named})
        count, oldest = named.get(name, (0, None))
        tally.require(len(gone) == count, f"{name}: {len(gone)} messages are gone, the dry run named {count}: {where}")
        if name in named and gone and oldest is not None and kept:
            tally.require(oldest <= min(kept), f"{name}: the oldest kept is {min(kept)}, not {oldest}: {where}")
        if (state := states[name]) is None:
            continue
        rule = retention.rule_for(state.owner_id, state.tags)
        if rule is None or held & {name, state.owner_id}:
            tally.require(not gone, f"{name}: {len(gone)} messages are gone that every rule keeps: {where}")
            continue
        tally.require(
            not held.intersection(message.message.author for message in gone),
            f"{name}: a held author's is gone: {where}",
        )
        wrong = [message.id for message in gone if not is_due(message, messages, rule, world.now(), state.state)]
        tally.require(not wrong, f"{name}: {wrong} are gone that no limit takes: {where}")
        # By its count, too, nothing leaves that is recorded in the future, nor what stands behind it.
        if not held and world.day >= world.latest:
            due = overdue(messages, rule, world.now(), world.behind)
            left = [message.id for message in due if message not in gone]
            tally.require(not left, f"{name}: {left} are left that a limit takes: {where}")


async def own_messages(history: History, name: str) -> Sequence[RecordedMessage]:
    return (await history.store.messages(name, last=MOST)).items


def is_due(
    message: RecordedMessage, messages: Sequence[RecordedMessage], rule: RetentionRule, now: datetime, state: str
) -> bool:
    """Return True if a limit takes a message, however it looks for it."""
    recorded_at = message.recorded_at or now
    old = rule.max_age is not None and (now - recorded_at).total_seconds() >= rule.max_age
    many = rule.max_messages is not None and len(messages) - messages.index(message) > rule.max_messages
    return old or many or (rule.archived_max_age is not None and state == "archived")


def overdue(
    messages: Sequence[RecordedMessage], rule: RetentionRule, now: datetime, behind: Mapping[str, datetime]
) -> list[RecordedMessage]:
    """Return what has to leave: what is beyond the count, or older than the age with all that came before it."""
    due = []
    for index, message in enumerate(messages):
        many = rule.max_messages is not None and len(messages) - index > rule.max_messages
        if message.redacted or many:
            due += [] if message.redacted else [message]
        else:
            break
    for message in messages:
        if rule.max_age is None or (now - behind[message.id]).total_seconds() < rule.max_age:
            break
        due += [] if message.redacted or message in due else [message]
    return due


WHAT: Final = "random policies, tags, archives and holds under a clock that jumps: a dry run names what goes"
TABLE: Final = (
    Experiment(WHAT, compare, "policies", POLICIES),
    Experiment(
        "the same, with forty days between the dry run and the relay",
        partial(compare, days_between=40.0),
        "policies",
        on=("sqlite",),
        control=True,
    ),
)
