"""A receipt of an erasure is confirmed by the store, without content, and refused after any change of either."""

import copy
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

from letopis.outbox import History
from letopis.store import ConversationStore, InvalidInput, Message
from letopis.store.database.schema import erasures, events, log_heads, records
from letopis.store.erasures import Erasure
from letopis.store.model.events import utc_now
from letopis.store.ops.receipts import ErasureScope, _digest, load, make_receipt
from tests.conformance.tables import on_sqlite
from tests.support.sayings import Bots, change, drain, rows_of

ANN, BEN = "ann", "ben"
TOKEN = "t0ken-of-"
AUTHOR_WORDS = f"{TOKEN}{ANN}"


async def said(one: History) -> None:
    for number in range(3):
        for author in (ANN, BEN):
            message = Message.user(f"{TOKEN}{author} {number}", id=f"{author}-{number}", author=author)
            await one.append("group", message, owner="group")
    await one.chat("group").edit(f"{ANN}-1", f"{AUTHOR_WORDS} edited")
    await one.append("mine", Message.user(AUTHOR_WORDS), Message.assistant("so it is"), owner=ANN)
    await drain(one)


async def redact(one: History) -> None:
    await one.chat("group").redact(*(f"{ANN}-{number}" for number in range(3)))
    await one.chat("mine").delete()
    await drain(one)


async def begun(store: ConversationStore, engine: AsyncEngine) -> tuple[Erasure, ErasureScope]:
    erasure = await store.erasures.register("person", ANN, how="delete", reason="asked", requested_by="dpo")
    async with engine.connect() as connection:
        return erasure, await ErasureScope.read(connection, erasure.number)


async def receipt_of(engine: AsyncEngine, erasure: Erasure, scope: ErasureScope) -> bytes:
    async with engine.connect() as connection:
        return await make_receipt(connection, erasure.number, scope, now=utc_now())


async def erased(store: ConversationStore, engine: AsyncEngine, one: History) -> bytes:
    """Erase a person, as the command does, and return the receipt."""
    await said(one)
    erasure, scope = await begun(store, engine)
    await redact(one)
    return await receipt_of(engine, erasure, scope)


async def problems(engine: AsyncEngine, content: bytes) -> list[str]:
    return [problem async for problem in load(content).problems(engine)]


def signed_again(document: dict[str, Any]) -> bytes:
    """Return a receipt whose forger knows how its digest is made."""
    return orjson.dumps({**document, "digest": _digest(document)})


async def test_receipt_is_confirmed_without_content(store: ConversationStore, engine: AsyncEngine, bots: Bots) -> None:
    content = await erased(store, engine, bots[0])
    document = orjson.loads(content)
    assert await problems(engine, content) == []
    assert TOKEN.encode() not in content and b"so it is" not in content
    assert document["conversations"] == ["mine"]
    assert document["messages"] == {"group": [f"{ANN}-{number}" for number in range(3)]}
    told = {name: document["erasure"][name] for name in ("kind", "subject", "how", "reason", "requested_by")}
    assert told == {"kind": "person", "subject": ANN, "how": "delete", "reason": "asked", "requested_by": "dpo"}
    assert (document["events"], document["retained"]) == (7, 0)
    assert document["before"]["blocks"] == document["after"]["blocks"]
    assert document["before"]["heads"][0] < document["after"]["heads"][0]
    assert [outbox["acknowledged"] for outbox in document["outboxes"]] == [
        outbox["carried_out"] >= document["erasure"]["number"] for outbox in document["outboxes"]
    ]
    # The store goes on, and the receipt holds.
    await bots[0].append("group", Message.user("new words", author=ANN))
    await bots[0].append("other", Message.user("hello"), owner=ANN)
    await drain(bots[0])
    assert await problems(engine, content) == []


