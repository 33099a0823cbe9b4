"""What an operator can do about stuck events, on an open transaction of the outbox file."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from letopis.outbox import History
from letopis.outbox.alerting.incident_table import read_observation
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.outbox.operations import repair
from letopis.outbox.operations.admin import OutboxAdmin
from letopis.outbox.operations.pending_events import PendingEvent, Repair, Selection, list_pending, list_repairs
from letopis.outbox.operations.repair import NotRepairable, skip_missing
from letopis.outbox.operations.status import read_status
from letopis.outbox.relay.relay import Relay
from letopis.store.database.faults import StoreFault
from letopis.store.errors import InvalidInput
from letopis.store.model.codec import Limits, decode, digest_of
from letopis.store.model.event_types import ConversationStarted, MessageRedacted
from letopis.store.model.events import utc_now
from letopis.store.model.large_content import LARGE_BYTES
from letopis.store.model.messages import Message
from letopis.store.rules.apply_plan import LaneBatch
from tests.support.relays import POISON, ToldStore, drained, lane, relay_on, running, say, sql, until


async def pending(outbox: OutboxFile, limit: int = 100, **chosen: Any) -> list[PendingEvent]:
    return await outbox.read(partial(list_pending, selection=Selection(**chosen), limit=limit))


async def front(outbox: OutboxFile, conversation_id: str) -> PendingEvent:
    [found] = await pending(outbox, conversation_ids=(conversation_id,), fronts=True)
    return found


async def done_to(outbox: OutboxFile, entry: PendingEvent) -> list[Repair]:
    return await outbox.read(partial(list_repairs, event=entry))


async def stick(outbox: OutboxFile, conversation_id: str, state: str = "blocked", fault_class: str = "poison") -> None:
    blocked = "state = ?, attempts = 4, due_at = 77, fault_class = ?, fault = 'no'"
    statement = f"UPDATE letopis_outbox_lanes SET {blocked} WHERE conversation_id = ?"
    await sql(outbox, statement, (state, fault_class, conversation_id))


async def stuck(outbox: OutboxFile, conversation_id: str = "a", count: int = 1, **said: Any) -> PendingEvent:
    """Append to a conversation whose lane is blocked; return what is at its front."""
    await say(outbox, conversation_id, count, **said)
    await stick(outbox, conversation_id)
    return await front(outbox, conversation_id)


def true_digest(entry: PendingEvent) -> bytes:
    return digest_of("a", entry.type, entry.schema_version, entry.data, entry.metadata, entry.salt or b"")


async def incarnation(outbox: OutboxFile) -> int:
    return int((await sql(outbox, "SELECT incarnation FROM letopis_outbox_relay"))[0][0])


class TestEntries:
    """What is chosen."""

    async def test_all_that_is_pending_comes_by_conversation_and_sequence(self, outbox: OutboxFile) -> None:
        await say(outbox, "b", 2)
        await say(outbox, "a", 1)
        found = await pending(outbox)
        places = [("a", 1, True, 1), ("a", 2, False, 0), ("b", 1, True, 2), ("b", 2, False, 1), ("b", 3, False, 0)]
        assert [(one.conversation_id, one.sequence, one.front, one.behind) for one in found] == places
        assert found[1].size == len(found[1].data.encode())
        pages, after = list[PendingEvent](), ("", 0)
        while page := await outbox.read(partial(list_pending, selection=Selection(), limit=2, after=after)):
            pages += page
            after = (page[-1].conversation_id, page[-1].sequence)
        assert pages == found

    async def test_what_is_said_must_all_hold(self, outbox: OutboxFile) -> None:
        for name in ("a", "b", "c"):
            await say(outbox, name, 1)
        await stick(outbox, "a")
        await stick(outbox, "b", fault_class="diverged")
        event_id = (await front(outbox, "b")).event_id
        for chosen, expected in (
            ({"states": ("blocked",)}, [("a", 1), ("a", 2), ("b", 1), ("b", 2)]),
            ({"fault_classes": ("diverged",)}, [("b", 1), ("b", 2)]),
            ({"states": ("ready",)}, [("c", 1), ("c", 2)]),
            ({"event_ids": (event_id,)}, [("b", 1)]),
            ({"event_ids": (event_id,), "conversation_ids": ("a",)}, []),
            ({"states": ("blocked",), "fronts": True}, [("a", 1), ("b", 1)]),
        ):
            found = await pending(outbox, **chosen)
            assert [(one.conversation_id, one.sequence) for one in found] == expected, chosen

    def test_a_state_that_is_none_is_refused(self) -> None:
        with pytest.raises(InvalidInput, match="ready, retrying"):
            Selection(states=("stuck",))


class TestLanes:
    """retry, pause and resume."""

    async def test_retry_forgets_what_was_charged(self, outbox: OutboxFile) -> None:
        for name, state in (("a", "blocked"), ("b", "retrying"), ("c", "ready"), ("d", "paused")):
            await say(outbox, name)
            await stick(outbox, name, state)

        assert await OutboxAdmin(outbox).retry(Selection()) == ["a", "b"]
        assert [(await lane(outbox, one)).state for one in "abcd"] == ["ready", "ready", "ready", "paused"]
        found = await lane(outbox, "a")
        assert (found.attempts, found.due_at_us, found.fault_class, found.fault) == (0, 0, None, None)
        await stick(outbox, "a")
        chosen = Selection(event_ids=((await stuck(outbox, "e")).event_id,))
        assert await OutboxAdmin(outbox).retry(chosen) == ["e"], "an event means its conversation"

    async def test_a_paused_conversation_goes_on_where_it_was(self, outbox: OutboxFile) -> None:
        """A blocked one is not paused: its fault, and that it waits for an operator, would be hidden."""
        admin, chosen = OutboxAdmin(outbox), Selection(conversation_ids=("a", "b", "blocked"))
        await say(outbox, "a")
        await sql(outbox, "UPDATE letopis_outbox_lanes SET delivered = head")
        await say(outbox, "b")
        await stick(outbox, "b", "retrying")
        await stuck(outbox, "blocked")

        assert [await admin.pause(chosen) for _ in range(2)] == [["a", "b"], []]
        assert (await lane(outbox, "b")).fault == "no"
        assert await admin.resume(Selection()) == ["a", "b"]
        assert [(await lane(outbox, one)).state for one in "ab"] == ["ready", "retrying"]
        assert (await lane(outbox, "b")).due_at_us == 0


class TestHold:
    """The whole relay."""

    async def test_nothing_is_delivered_while_it_is_held(self, outbox: OutboxFile) -> None:
        store = ToldStore()
        await OutboxAdmin(outbox, by="ann").pause_relay(reason=" the store moves ")
        await say(outbox, "a")
        assert await relay_on(outbox, store).drain() == 0
        found = await outbox.read(lambda connection: read_status(connection, now_us=9).relay)
        await outbox.write(partial(repair.pause_relay, now_us=9, reason="still"))
        again = await outbox.read(lambda connection: read_status(connection, now_us=9).relay)
        assert found.paused_since == again.paused_since is not None
        assert (found.pause_reason, again.pause_reason) == ("the store moves", "still")
        assert [await OutboxAdmin(outbox).resume_relay() for _ in range(2)] == [True, False]
        assert await relay_on(outbox, store).drain() == 2

    async def test_a_running_relay_obeys_at_once(self, outbox: OutboxFile) -> None:
        store = ToldStore()
        async with running(relay_on(outbox, store)):
            await say(outbox, "a")
            await until(lambda: store.held("a") == 2)
            await OutboxAdmin(outbox).pause_relay()
            await say(outbox, "b")
            await asyncio.sleep(0.3)
            assert store.held("b") == 0
            await OutboxAdmin(outbox).resume_relay()
            await until(lambda: store.held("b") == 2)

    async def test_what_waits_behind_it_is_told_to_nobody(self, outbox: OutboxFile) -> None:
        await say(outbox, "a")
        seen = partial(read_observation, now=utc_now(), late_before=10)
        before = await outbox.read(seen)
        await OutboxAdmin(outbox).pause_relay()
        after = await outbox.read(seen)

        assert (before.deliverable, len(before.late)) == (1, 1)
        assert (after.deliverable, len(after.late), after.events) == (0, 0, 2)


class TestSkip:
    """A tombstone in place of the event."""

    async def test_it_takes_the_place_and_the_sequence_and_the_original_is_kept(self, outbox: OutboxFile) -> None:
        old = await stuck(outbox, count=2)
        await sql(
            outbox,
            "INSERT INTO letopis_outbox_incidents (incident_id, kind, conversation_id, state, escalations, mark,"
            " opened_at, revision) VALUES (randomblob(16), 'conversation_blocked', 'a', 'firing', 0, 2, 0, 1)",
        )
        assert await OutboxAdmin(outbox, by="ann").skip(old.event_id, reason=" hopeless ") == old
        assert await sql(outbox, "SELECT outcome FROM letopis_outbox_incidents") == [("skipped",)]

        new = await front(outbox, "a")
        assert (new.type, new.sequence, new.state, new.behind) == ("event.skipped", 1, "ready", 2)
        assert new.event_id != old.event_id
        assert new.digest == true_digest(new)
        assert decode(new.data) == {
            "digest": old.digest.hex(),
            "reason": "hopeless",
            "skipped_event_id": str(old.event_id),
            "skipped_type": old.type,
        }
        [kept] = await done_to(outbox, new)
        assert (kept.verb, kept.event_id, kept.data, kept.digest) == ("skip", old.event_id, old.data, old.digest)
        assert (kept.reason, kept.repaired_by) == ("hopeless", "ann")
        await stick(outbox, "a")
        with pytest.raises(NotRepairable, match="tombstone already"):
            await OutboxAdmin(outbox).skip(new.event_id, reason="x")

    async def test_only_the_front_of_a_lane_in_trouble(self, outbox: OutboxFile) -> None:
        await say(outbox, "a", 2)
        first, second, _ = await pending(outbox)
        with pytest.raises(NotRepairable, match="lane is ready: pause"):
            await OutboxAdmin(outbox).skip(first.event_id, reason="x")
        await stick(outbox, "a")
        with pytest.raises(NotRepairable, match="waits behind"):
            await OutboxAdmin(outbox).skip(second.event_id, reason="x")
        with pytest.raises(NotRepairable, match="no pending event"):
            await OutboxAdmin(outbox).skip(uuid4(), reason="x")

        assert await pending(outbox, states=("blocked",), fronts=True) == [await front(outbox, "a")]
        assert await sql(outbox, "SELECT count(*) FROM letopis_outbox_repairs") == [(0,)]

    @pytest.mark.parametrize("reason", ["", "  \n", "x" * 2_001, "nul \0", "\ud800"])
    async def test_a_reason_is_needed_and_one_that_stores_take(self, outbox: OutboxFile, reason: str) -> None:
        old = await stuck(outbox)
        with pytest.raises(InvalidInput):
            await OutboxAdmin(outbox).skip(old.event_id, reason=reason)
        assert (await lane(outbox, "a")).state == "blocked"

    async def test_the_owner_is_told_again_when_the_event_that_told_it_is_skipped(self, outbox: OutboxFile) -> None:
        await OutboxAdmin(outbox).skip((await stuck(outbox, owner="42")).event_id, reason="x")
        assert (await lane(outbox, "a")).owner_id is None
        await say(outbox, "a", owner="42")
        told = [decode(one.data) for one in await pending(outbox) if one.type == ConversationStarted.type]
        assert [one["owner_id"] for one in told] == ["42"]

    async def test_large_content_of_the_original_alone_is_kept(self, outbox: OutboxFile) -> None:
        await outbox.append(prepare("a", [Message.user(word * LARGE_BYTES, id=word) for word in ("kept", "gone")]))
        await sql(outbox, "UPDATE letopis_outbox_lanes SET delivered = 1")
        await stick(outbox, "a")
        await OutboxAdmin(outbox).skip((await front(outbox, "a")).event_id, reason="x")
        await outbox.append(prepare("a", [MessageRedacted(message_id="gone")]))
        assert await sql(outbox, "SELECT substr(body, 1, 4) FROM letopis_outbox_contents") == [(b"kept",)]


class TestFix:
    """Corrected data under the same id."""

    async def message(self, outbox: OutboxFile) -> PendingEvent:
        """Return the message at the front of the blocked conversation "a"."""
        await outbox.append(prepare("a", [Message.user("bad", id="m1", metadata={"k": 1})], metadata={"trace": "t"}))
        await sql(outbox, "UPDATE letopis_outbox_lanes SET delivered = 1")
        await stick(outbox, "a")
        return await front(outbox, "a")

    async def test_id_type_and_sequence_stay_and_the_original_is_kept(self, outbox: OutboxFile) -> None:
        old = await self.message(outbox)
        data = {**decode(old.data), "metadata": {}}
        admin = OutboxAdmin(outbox, by="ann")
        assert await admin.fix(old.event_id, data, reason="no k") == old

        new = await front(outbox, "a")
        assert (new.event_id, new.type, new.sequence, new.state) == (old.event_id, old.type, 2, "ready")
        assert (decode(new.data), new.metadata, new.occurred_at) == (data, old.metadata, old.occurred_at)
        assert new.digest == true_digest(new) != old.digest
        [kept] = await done_to(outbox, new)
        assert (kept.verb, kept.data, kept.digest, kept.repaired_by) == ("fix", old.data, old.digest, "ann")
        await stick(outbox, "a")
        await admin.fix(old.event_id, None, metadata={}, reason="no trace")
        assert ((await front(outbox, "a")).data, (await front(outbox, "a")).metadata) == (new.data, None)

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            (lambda data: {**data, "message_id": "m2"}, "message_id"),
            (lambda data: {key: value for key, value in data.items() if key != "role"}, "role"),
            (lambda data: {**data, "metadata": {"k": "\0"}}, "metadata"),
            (lambda data: data, "data"),
        ],
        ids=["another message", "not a message", "refused by a store", "as before"],
    )
    async def test_what_would_not_do_is_refused(
        self, outbox: OutboxFile, change: Callable[[dict[str, Any]], dict[str, Any]], field: str
    ) -> None:
        old = await self.message(outbox)
        with pytest.raises(InvalidInput, match=field):
            await OutboxAdmin(outbox).fix(old.event_id, change(dict(decode(old.data))), reason="x")
        with pytest.raises(InvalidInput, match="limit is 10"):
            await OutboxAdmin(outbox).fix(old.event_id, decode(old.data), reason="x", limits=Limits(max_bytes=10))
        assert await front(outbox, "a") == old

    async def test_data_that_is_damaged_in_the_file_can_be_given_anew(self, outbox: OutboxFile) -> None:
        old = await self.message(outbox)
        await sql(outbox, "UPDATE letopis_outbox_events SET data = '{broken' WHERE sequence = 2")
        with pytest.raises(InvalidInput, match="damaged"):
            await OutboxAdmin(outbox).fix(old.event_id, None, metadata={}, reason="x")
        await OutboxAdmin(outbox).fix(old.event_id, {**decode(old.data), "metadata": {}}, reason="x")
        assert decode((await front(outbox, "a")).data)["message_id"] == "m1"

    async def test_another_owner_is_known_to_the_lane(self, outbox: OutboxFile) -> None:
        await OutboxAdmin(outbox).fix((await stuck(outbox, owner="42")).event_id, {"owner_id": "43"}, reason="x")
        assert (await lane(outbox, "a")).owner_id == "43"


class TestRestore:
    """Back to what was appended."""

    async def test_after_several_repairs_the_first_original_comes_back(self, outbox: OutboxFile) -> None:
        old = await stuck(outbox, owner="42")
        admin = OutboxAdmin(outbox)
        with pytest.raises(NotRepairable, match="nothing to put back"):
            await admin.restore(old.event_id, reason="x")
        await admin.fix(old.event_id, {"owner_id": "43"}, reason="x")
        await stick(outbox, "a")
        await admin.skip(old.event_id, reason="y")
        await stick(outbox, "a")
        await admin.restore((await front(outbox, "a")).event_id, reason="it was fine")

        new = await front(outbox, "a")
        assert (new.event_id, new.data, new.digest) == (old.event_id, old.data, old.digest)
        assert (new.owner_id, new.state) == ("42", "ready")
        assert [one.verb for one in await done_to(outbox, new)] == ["fix", "skip"]
        await stick(outbox, "a")
        with pytest.raises(NotRepairable, match="nothing to put back"):
            await admin.restore(old.event_id, reason="x")


class TestRace:
    """A repair while a relay has the event in flight."""

    @pytest.mark.parametrize("takes", [False, True], ids=["refused", "taken"])
    async def test_what_the_store_holds_is_never_taken_for_what_the_file_holds(
        self, outbox: OutboxFile, takes: bool
    ) -> None:
        store = ToldStore()
        await say(outbox, "a", owner="42")
        await stick(outbox, "a", "retrying")
        await sql(outbox, "UPDATE letopis_outbox_lanes SET due_at = 0, attempts = 1")
        old = await front(outbox, "a")

        def refuse(batch: Sequence[LaneBatch]) -> StoreFault | None:
            bad = any(one.event.digest == old.digest for part in batch for one in part.deliveries)
            return POISON if bad and not takes else None

        store.refuse = refuse
        under_way, go = asyncio.Event(), asyncio.Event()

        async def before() -> None:
            under_way.set()
            await go.wait()

        store.before = before
        async with running(relay_on(outbox, store)) as relay:
            await under_way.wait()
            number = await incarnation(outbox)
            await OutboxAdmin(outbox).fix(old.event_id, {"owner_id": "43"}, reason="x")
            assert await incarnation(outbox) == number + 1
            go.set()
            if takes:
                await until(lambda: _state_is(outbox, "a", "blocked"))
                found = await lane(outbox, "a")
                assert (found.fault_class, found.delivered) == ("diverged", 0)
                await OutboxAdmin(outbox).restore(old.event_id, reason="the store had it")
            await drained(outbox)
            [(digest,)] = await sql(outbox, "SELECT digest FROM letopis_outbox_events WHERE sequence = 1")
            assert dict(store.lanes["a"])[old.event_id] == digest
            assert (digest == old.digest) is takes
            assert relay.stats.acks_fenced >= 1

    async def test_a_blocked_lane_does_not_disturb_the_relay(self, outbox: OutboxFile) -> None:
        relay = relay_on(outbox, ToldStore())
        assert await relay.lease.acquire()
        old, before = await stuck(outbox), await incarnation(outbox)
        await OutboxAdmin(outbox).skip(old.event_id, reason="x")
        assert await incarnation(outbox) == before
        await relay.lease.release()


async def _state_is(outbox: OutboxFile, conversation_id: str, state: str) -> bool:
    return (await lane(outbox, conversation_id)).state == state


class TestMissing:
    """Events that neither side holds."""

    async def test_a_store_that_lost_more_than_the_file_still_holds(self, outbox: OutboxFile) -> None:
        store = ToldStore()
        await say(outbox, "a", 4)
        await relay_on(outbox, store).drain()
        await sql(outbox, "DELETE FROM letopis_outbox_events WHERE sequence <= 3")
        await sql(outbox, "UPDATE letopis_outbox_lanes SET pruned = 3")
        del store.lanes["a"][1:]
        await say(outbox, "a", 1)
        await relay_on(outbox, store).drain()
        assert (await lane(outbox, "a")).fault_class == "lost"
        done = await OutboxAdmin(outbox).skip_missing(store, "a", reason="no backup")  # type: ignore[arg-type]
        assert done == (2, 3)
        await relay_on(outbox, store).drain()
        assert (store.held("a"), (await lane(outbox, "a")).state) == (6, "ready")

    @pytest.mark.parametrize(("gone", "tombstones"), [((2,), ()), ((2, 6), (6,))], ids=["held", "and one that is not"])
    async def test_what_the_store_holds_is_not_given_up(
        self, outbox: OutboxFile, gone: tuple[int, ...], tombstones: tuple[int, ...]
    ) -> None:
        """The acknowledgement was lost, and then a page of the file with what had been delivered."""
        store = ToldStore()
        await say(outbox, "a", 3)
        await relay_on(outbox, store).drain()
        await sql(outbox, "UPDATE letopis_outbox_lanes SET delivered = 1, pending_since = 1")
        await say(outbox, "a", 3)
        held = [event_id for event_id, _ in store.lanes["a"]]
        await sql(outbox, f"DELETE FROM letopis_outbox_events WHERE sequence IN ({', '.join(map(str, gone))})")
        await relay_on(outbox, store).drain()
        assert (await lane(outbox, "a")).fault_class == "damaged"

        done = await OutboxAdmin(outbox).skip_missing(store, "a", reason="no backup")  # type: ignore[arg-type]
        await relay_on(outbox, store).drain()

        assert done == tombstones
        assert [event_id for event_id, _ in store.lanes["a"][: len(held)]] == held
        assert ((await lane(outbox, "a")).state, store.held("a")) == ("ready", 7)

    async def test_where_nothing_is_missing_nothing_is_given_up(self, outbox: OutboxFile) -> None:
        await say(outbox, "a")
        work = partial(skip_missing, conversation_id="a", held=0, reason="x", now_us=1)
        with pytest.raises(NotRepairable, match="not blocked"):
            await outbox.write(work)
        await stick(outbox, "a")
        with pytest.raises(NotRepairable, match="is missing"):
            await outbox.write(work)


async def test_a_repair_that_came_too_late_doubles_nothing(history: History) -> None:
    """The counterpart: behind an event that was repaired after the store had it, the store's are the file's own."""
    outbox, relay = history.outbox, Relay(history.outbox, history.store)
    receipt = await history.append("c1", Message.user("one"), Message.user("two"))
    await relay.drain()
    # As when the acknowledgement was lost.
    await sql(outbox, "UPDATE letopis_outbox_lanes SET delivered = 1, pending_since = 1, state = 'paused'")
    await OutboxAdmin(outbox).skip(receipt.event_ids[0], reason="a test")
    await relay.drain()

    assert (await history.status()).lanes["blocked"] == 1
    assert [one.text for one in await history.messages("c1")] == ["one", "two"]
    assert (await history.chat("c1").conversation()).message_count == 2
