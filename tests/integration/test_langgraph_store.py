"""The memory of LangGraph on records: the same operations on the framework's own stores and on ours."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from letopis import History, InvalidInput, StoreUnavailable
from tests.support.relays import deliver_all
from tests.support.sayings import present

pytest.importorskip("langgraph.store.base", reason="needs langgraph: pip install --group adapters")

from langgraph.store.base import GetOp, InvalidNamespaceError, ListNamespacesOp, MatchCondition, PutOp, SearchOp
from langgraph.store.memory import InMemoryStore

from letopis.adapters.langgraph import LetopisStore

ITEMS: list[tuple[tuple[str, ...], str, dict[str, Any]]] = [
    (("tenant", "acme"), "a", {"kind": "note", "rank": 1, "done": True}),
    (("tenant", "acme", "archive"), "b", {"kind": "note", "rank": 2.5, "tags": ["x", "y"]}),
    (("tenant", "acme-corp"), "c", {"kind": "task", "rank": 3, "who": {"name": "Ada", "age": 36}}),
    (("tenant", "acme%"), "d", {"kind": "task", "rank": 4}),
    (("tenant", "a_me"), "e", {"kind": "note", "rank": 5, "done": 1}),
    (("users", "7", "v1"), "f", {"rank": 0, "text": "наш кот"}),
    (("users", "7", "v2"), "key/with/slashes", {"rank": -1}),
    (("docs", "x", "v1"), "f", {"rank": None}),
]
FILTERS: list[dict[str, Any] | None] = [
    None,
    {},
    {"kind": "note"},
    {"kind": "note", "rank": {"$gt": 1}},
    {"rank": {"$gte": 1, "$lt": 4}},
    {"rank": {"$ne": 1}},
    {"rank": {"$eq": 3}},
    {"done": True},
    {"tags": ["x", "y"]},
    {"who": {"name": "Ada"}},
    {"who": {"age": {"$gt": 30}}},
    {"nothing": None},
]
# CVE-2026-71433 of the official SQLite store: acme also found acme-corp.
PREFIXES = [(), ("tenant",), ("tenant", "acme"), ("tenant", "acme%"), ("tenant", "a_me"), ("users", "7"), ("none",)]
CONDITIONS: list[tuple[tuple[str, tuple[str, ...]], ...]] = [
    (),
    (("prefix", ("tenant",)),),
    (("prefix", ("tenant", "acme")),),
    (("suffix", ("v1",)),),
    (("prefix", ("*", "7")),),
    (("prefix", ("users",)), ("suffix", ("v2",))),
    (("suffix", ("*", "v1")),),
    (("prefix", ("users", "*", "v1", "deeper")),),
]


def shown(items: Any) -> list[Any]:
    return sorted((one.namespace, one.key, one.value) for one in items)


@pytest.mark.parametrize("delivered", [True, False])
async def test_it_answers_as_the_store_of_the_framework(bot: History, delivered: bool) -> None:
    ours, theirs = LetopisStore(bot), InMemoryStore()
    for store in (ours, theirs):
        await store.abatch([PutOp(*item) for item in ITEMS])
        await store.aput(("users", "8"), "gone", {"a": 1})
        await store.adelete(("users", "8"), "gone")
        await store.adelete(("users", "8"), "never there")
    if delivered:
        await deliver_all(bot)
    for prefix in PREFIXES:
        for wanted in FILTERS:
            if wanted and any("$g" in str(one) for one in wanted.values()) and prefix in ((), ("users", "7")):
                continue  # theirs raises where an item has no such number
            args = {"filter": wanted, "limit": 100}
            assert shown(await ours.asearch(prefix, **args)) == shown(await theirs.asearch(prefix, **args)), wanted
    for conditions in CONDITIONS:
        matched = tuple(MatchCondition(kind, path) for kind, path in conditions)  # type: ignore[arg-type]
        for depth in (None, 1, 2):
            for limit, offset in ((100, 0), (2, 0), (2, 1)):
                op = ListNamespacesOp(matched, depth, limit, offset)
                [found], [expected] = await ours.abatch([op]), await theirs.abatch([op])
                there = [one for one in expected if one[:2] != ("users", "8")]  # theirs keeps an empty namespace
                if (limit, offset) == (100, 0):
                    assert found == there, (conditions, depth)
                else:
                    assert len(found) <= limit
    assert len(await ours.asearch((), limit=3, offset=6)) == 2
    assert await ours.asearch((), limit=0) == []


async def test_a_batch_reads_what_was_there_before_it(bot: History) -> None:
    store = LetopisStore(bot)
    await store.aput(("a",), "k", {"n": 1})
    await deliver_all(bot)
    puts = [PutOp(("a",), "k", {"n": number}) for number in (2, 3)]
    batch = [GetOp(("a",), "k"), puts[0], SearchOp(("a",)), puts[1], GetOp(("a",), "new")]
    got, put, found, gone, after = await store.abatch(batch)
    assert (got.value, put, gone, after) == ({"n": 1}, None, None, None)
    assert [one.value for one in found] == [{"n": 1}]
    assert present(await store.aget(("a",), "k")).value == {"n": 3}


async def test_an_update_keeps_when_it_was_created(bot: History) -> None:
    store = LetopisStore(bot)
    await store.aput(("a",), "k", {"n": 1})
    first = present(await store.aget(("a",), "k"))
    await deliver_all(bot)
    await store.aput(("a",), "k", {"n": 2})
    second = present(await store.aget(("a",), "k"))
    assert first.created_at == first.updated_at == second.created_at < second.updated_at
    assert first.created_at.tzinfo is not None


async def test_two_memories_in_one_history(history: History) -> None:
    one, two = LetopisStore(history), LetopisStore(history, space="other")
    await one.aput(("a",), "k", {"n": 1})
    await two.aput(("a",), "k", {"n": 2})
    assert [(await store.asearch(()))[0].value for store in (one, two)] == [{"n": 1}, {"n": 2}]


async def test_a_filter_of_numbers_passes_over_what_is_none(history: History) -> None:
    store = LetopisStore(history)
    await store.abatch([PutOp(*item) for item in ITEMS] + [PutOp(("t",), "t", {"rank": "9"})])
    assert [one.value["rank"] for one in await store.asearch((), filter={"rank": {"$gt": 3}})] == [5, 4]
    assert [one.key for one in await store.asearch((), filter={"text": {"$gte": "наш"}})] == ["f"]
    with pytest.raises(ValueError, match=r"\$in"):
        await store.asearch((), filter={"rank": {"$in": [1]}})


@pytest.mark.parametrize("delivered", [True, False])
async def test_a_search_returns_the_latest_first(bot: History, delivered: bool) -> None:
    """As the framework's own database stores do: an agent with many memories sees its latest ones."""
    store = LetopisStore(bot)
    for number in range(12):
        await store.aput(("memories",), f"{number:04}", {"n": number})
    await store.aput(("memories",), "0003", {"n": 3, "again": True})
    if delivered:
        await deliver_all(bot)
    found = [one.key for one in await store.asearch(("memories",))]
    assert found == ["0003", "0011", "0010", "0009", "0008", "0007", "0006", "0005", "0004", "0002"]
    assert [one.key for one in await store.asearch(("memories",), limit=2, offset=1)] == ["0011", "0010"]
    assert [one.key for one in await store.asearch(("memories",), limit=1, filter={"n": {"$lt": 3}})] == ["0002"]