def fields(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of each value in a document that is neither an object nor a list."""
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in fields(item, (*path, key))]
    if isinstance(value, list):
        return [found for index, item in enumerate(value) for found in fields(item, (*path, index))]
    return [path]


def altered(document: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    changed = copy.deepcopy(document)
    place = changed
    for key in path[:-1]:
        place = place[key]
    value = place[path[-1]]
    if isinstance(value, bool):
        place[path[-1]] = not value
    elif isinstance(value, int):
        place[path[-1]] = value + 1
    elif isinstance(value, str):
        place[path[-1]] = ("1" if value[0] == "0" else "0") + value[1:]
    else:
        place[path[-1]] = "x"
    return changed


UNPROVEN = {("made_at",), ("retained",), ("outboxes", 0, "name")}
"""Of these the store tells nothing that contradicts: the digest alone protects them."""


@on_sqlite
async def test_each_field_that_is_altered_is_refused(store: ConversationStore, engine: AsyncEngine, bots: Bots) -> None:
    document = orjson.loads(await erased(store, engine, bots[0]))
    paths = fields(document)
    assert len(paths) > 20
    for path in paths:
        changed = altered(document, path)
        with pytest.raises(InvalidInput, match="receipt"):
            load(orjson.dumps(changed))
        if path[0] not in ("digest", "letopis_receipt", "block_events") and path not in UNPROVEN:
            assert await problems(engine, signed_again(changed)), path
    for key in document:
        with pytest.raises(InvalidInput, match="receipt"):
            load(orjson.dumps({name: value for name, value in document.items() if name != key}))
    for torn in (b"", b"[]", b"{}", orjson.dumps(document)[:-9], orjson.dumps({**document, "more": 1})):
        with pytest.raises(InvalidInput, match="receipt"):
            load(torn)


FORGERIES: list[dict[str, Any]] = [
    {"outboxes": []},
    {"conversations": []},
    {"conversations": ["mine", "invented"]},
    {"messages": {}},
    {"messages": {"group": [f"{ANN}-0"]}},
    {"conversations": [], "messages": {}, "events": 0, "records": [], "outboxes": []},
]


@pytest.mark.parametrize("forged", FORGERIES, ids=lambda forged: "-".join(forged))
@on_sqlite
async def test_a_receipt_that_tells_less_or_more_than_the_store_is_refused(
    store: ConversationStore, engine: AsyncEngine, bots: Bots, forged: dict[str, Any]
) -> None:
    """The digest of a receipt is made by whoever writes it: it proves nothing."""
    document = orjson.loads(await erased(store, engine, bots[0]))
    assert await problems(engine, signed_again(document | forged))
    if "events" in forged:
        nothing = {"before": {**document["before"], "blocks": []}, "after": {**document["after"], "blocks": []}}
        assert await problems(engine, signed_again(document | forged | nothing))


@on_sqlite
async def test_two_outboxes_of_one_name_are_told_apart(
    store: ConversationStore, engine: AsyncEngine, tmp_path: Path
) -> None:
    paths = [tmp_path / host / "bot.outbox.db" for host in "ab"]
    for path in paths:
        path.parent.mkdir()
    async with (
        History(paths[0], store=store, relay=False, watch=False) as one,
        History(paths[1], store=store, relay=False, watch=False) as two,
    ):
        await two.append("other", Message.user("hello"))
        await drain(two)
        check = load(await erased(store, engine, one))
        await drain(one)
        assert [problem async for problem in check.problems(engine)] == []
        told = {outbox.origin_id: outbox.state for outbox in check.outboxes}
        assert told[one.outbox.origin.origin_id] != "has not acknowledged yet"
        assert told[two.outbox.origin.origin_id] == "has not acknowledged yet"
        assert [outbox.name for outbox in check.outboxes] == ["bot.outbox.db"] * 2


@on_sqlite
async def test_a_record_that_a_forged_receipt_leaves_out_is_found(
    store: ConversationStore, engine: AsyncEngine, bots: Bots
) -> None:
    one = bots[0]
    await said(one)
    await one.records(owner=ANN).put(("notes",), "key", AUTHOR_WORDS)
    await drain(one)
    begin = await begun(store, engine)
    rows = [dict(row._mapping) for row in await rows_of(store, sa.select(records))]
    await redact(one)
    await one.records(owner=ANN).erase()
    await drain(one)
    document = orjson.loads(await receipt_of(engine, *begin))
    await change(store, sa.insert(records).values(rows))
    expected = ["the store holds 1 records that were put before the erasure"]
    assert await problems(engine, signed_again(document | {"records": []})) == expected


@on_sqlite
async def test_content_that_is_back_is_found(store: ConversationStore, engine: AsyncEngine, bots: Bots) -> None:
    await said(bots[0])
    rows = await rows_of(store, sa.select(events))
    begin = await begun(store, engine)
    with pytest.raises(InvalidInput, match="holds content"):
        await receipt_of(engine, *begin)
    await redact(bots[0])
    content = await receipt_of(engine, *begin)
    assert await problems(engine, content) == []
    [back] = [row for row in rows if "edited" in row.data]
    at = (events.c.partition == back.partition, events.c.position == back.position)
    await change(store, sa.update(events).where(*at).values(data=back.data, salt=back.salt))
    [problem] = await problems(engine, content)
    assert problem == f"event {back.position} of partition {back.partition} holds content, in conversation 'group'"
    await change(store, sa.update(log_heads).values(position=log_heads.c.position - 1))
    assert any("of the log ends at" in problem for problem in await problems(engine, content))
    await change(store, sa.delete(erasures))
    [problem] = await problems(engine, content)
    assert "is older than the receipt" in problem


@on_sqlite
async def test_records_that_are_back_are_found(store: ConversationStore, engine: AsyncEngine, bots: Bots) -> None:
    one = bots[0]
    await said(one)
    for held in (one.records(owner=ANN), one.records(conversation="mine"), one.records(owner=BEN)):
        await held.put(("notes",), "key", AUTHOR_WORDS)
    await drain(one)
    begin = await begun(store, engine)
    rows = [dict(row._mapping) for row in await rows_of(store, sa.select(records))]
    await redact(one)
    with pytest.raises(InvalidInput, match="the store holds 1 of the records"):
        await receipt_of(engine, *begin)
    await one.records(owner=ANN).erase()
    await drain(one)
    content = await receipt_of(engine, *begin)
    assert len(orjson.loads(content)["records"]) == 2
    assert await problems(engine, content) == []
    # What is put anew, under the same key, is another version.
    await one.records(owner=ANN).put(("notes",), "key", "new")
    await drain(one)
    assert await problems(engine, content) == []
    [back] = [row for row in rows if row["scope"].endswith("mine")]
    await change(store, sa.insert(records).values(back))
    assert await problems(engine, content) == ["the store holds 1 records that were put before the erasure"]


@on_sqlite
async def test_a_receipt_of_another_store_is_refused(store: ConversationStore, engine: AsyncEngine, bots: Bots) -> None:
    content = await erased(store, engine, bots[0])
    await store.new_identity()
    [problem] = await problems(engine, content)
    assert problem.startswith("the receipt is of history store ")
