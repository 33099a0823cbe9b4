"""One poison event among a thousand conversations, on real stores: each verb brings it to an end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from letopis.outbox.alerting.incidents import IncidentKind
from letopis.outbox.alerting.monitor import AlertMonitor
from letopis.outbox.alerting.notifications import Incident
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.operations.admin import OutboxAdmin
from letopis.outbox.operations.pending_events import PendingEvent, Selection
from letopis.store.conversation_store import ConversationStore
from letopis.store.database.engines import create_store_engine
from letopis.store.model.codec import decode
from letopis.store.model.messages import Message
from tests.support.open_incidents import open_incidents
from tests.support.relays import drained, figures, lane, relay_on, running, say, sql, until

CONVERSATIONS = 1_000
BAD = "c500"
# How each store is made to refuse one text, as a real one may: by a rule of its own.
REFUSE = {
    "sqlite": "CREATE TRIGGER no BEFORE INSERT ON letopis_events WHEN NEW.data LIKE '%poison%'"
    " BEGIN SELECT RAISE(ABORT, 'no'); END",
    "postgresql": "ALTER TABLE letopis_events ADD CONSTRAINT no CHECK (data::text NOT LIKE '%poison%')",
}
ALLOW = {"sqlite": "DROP TRIGGER no", "postgresql": "ALTER TABLE letopis_events DROP CONSTRAINT no"}


@dataclass
class Town:
    """An outbox and its store, one poison event in it, and a bot that hears of incidents."""

    kind: str
    url: str
    outbox: OutboxFile
    store: ConversationStore
    heard: list[tuple[str, str | None]] = field(default_factory=list)

    async def on_stuck(self, incident: Incident) -> None:
        self.heard.append(("stuck", incident.conversation_id))

    async def on_recovered(self, incident: Incident) -> None:
        self.heard.append(("recovered", incident.conversation_id))

    async def on_store(self, statement: str) -> None:
        """Change the store behind the relay's back."""
        engine = create_store_engine(self.url, pool_size=1)
        async with engine.begin() as connection:
            await connection.execute(sa.text(statement))
        await engine.dispose()

    async def incidents(self) -> list[tuple[IncidentKind, str | None]]:
        return [(one.kind, one.conversation_id) for one in await self.outbox.read(open_incidents)]

    async def front(self) -> PendingEvent:
        [found] = await OutboxAdmin(self.outbox).pending(Selection(conversation_ids=(BAD,), fronts=True))
        return found

    async def texts(self) -> list[str]:
        return [str(one.message.text) for one in await self.store.messages(BAD)]


async def fill(outbox: OutboxFile) -> None:
    """A thousand conversations of one message; one of them has a poison message and two behind it."""
    for start in range(0, CONVERSATIONS, 250):
        await asyncio.gather(*(say(outbox, f"c{number}") for number in range(start, start + 250) if number != 500))
    texts = ("before", "poison", "after", "last")
    await outbox.append(
        prepare(BAD, [Message.user(text, id=f"m{place}") for place, text in enumerate(texts)], owner="42")
    )


@asynccontextmanager
async def blocked(kind: str, url: str, path: Path) -> AsyncIterator[tuple[Town, Any, AlertMonitor]]:
    """Have the poison blocked, everything else delivered, and the user told; the relay runs on."""
    outbox = await OutboxFile.open(path)
    async with ConversationStore.open(url, migrate=True) as store:
        town = Town(kind, url, outbox, store)
        await town.on_store(REFUSE[kind])
        await fill(outbox)
        relay = relay_on(outbox, store)
        watch = AlertMonitor(outbox, on_stuck=town.on_stuck, on_recovered=town.on_recovered)
        async with running(relay):
            await until(lambda: _is(outbox, "blocked", 1), patience=60)
            await until(lambda: _is(outbox, "ready", 0), patience=60)
            await watch.observe_once()
            yield town, relay, watch
    await outbox.close()