async def test_many_items_are_searched_page_by_page(history: History) -> None:
    store = LetopisStore(history)
    await store.abatch([PutOp(("many",), f"{number:04}", {"n": number}) for number in range(450)])
    assert len(await store.asearch(("many",), limit=1_000)) == 450
    assert [one.value["n"] for one in await store.asearch(("many",), limit=2, offset=300)] == [300, 301]
    assert [one.key for one in await store.asearch(("many",), filter={"n": 449})] == ["0449"]


async def test_puts_go_on_while_the_store_is_away(alone: History) -> None:
    store = LetopisStore(alone)
    await store.abatch([PutOp(("a",), "k", {"n": 1}), PutOp(("a",), "l", {"n": 2}), PutOp(("a",), "m", None)])
    assert present(await store.aget(("a",), "k")).value == {"n": 1}
    assert await store.aget(("a",), "m") is None  # deleted by this outbox
    for unknown in (GetOp(("a",), "other"), SearchOp(("a",)), ListNamespacesOp()):
        with pytest.raises(StoreUnavailable):
            await store.abatch([unknown])


async def test_wrong_operations_are_refused_and_nothing_is_written(history: History) -> None:
    store = LetopisStore(history)
    wrong: list[tuple[PutOp, type[Exception]]] = [
        (PutOp(("a",), "k", {"n": object()}), InvalidInput),
        (PutOp(("a",), "k", ["n"]), InvalidInput),  # type: ignore[arg-type]
        (PutOp(("a",), "k", {"n": 1}, ttl=5), NotImplementedError),
        (PutOp(("a",), "", {"n": 1}), InvalidInput),
        (PutOp(("a\0b",), "k", {"n": 1}), ValueError),
        (PutOp(("a", ""), "k", {"n": 1}), ValueError),
        (PutOp(("a",) * 400, "k", {"n": 1}), InvalidInput),
    ]
    for op, error in wrong:
        with pytest.raises(error):
            await store.abatch([PutOp(("fine",), "k", {"n": 1}), op])
    with pytest.raises(InvalidNamespaceError):
        await store.aput(("a.b",), "k", {"n": 1})
    with pytest.raises(NotImplementedError):
        await store.aput(("a",), "k", {"n": 1}, ttl=5)
    assert await store.asearch(()) == []


def test_it_works_synchronously(tmp_path: Path) -> None:
    store = LetopisStore(History(tmp_path / "bot.outbox.db"))
    store.put(("users", "7"), "likes", {"food": "tea"})
    assert present(store.get(("users", "7"), "likes")).value == {"food": "tea"}
    assert store.list_namespaces(prefix=("users",)) == [("users", "7")]
    assert [one.key for one in store.search(("users",), query="tea")] == ["likes"]
    store.delete(("users", "7"), "likes")
    assert store.get(("users", "7"), "likes") is None
    asyncio.run(store.history.close())
