"""Records move with their conversation, owner or space by export and import, once, and overwrite nothing."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from letopis import History, Message, Record, Records
from letopis.ops.verify import record_problems as outbox_problems
from tests.conformance.tables import on_sqlite
from tests.support.outboxes import exported, imported
from tests.support.sayings import all_pages, drain
from tests.support.sayings import problems as store_problems

CHAT = "chat-1"
CP = ("cp", "a/b")
NOWHERE = "postgresql://127.0.0.1:1/none"
VALUES: dict[str, Any] = {
    "object": {"z": 1, "a": [True, None, 1.5, "ж"]},
    "null": None,
    "bytes": b"\x00\xff",
    "empty": b"",
    "large": bytes(range(256)) * 5_000,
}


async def problems(history: History) -> list[str]:
    """What `db verify` and `outbox verify` find."""
    found = await history.outbox.read(lambda connection: list(outbox_problems(connection)))
    return found + await store_problems(history.store)


def scopes(history: History) -> dict[str, Records]:
    return {
        "of the chat": history.records(conversation=CHAT),
        "of the owner": history.records(owner="42"),
        "of another owner": history.records(owner="43"),
        "of a chat without messages": history.records(conversation="chat-2"),
        "of a space": history.records(space="app"),
    }


async def fill(history: History) -> None:
    await history.append(CHAT, Message.user("hello", id="m"), owner="42")
    for name, records in scopes(history).items():
        await records.put(("name",), name, name)
    for key, value in VALUES.items():
        await scopes(history)["of the chat"].put(CP, key, value, tags={"run": "r1", "n": 1})


async def everything(history: History) -> dict[tuple[str, ...], Record]:
    found = {}
    for records in scopes(history).values():
        for one in await records.list():
            found[str(one.scope), *one.namespace, one.key] = one
    return found


def content(records: dict[tuple[str, ...], Record]) -> dict[tuple[str, ...], Any]:
    return {place: (one.value, one.media, dict(one.tags), one.updated_at) for place, one in records.items()}


async def test_records_move_with_all_that_they_are(bot: History, tmp_path: Path) -> None:
    await fill(bot)
    raw = await exported(bot)
    await drain(bot)
    assert await exported(bot) == await exported(bot.store) == raw

    async with History(tmp_path / "new.outbox.db", store=tmp_path / "new.db", relay=False, watch=False) as new:
        counts, refused = await imported(new.outbox, new.store, raw)
        assert (counts.imported, counts.known, refused) == (1 + 5 + len(VALUES), 0, [])
        await drain(new)
        assert content(await everything(new)) == content(await everything(bot))
        assert [one.text for one in await new.messages(CHAT)] == ["hello"]
        revisions = {one.revision for one in (await everything(new)).values()}
        counts, refused = await imported(new.outbox, new.store, raw)
        assert (counts.imported, counts.known, refused) == (0, 1 + 5 + len(VALUES), [])
        await drain(new)
        assert {one.revision for one in (await everything(new)).values()} == revisions
        assert await problems(new) == []
        assert await exported(new) == raw


@on_sqlite
async def test_a_conversation_or_an_owner_takes_its_own_records(bot: History) -> None:
    await fill(bot)

    def named(raw: bytes) -> set[str]:
        lines = [json.loads(line) for line in raw.splitlines()]
        return {one["key"] for one in lines if "record" in one and one["namespace"] == ["name"]}

    assert named(await exported(bot, one=CHAT)) == {"of the chat"}
    assert named(await exported(bot, one="chat-2")) == {"of a chat without messages"}
    assert named(await exported(bot, owner="42")) == {"of the chat", "of the owner"}
    assert named(await exported(bot)) == set(scopes(bot))
    assert [json.loads(line)["id"] for line in (await exported(bot, records=False)).splitlines()] == ["m"]


@on_sqlite
async def test_what_is_there_stays_and_another_value_is_refused(bot: History) -> None:
    records = bot.records(space="app")
    await records.put(("a",), "same", {"n": 1}, tags={"t": 1})
    await records.put(("a",), "changed", 1)
    await records.put(("a",), "deleted", 1)
    raw = await exported(bot)
    for settle in (False, True):
        if settle:
            await drain(bot)
        await records.put(("a",), "changed", 2)
        await records.delete(("a",), "deleted")
        if settle:
            await drain(bot)
        counts, refused = await imported(bot.outbox, bot.store, raw)
        assert (counts.imported, counts.known, counts.refused) == (1, 1, 1)
        assert [one.number for one in refused] == [1] and "another value" in refused[0].reason
        assert [one.value for one in await records.list()] == [2, 1, {"n": 1}]


@on_sqlite
async def test_a_file_from_before_and_one_that_is_wrong(bot: History) -> None:
    old = b'{"conversation_id":"chat-1","id":"m","role":"user","content":"hello"}\n'
    counts, refused = await imported(bot.outbox, bot.store, old)
    assert (counts.imported, refused) == (1, [])

    good = b'{"record":{"owner":"42"},"namespace":["a"],"key":"k","value":null}\n'
    counts, refused = await imported(bot.outbox, bot.store, good.replace(b":null", b":1.5e999") + good)
    assert (counts.imported, [one.number for one in refused]) == (1, [1])


@on_sqlite
@pytest.mark.parametrize("delivered", [False, True])
async def test_lines_of_a_deleted_conversation_are_refused(bot: History, *, delivered: bool) -> None:
    await fill(bot)
    raw = await exported(bot, one=CHAT)
    message = raw.splitlines(keepends=True)[0]
    await bot.chat(CHAT).delete()
    if delivered:
        await drain(bot)
    more = raw + message.replace(b'"m"', b'"m2"') + message.replace(b'"chat-1"', b'"chat-3"')
    counts, refused = await imported(bot.outbox, bot.store, more)
    assert (counts.imported, counts.known, len(refused)) == (1, 1, 1 + len(VALUES) + 1)


async def test_scopes_are_listed_in_pages(bot: History) -> None:
    await fill(bot)
    for settle in (False, True):
        if settle:
            await drain(bot)
        for limit in (1, 2, 100):
            found = await all_pages(partial(bot.records.scopes, limit=limit))
            assert sorted(map(str, found)) == sorted({str(one.scope) for one in scopes(bot).values()})
            assert len(found) == 5