async def _is(outbox: OutboxFile, state: str, count: int) -> bool:
    return (await figures(outbox)).lanes[state] == count


async def _ended(town: Town, watch: AlertMonitor) -> None:
    """What ends each of the three: all is delivered, and the incident closes itself and says so once."""
    await until(lambda: _is(town.outbox, "blocked", 0))
    await drained(town.outbox)

    async def told() -> bool:
        await watch.observe_once()  # looking at users is paced by how long it took last
        return len(town.heard) > 1

    await until(told)
    await watch.observe_once()
    assert await town.incidents() == []
    assert [word for word, _ in town.heard] == ["stuck", "recovered"]
    assert (await lane(town.outbox, BAD)).state == "ready"


async def retry(town: Town) -> list[str]:
    await town.on_store(ALLOW[town.kind])
    assert await OutboxAdmin(town.outbox).retry(Selection(states=("blocked",))) == [BAD]
    return ["before", "poison", "after", "last"]


async def fix(town: Town) -> list[str]:
    old = await town.front()
    data = dict(decode(old.data))
    data["content"] = [{**data["content"][0], "text": "cured"}] if isinstance(data["content"], list) else "cured"
    await OutboxAdmin(town.outbox, by="ann").fix(old.event_id, data, reason="the word is not allowed")
    return ["before", "cured", "after", "last"]


async def skip(town: Town) -> list[str]:
    await OutboxAdmin(town.outbox, by="ann").skip((await town.front()).event_id, reason="nobody needs it")
    return ["before", "after", "last"]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("verb", [retry, fix, skip])
async def test_all_others_are_delivered_and_each_verb_brings_the_one_to_an_end(
    kind: str,
    verb: Callable[[Town], Awaitable[list[str]]],
    new_store_url: Callable[[str], str],
    tmp_path: Path,
) -> None:
    async with blocked(kind, new_store_url(kind), tmp_path / "bot.outbox.db") as (town, relay, watch):
        counted = await figures(town.outbox)
        assert (counted.pending, counted.lanes["blocked"]) == (3, 1)
        assert relay.stats.delivered == (CONVERSATIONS - 1) * 2 + 2
        found = await lane(town.outbox, BAD)
        assert (found.fault_class, found.delivered, found.head) == ("poison", 2, 5)
        assert await town.incidents() == [(IncidentKind.CONVERSATION_BLOCKED, BAD)]
        assert await town.texts() == ["before"]
        stuck = await town.front()

        expected = await verb(town)
        await _ended(town, watch)

        assert await town.texts() == expected
        events = (await town.store.events(BAD)).items
        assert [(one.sequence, one.version) for one in events] == [(number, number) for number in range(1, 6)]
        if verb is skip:
            tombstone = events[2]
            assert (tombstone.type, tombstone.data["reason"]) == ("event.skipped", "nobody needs it")
            assert tombstone.data["skipped_event_id"] == str(stuck.event_id)
            assert tombstone.data["digest"] == stuck.digest.hex()
        else:
            assert events[2].event_id == stuck.event_id


async def test_a_fix_that_is_refused_too_blocks_again_and_can_be_followed_by_another(
    new_store_url: Callable[[str], str], tmp_path: Path
) -> None:
    async with blocked("sqlite", new_store_url("sqlite"), tmp_path / "bot.outbox.db") as (town, relay, watch):
        old = await town.front()
        blocks = relay.stats.blocked
        data = {**decode(old.data), "metadata": {"more": "poison"}}
        await OutboxAdmin(town.outbox).fix(old.event_id, data, reason="try")
        await until(lambda: relay.stats.blocked == blocks + 1)
        await until(lambda: _is(town.outbox, "blocked", 1))
        assert await skip(town) == ["before", "after", "last"]
        await _ended(town, watch)

        kept = "SELECT count(DISTINCT digest) FROM letopis_outbox_repairs WHERE event_id = ?"
        assert await sql(town.outbox, kept, (old.event_id.bytes,)) == [(2,)]
