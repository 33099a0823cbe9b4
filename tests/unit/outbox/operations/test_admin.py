"""An event that a real store refuses: all else is delivered, and each verb brings it to an end."""

from collections.abc import Callable

import pytest

from letopis.outbox import OutboxFile
from letopis.outbox.alerting.monitor import AlertMonitor
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.operations.admin import OutboxAdmin
from letopis.outbox.operations.pending_events import Selection
from letopis.store import ConversationStore, Message
from letopis.store.model.codec import decode
from tests.support.relays import drained, figures, lane, relay_on, running, say, sql, until
from tests.support.sayings import change

OTHERS = 300  # so that two batches are under way
# How each store is made to refuse one text, as a real one may: by a rule of its own.
REFUSE = {
    "sqlite": "CREATE TRIGGER no BEFORE INSERT ON letopis_events WHEN NEW.data LIKE '%poison%'"
    " BEGIN SELECT RAISE(ABORT, 'no'); END",
    "postgresql": "ALTER TABLE letopis_events ADD CONSTRAINT no CHECK (data::text NOT LIKE '%poison%')",
}
ALLOW = {"sqlite": "DROP TRIGGER no", "postgresql": "ALTER TABLE letopis_events DROP CONSTRAINT no"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("verb", ["retry", "fix", "skip"])
async def test_all_others_are_delivered_and_each_verb_brings_the_refused_event_to_an_end(
    outbox: OutboxFile, kind: str, verb: str, new_store_url: Callable[[str], str]
) -> None:
    heard: list[tuple[str, str | None]] = []
    watch = AlertMonitor(
        outbox,
        on_stuck=lambda incident: heard.append(("stuck", incident.conversation_id)),
        on_recovered=lambda incident: heard.append(("recovered", incident.conversation_id)),
    )
    admin = OutboxAdmin(outbox)
    for number in range(OTHERS):
        await say(outbox, f"c{number}")
    await outbox.append(prepare("bad", [Message.user(text) for text in ("before", "poison", "after")], owner="42"))

    async def is_blocked() -> bool:
        counted = await figures(outbox)
        return (counted.pending, counted.lanes["blocked"]) == (2, 1)

    async def is_told() -> bool:
        await watch.observe_once()  # looking at users is paced by how long it took last
        return len(heard) > 1

    async with ConversationStore.open(new_store_url(kind), migrate=True) as store:
        await change(store, REFUSE[kind])
        async with running(relay_on(outbox, store)) as relay:
            await until(is_blocked)
            await watch.observe_once()
            assert relay.stats.delivered == OTHERS * 2 + 2
            assert ((await lane(outbox, "bad")).fault_class, (await lane(outbox, "bad")).delivered) == ("poison", 2)
            [refused] = await admin.pending(Selection(conversation_ids=("bad",), fronts=True))
            match verb:
                case "retry":
                    await change(store, ALLOW[kind])
                    assert await admin.retry(Selection(states=("blocked",))) == ["bad"]
                case "skip":
                    await admin.skip(refused.event_id, reason="nobody needs it")
                case _:
                    data, blocked = decode(refused.data), relay.stats.blocked
                    await admin.fix(refused.event_id, {**data, "metadata": {"k": "v"}}, reason="refused again")
                    await until(lambda: relay.stats.blocked == blocked + 1)
                    await until(is_blocked)
                    await admin.fix(refused.event_id, {**data, "content": "cured"}, reason="the word is not allowed")
            await drained(outbox)
            await until(is_told)
        await watch.observe_once()

        assert heard == [("stuck", "bad"), ("recovered", "bad")]
        second = {"retry": ["poison"], "fix": ["cured"], "skip": []}[verb]
        assert [message.message.text for message in await store.messages("bad")] == ["before", *second, "after"]
        events = (await store.events("bad")).items
        assert [(event.sequence, event.version) for event in events] == [(number, number) for number in range(1, 5)]
        assert (events[2].event_id == refused.event_id, events[2].type) == (
            (False, "event.skipped") if verb == "skip" else (True, "message.appended")
        )
    kept = await sql(outbox, "SELECT count(DISTINCT digest) FROM letopis_outbox_repairs")
    assert kept == [({"retry": 0, "fix": 2, "skip": 1}[verb],)]
