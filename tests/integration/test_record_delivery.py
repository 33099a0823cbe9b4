"""Records under a relay: refused ones, large ones, restored stores, damaged and copied files."""

import os
import shutil
from pathlib import Path

import pytest

from letopis.ops.new_origin import assign_new_origin
from letopis.ops.salvage.salvage import salvage
from letopis.ops.verify import find_problems
from letopis.outbox import History, Incident
from letopis.outbox.alerting.incidents import Rules
from letopis.outbox.alerting.monitor import AlertMonitor
from letopis.outbox.operations.admin import OutboxAdmin
from letopis.outbox.relay import reconcile
from letopis.store import ConversationStore, Message
from letopis.store.model.records import RecordRange, Scope
from tests.integration.test_reconcile import contradictions
from tests.support.relays import deliver_all, sql, until
from tests.support.sayings import present
from tests.support.sayings import problems as store_problems
from tests.support.sqlite_rows import change
from tests.support.store_changes import copied, put_back, run_there

CHAT = "chat-1"
CP = ("cp",)
AT_ONCE = Rules(hold=0.2, stuck_after=0.2, resolve_after=0.2)


async def problems(history: History, url: str) -> list[str]:
    """What the checks of the outbox, of the store, and of both together find."""
    return await store_problems(history.store) + await contradictions(history.outbox, url)


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
async def test_a_refused_record_holds_up_no_reply_and_is_skipped(
    store: ConversationStore, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = AlertMonitor.__init__
    monkeypatch.setattr(AlertMonitor, "__init__", lambda self, *given, **more: made(self, *given, **more, interval=0.1))
    told: list[Incident] = []
    path = tmp_path / "bot.outbox.db"
    async with History(path, store=store, on_stuck=told.append, rules=AT_ONCE, relay=False) as history:
        records = history.records(conversation=CHAT)
        first = await records.put(CP, "a", "first")
        await sql(history.outbox, "UPDATE letopis_outbox_record_bodies SET body = x'00'")
        later = await records.put(CP, "b", "later")
        reply = await history.append(CHAT, Message.assistant("hello"))
    async with History(path, store=store, on_stuck=told.append, rules=AT_ONCE) as history:
        lane = Scope.conversation(CHAT).name
        assert await history.append(CHAT, Message.user("again"))

        async def is_saved() -> bool:
            return any(one.id == reply.message_id and one.saved for one in await history.messages(CHAT))

        await until(is_saved, patience=15)

        async def blocked() -> bool:
            found = await history.status()
            return found.lanes["blocked"] == 1 and bool(found.incidents)

        await until(blocked)
        assert [one.conversation_id for one in (await history.status()).incidents] == [lane]
        await OutboxAdmin(history.outbox).skip(present(first.revision), reason="damaged")
        records = history.records(conversation=CHAT)

        async def follows() -> bool:
            return [one.key for one in await records.list()] == ["b"] and await history.drained(0)

        await until(follows)
        assert await records.get(CP, "a") is None and later.revision is not None
        # Users are told of replies alone; on a slow machine one may be late for a moment.
        assert lane not in {one.conversation_id for one in told}
        assert await problems(history, store_url) == []


async def test_value_beyond_a_statement_arrives_whole(store: ConversationStore, store_url: str, tmp_path: Path) -> None:
    large = os.urandom(1024) * (20 * 1024)  # 20 MiB
    async with History(tmp_path / "bot.outbox.db", store=store) as history:
        records = history.records(space="files")
        receipt = await records.put(CP, "large", large)
        small = await records.put(CP, "small", {"a": 1})
        assert await receipt.saved(60) and await small.saved(60)
        found = await records.get(CP, "large")
        assert found is not None and found.saved and found.value == large and found.size == len(large)
        assert await problems(history, store_url) == []
        await records.erase()
        await until(lambda: history.drained(0))
        assert not (await records.list()).items


async def test_a_restored_store_is_refilled_by_a_running_relay(
    store: ConversationStore, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "RECONCILE_INTERVAL_SECONDS", 0.1)
    async with History(tmp_path / "bot.outbox.db", store=store) as history:
        records = history.records(conversation=CHAT)
        base = await records.put(CP, "a", 0)
        assert await base.saved(15)
        backup = await copied(store_url)
        last = await records.put(CP, "a", 1, expected=base.revision)  # type: ignore[arg-type]
        for number in range(5):
            last = await records.put(CP, "b", number)
        assert await last.saved(15)
        await put_back(store_url, backup)
        assert (await records.get(CP, "b")).value == 4  # type: ignore[union-attr]

        async def refilled() -> bool:
            origin_id = history.outbox.origin.origin_id
            page = await store.runtime.snapshot(
                lambda lineage, connection: lineage.reader.records.page(
                    connection, records.scope, RecordRange(), limit=10, origin_id=origin_id
                )
            )
            return [one.body for one in page.records] == [b"1", b"4"]

        await until(refilled)
        await until(lambda: history.drained(0))
        assert await problems(history, store_url) == []


async def test_records_survive_a_salvage_and_a_new_identity(tmp_path: Path) -> None:
    path, url = tmp_path / "bot.outbox.db", f"sqlite:///{tmp_path / 'store.db'}"
    values = {"small": 1, "large": "x" * 300_000, "anew": "second"}
    async with History(path, store=url, relay=False, watch=False) as history:
        records = history.records(space="app")
        await records.put(CP, "delivered", True)
        await deliver_all(history)
        await records.put(CP, "anew", "first")
        for key, value in values.items():
            await records.put(CP, key, value)
        await records.put(CP, "gone", 1)
        await records.delete(CP, "gone")
    copy = tmp_path / "copy.outbox.db"
    shutil.copy(path, copy)
    saved = await salvage(path, tmp_path / "saved.outbox.db")
    assert saved.whole
    await assign_new_origin(copy)
    for one in (tmp_path / "saved.outbox.db", copy):
        assert list(find_problems(one)) == []
        async with History(one, store=url, relay=False, watch=False) as history:
            records = history.records(space="app")
            assert (await records.get(CP, "large")).saved is False  # type: ignore[union-attr]
            assert await records.get(CP, "gone") is None
            await deliver_all(history)
            assert {one.key: one.value for one in await records.list()} == {**values, "delivered": True}
            assert await problems(history, url) == []


async def test_a_value_that_the_damage_took_is_not_made_up_and_its_lane_waits(tmp_path: Path) -> None:
    path, url = tmp_path / "bot.outbox.db", f"sqlite:///{tmp_path / 'store.db'}"
    async with History(path, store=url, relay=False, watch=False) as history:
        records = history.records(space="app")
        await records.put(CP, "lost", "before")
        await deliver_all(history)
        await records.put(CP, "lost", "after")
        await records.put(CP, "kept", 1)
    change(path, "DELETE FROM letopis_outbox_record_bodies WHERE position = 2")
    await salvage(path, tmp_path / "saved.outbox.db")

    async with History(tmp_path / "saved.outbox.db", store=url, relay=False, watch=False) as history:
        records = history.records(space="app")
        assert (await records.get(CP, "lost")).value == "before"  # type: ignore[union-attr]
        assert (await records.get(CP, "kept")).value == 1  # type: ignore[union-attr]
    async with History(tmp_path / "saved.outbox.db", store=url) as history:

        async def blocked() -> bool:
            return (await history.status()).lanes["blocked"] == 1

        await until(blocked)
        assert (await history.status()).pending == 2


@pytest.mark.parametrize("verb", ["delete", "reset", "erase"])
async def test_erased_records_leave_no_bytes_behind(tmp_path: Path, verb: str) -> None:
    path, url = tmp_path / "bot.outbox.db", f"sqlite:///{tmp_path / 'store.db'}"
    secret = "a very private word"
    async with History(path, store=url, relay=False, watch=False) as history:
        records = history.records(conversation=CHAT)
        await history.append(CHAT, Message.user("hello"))
        skipped = await records.put((secret,), secret, secret, tags={secret: secret})
        await sql(history.outbox, "UPDATE letopis_outbox_lanes SET state = 'blocked' WHERE conversation_id < char(2)")
        await OutboxAdmin(history.outbox).skip(present(skipped.revision), reason="a test")
        await records.put((secret,), secret, secret * 10_000, tags={secret: secret})
        await records.put((secret,), "other", {secret: secret})
        await deliver_all(history)
        await records.put(CP, "pending", secret)
        assert secret.encode() in path.read_bytes() + path.with_name(f"{path.name}-wal").read_bytes()
        await (records.erase() if verb == "erase" else getattr(history.chat(CHAT), verb)())
        await deliver_all(history)
        assert not (await records.list()).items
    for file in tmp_path.iterdir():
        assert secret.encode() not in file.read_bytes(), file.name


async def test_the_checks_see_a_value_that_is_not_what_was_put_and_a_ledger_with_a_gap(tmp_path: Path) -> None:
    path, url = tmp_path / "bot.outbox.db", f"sqlite:///{tmp_path / 'store.db'}"
    async with History(path, store=url, relay=False, watch=False) as history:
        for number in range(3):
            await history.records(space="app").put(CP, f"{number}", "x" * 100_000)
        await deliver_all(history)
        assert await contradictions(history.outbox, url) == []
        await run_there(url, "DELETE FROM letopis_record_ledger WHERE sequence = 2")
        assert "counts as delivered, and no log has it" in " ".join(await contradictions(history.outbox, url))
    change(
        path,
        "UPDATE letopis_outbox_record_bodies SET body = zeroblob(size) WHERE position = 1",
        "DELETE FROM letopis_outbox_record_bodies WHERE position = 2",
    )
    found = " ".join(find_problems(path))
    assert "the value of event 1 is not what was put" in found and "the value of event 2 is missing" in found
