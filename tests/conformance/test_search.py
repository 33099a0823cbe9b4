"""A search finds the same on all three stores: what is there in any form, at once, and nothing that is gone."""

import asyncio
import random
from collections.abc import Iterable
from functools import partial
from typing import Any
from unittest.mock import AsyncMock

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncEngine

from letopis.store import (
    Closed,
    ConversationArchived,
    ConversationDeleted,
    ConversationRewound,
    ConversationStarted,
    ConversationStore,
    FaultClass,
    Hit,
    Message,
    MessageEdited,
    MessageRedacted,
    Page,
    StoreFault,
    Text,
)
from letopis.store.database.schema import checkpoints, search
from letopis.store.search import finder, indexer
from letopis.store.search import index as index_module
from letopis.store.search.analysis import word_of
from letopis.store.search.index import SearchScope, index_for
from letopis.store.search.indexer import BackgroundIndexer
from letopis.store.search.query import match, parse
from letopis.store.testing.outbox import Outbox
from tests.conformance.tables import on_sqlite
from tests.support.relays import end, until
from tests.support.sayings import all_pages, catch_up_index, new_outbox, rows_of, send

FORMS = {
    "a-1": "Вот мой ответ.",
    "a-2": "Ответы были другие",
    "a-3": "она ответила сразу",
    "a-4": "ОТВЕТЬТЕ: я не получил ответа!",
    "a-5": "Много вопросов, мало слов",
    "a-6": "у меня вопрос",
    "a-7": "ёжик в тумане",
    "a-8": "Here is the answer",
    "a-9": "two Answers, please",
    "a-10": "it was answered; she is answering",
    "a-11": "any questions?",
    "a-12": "ветер и вода, the hedgehog",
    "a-13": "кот answered на вопросы",
    "a-14": "and the or not не и",
    "a-15": "e-mail: bot@example.com, file a.b",
}
QUERIES = (
    *("ответ", "ответы", "ответили", "вопрос", "вопросами", "ЕЖИК", "ёжики", "мыло"),
    *("answer", "answers", "answered", "answering", "question", "e-mail", "bot@example.com", "a.b"),
    *("the", "и", "я", "не"),  # what the databases themselves would leave out
    *('"ответ"', '"ответа"', '"answers"', '"мой ответ"', '"ответ мой"', "вопрос answer", "answer -вопрос", "or not"),
)
ANSWERS = {"a-1", "a-2", "a-3", "a-4"}
"""Those with a form of \"ответ\"."""


def ids(page: Iterable[Hit]) -> list[str]:
    return [hit.message.id for hit in page]


async def indexed(store: ConversationStore, *said: Message, **others: list[Message]) -> Outbox:
    """Have this said in conversation ``c``, and in others by their names, and index it."""
    outbox = Outbox()
    for name, messages in ({"c": said} | others).items():
        outbox.append(name, *messages)
    await outbox.deliver(store)
    await catch_up_index(store)
    return outbox


def by_rule(typed: str, said: dict[str, str]) -> set[str]:
    """Return what the pure rule finds."""
    query = parse(typed)
    return {name for name, text in said.items() if match(query, text) is not None}


def answers(prefix: str, count: int) -> list[Message]:
    return [Message.user("ответ", id=f"{prefix}-{number}") for number in range(count)]


@pytest.fixture
async def forms(store: ConversationStore) -> Outbox:
    return await new_outbox(store, "c", *(Message.user(text, id=name) for name, text in FORMS.items()))


@pytest.mark.parametrize("by", ["index", "events"])
async def test_every_form_of_a_word_is_found(
    store: ConversationStore, forms: Outbox, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the index, and by what it has not read yet."""
    if by == "index":
        await catch_up_index(store)
    else:
        monkeypatch.setattr(store.runtime, "search_catch_up", AsyncMock())
    assert by_rule("ответы", FORMS) == ANSWERS
    for query in QUERIES:
        page = await store.search(query)
        assert sorted(ids(page)) == sorted(by_rule(query, FORMS)), query
        assert page.complete and page.next is None


WORDS = ("ответ", "ответы", "вопрос", "вопросов", "answer", "answered", "the", "и", "кот", "ёж", "x1", "你")


async def test_the_index_finds_what_the_rule_finds(store: ConversationStore) -> None:
    """Any text and any query: the databases' answers are those of the pure rule."""
    chance = random.Random(1)

    def some(most: int) -> str:
        return chance.choice([" ", ", ", "-"]).join(chance.choice(WORDS) for _ in range(chance.randrange(1, most)))

    said = {f"m-{number}": some(12) for number in range(120)}
    outbox = Outbox()
    for name, text in said.items():
        outbox.append(chance.choice("abc"), Message.user(text, id=name))
    await outbox.deliver(store)
    await catch_up_index(store)

    for _ in range(40):
        parts = [chance.choice(["{}", "{}", '"{}"', "-{}", '-"{}"']).format(some(4)) for _ in range(2)]
        typed = " ".join([some(3), *parts])
        assert set(ids(await store.search(typed, limit=1_000))) == by_rule(typed, said), typed


HOSTILE = [
    "'; DROP TABLE letopis_search; --",
    "ответ' OR '1'='1",
    "ответ AND OR NOT NEAR(ответ, 5)",
    "ответ & | ! ( ) : * <-> @@",
    "scope : ответ",
    "document:ответ^2",
    "+ответ ~ответ <ответ >ответ @4",
    "%ответ_ % :asked ? $1 %s {0}",
    "\x00ответ\x00",
    "ответ \ud800",
    "𝓸𝓽𝓿𝓮𝓽 ответ",
]


async def test_nothing_that_is_typed_is_part_of_a_query_language(store: ConversationStore) -> None:
    texts = ["ответ", *(typed.replace("\x00", "").replace("\ud800", "") for typed in HOSTILE)]
    said = {f"m-{number}": text for number, text in enumerate(texts)}
    await indexed(store, *(Message.user(text, id=name) for name, text in said.items()))
    for typed in HOSTILE:
        assert set(ids(await store.search(typed, limit=1_000))) == by_rule(typed, said), typed
        assert set(ids(await store.search(typed, owner=typed[:200].strip("\x00\ud800") or "x"))) == set(), typed
    assert "m-0" in ids(await store.search('"ответ"', limit=1_000))


@on_sqlite
async def test_a_hit_tells_why_it_is_one(store: ConversationStore, forms: Outbox) -> None:
    await catch_up_index(store)
    (hit,) = await store.search("answered вопрос")
    assert (hit.conversation_id, hit.message.id, hit.message.text) == ("c", "a-13", FORMS["a-13"])
    assert [hit.snippet[start:end] for start, end in hit.marks] == ["answered", "вопросы"]
    assert 0 <= hit.score < 1
    assert hit.message == (await store.messages("c")).items[12]


async def test_better_hits_come_first_and_of_equal_ones_the_newest(store: ConversationStore) -> None:
    others = [Message.user("ветер и вода " * 3, id=f"other-{number}") for number in range(20)]
    texts = {"exact": "слово " * 9 + "ответ", "best": "ответ ответ ответ", "later": "слово " * 9 + "ответ"}
    hits = [Message.user(text, id=name) for name, text in texts.items()]
    await indexed(store, Message.user("слово " * 9 + "ответы", id="form"), *others, *hits)
    page = await store.search("ответ")
    assert ids(page) == ["best", "later", "exact", "form"]
    best, later, exact, form = (hit.score for hit in page)
    assert best > later == exact > form


async def test_newest_of_many_matches_are_ranked(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranking them all takes seconds; what is newer than the bound is ranked as before, and pages go on behind it."""
    monkeypatch.setattr(index_module, "MAX_RANKED", 5)
    oldest, best = (Message.user("ответ ответ ответ", id=name) for name in ("oldest", "best"))
    await indexed(store, oldest, *(Message.user("слово " * 9 + "ответ", id=f"m-{number}") for number in range(4)), best)
    assert ids(await store.search("ответ", limit=3)) == ["best", "m-3", "m-2"]
    assert ids(await store.search("ответ", limit=6)) == ["best", "oldest", "m-3", "m-2", "m-1", "m-0"]


async def test_owner_is_found_behind_many_others(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "MAX_RANKED", 5)
    await new_outbox(store, "mine", ConversationStarted(owner_id="1"), Message.user("ответ", id="mine"))
    await indexed(store, *answers("m", 50))
    assert ids(await store.search("ответ", owner="1", limit=2)) == ["mine"]


async def test_pages_repeat_and_miss_nothing_while_more_is_said(empty_database_url: str) -> None:
    """Others say the word as well, so that its worth changes, and the index moves on under the pages."""
    async with ConversationStore.open(empty_database_url, migrate=True, partitions=3) as store:
        outbox = Outbox()
        there = [f"m-{number}" for number in range(60)]
        for number, name in enumerate(there):
            text = "ответ " * (number % 4 + 1) + "слово " * (number % 7)
            outbox.append(f"c-{number % 5}", Message.user(text, id=name))
            if number == 40:
                await outbox.deliver(store)
                await catch_up_index(store)
        await outbox.deliver(store)

        seen: list[str] = []
        after, turns = None, 0
        while True:
            page: Page[Hit] = await store.search("ответы", limit=7, after=after)
            seen += ids(page)
            turns += 1
            outbox.append(
                f"c-{turns % 7}",
                Message.user("ответ " * 5, id=f"new-{turns}"),
                *(Message.user("совсем другое", id=f"other-{turns}-{number}") for number in range(5)),
            )
            await send(store, outbox, "c-0", MessageEdited(message_id="m-55", content=f"ответ номер {turns}"))
            if turns % 2:
                await catch_up_index(store)
            if (after := page.next) is None:
                break

        assert (sorted(seen), turns) == (sorted(there), 9)
        assert set(ids(await store.search("ответы", limit=100))) == {*there, *(f"new-{n}" for n in range(1, turns + 1))}


@on_sqlite
async def test_a_search_shows_a_thousand_hits_at_most(store: ConversationStore) -> None:
    await indexed(store, *answers("m", 1_050))
    seen = ids(await all_pages(partial(store.search, "ответ", limit=400)))
    assert len(seen) == len(set(seen)) == 1_000
    # The newest: all fit equally well.
    assert seen[0] == "m-1049"


async def documents(store: ConversationStore, *message: int) -> list[tuple[str, str]]:
    held = sa.select(search.c.scope, search.c.document).where(search.c.version.in_(message))
    return [tuple(row) for row in await rows_of(store, held.order_by(search.c.version))]


def code_of(word: str) -> str:
    return word_of(word).exact_code


async def test_what_was_redacted_leaves_no_codes(store: ConversationStore, engine: AsyncEngine) -> None:
    outbox = await indexed(store, Message.user("тайна ответ", id="m-1"), Message.user("ответ", id="m-2"))
    assert code_of("тайна") in (await documents(store, 1))[0][1]
    assert ids(await store.search("тайна")) == ["m-1"]
    await send(store, outbox, "c", MessageRedacted(message_id="m-1"))

    # At once, in the transaction of the redaction: no index has read it yet.
    assert await documents(store, 1) == [("", "")]
    assert (ids(await store.search("тайна")), ids(await store.search("ответ"))) == ([], ["m-2"])
    await catch_up_index(store)
    assert await documents(store, 1) == [("", "")]
    assert code_of("ответ") in (await documents(store, 2))[0][1]
    if engine.dialect.name == "sqlite":
        async with engine.begin() as connection:
            await connection.exec_driver_sql(
                "CREATE VIRTUAL TABLE temp.v USING fts5vocab(main, letopis_search_words, row)"
            )
            held = {row[0] for row in await connection.exec_driver_sql("SELECT term FROM temp.v")}
        assert code_of("тайна") not in held and code_of("ответ") in held
    assert ids(await store.search("тайна")) == []


@pytest.mark.parametrize("by", ["index", "events", "late"])
async def test_what_left_the_path_is_gone(store: ConversationStore, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index knew it before, has not read it, or reads it all at once."""
    outbox = Outbox()
    for name in ("rewound", "deleted", "archived", "cleared"):
        outbox.append(name, *answers(name, 3))
    await outbox.deliver(store)
    if by == "index":
        await catch_up_index(store)
    outbox.append("rewound", ConversationRewound(to_message_id="rewound-0"), Message.user("ответ", id="rewound-3"))
    outbox.append("deleted", ConversationDeleted())
    outbox.append("archived", ConversationArchived())
    await send(store, outbox, "cleared", ConversationRewound())
    if by == "events":
        monkeypatch.setattr(store.runtime, "search_catch_up", AsyncMock())

    for _ in range(2):
        found = set(ids(await store.search("ответ")))
        assert found == {"rewound-0", "rewound-3", *(f"archived-{number}" for number in range(3))}
        await catch_up_index(store)


async def test_many_may_index_at_once(store: ConversationStore, store_url: str) -> None:
    await new_outbox(store, "c", *(Message.user(f"ответ {number}") for number in range(90)))
    async with ConversationStore.open(store_url) as other:
        done = await asyncio.gather(*(one.catch_up_search() for one in (store, other, store, other)))
    assert sum(done) == 90
    found = await rows_of(store, sa.select(sa.func.count(), sa.func.count(search.c.version.distinct())))
    assert found == [(90, 90)]
    assert await store.catch_up_search() == 0


async def test_index_cut_off_goes_on_where_it_was(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexer, "MAX_EVENTS_PER_TRANSACTION", 10)
    await new_outbox(store, "c", *answers("m", 35))
    index = type(index_for(store.url.get_backend_name()))
    written = 0
    right = index.write

    async def write(self: Any, connection: Any, made: Any) -> None:
        nonlocal written
        await right(self, connection, made)
        written += 1
        if written == 3:
            raise StoreFault(fault_class=FaultClass.UNAVAILABLE, code="cut", reason="cut off")

    monkeypatch.setattr(index, "write", write)
    with pytest.raises(StoreFault, match="cut off"):
        await store.catch_up_search()

    positions = await rows_of(store, sa.select(checkpoints.c.position).where(checkpoints.c.name == "search"))
    assert positions == [(20,)]
    assert await rows_of(store, sa.select(sa.func.count()).select_from(search)) == [(20,)]
    assert len(await store.search("ответ", limit=100)) == 35
    await catch_up_index(store)
    assert await rows_of(store, sa.select(sa.func.count()).select_from(search)) == [(35,)]


@on_sqlite
async def test_partial_search_says_so(store: ConversationStore, forms: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.runtime, "search_catch_up", AsyncMock())
    monkeypatch.setattr(finder, "MAX_UNINDEXED_EVENTS", 3)
    page = await store.search("ответ")
    assert set(ids(page)) == {"a-1", "a-2", "a-3"}
    assert (page.complete, page.unindexed) == (False, len(FORMS) - 3)
    await catch_up_index(store)
    assert (await store.search("ответ")).complete


@on_sqlite
async def test_message_and_its_edit_are_one_hit(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log is read in pieces, and the edit lies in another one."""
    monkeypatch.setattr(store.runtime, "search_catch_up", AsyncMock())
    monkeypatch.setattr(finder, "UNINDEXED_EVENTS_PER_READ", 2)
    outbox = await indexed(store, Message.user("before"))
    outbox.append("c", *(Message.user("вопрос", id=name) for name in ("m", "n")))
    await send(store, outbox, "c", *(MessageEdited(message_id=name, content="ответ") for name in ("m", "n", "m")))
    assert sorted(ids(await store.search("ответ"))) == ["m", "n"]


@on_sqlite
async def test_search_without_index(store: ConversationStore, forms: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: Any, **__: Any) -> int:
        raise StoreFault(fault_class=FaultClass.MISCONFIGURED, code="42501", reason="permission denied")

    monkeypatch.setattr(indexer.Indexer, "catch_up", refused)
    assert set(ids(await store.search("ответ"))) == ANSWERS


@on_sqlite
async def test_search_waits_a_moment(store: ConversationStore, forms: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = asyncio.Event()

    async def slowly(*_: Any, **__: Any) -> int:
        begun.set()
        await asyncio.sleep(0.2)
        return 1

    monkeypatch.setattr(indexer.Indexer, "catch_up", slowly)
    monkeypatch.setattr(store.runtime.search_catch_up, "_timeout", 0.02)
    async with asyncio.timeout(30):
        for _ in range(2):
            assert set(ids(await store.search("ответ"))) == ANSWERS
        assert begun.is_set()
        await store.close()
    with pytest.raises(Closed):
        await store.search("ответ")


@on_sqlite
async def test_index_goes_on_behind(store: ConversationStore, forms: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder, "MAX_UNINDEXED_EVENTS", 2)
    monkeypatch.setattr(store.runtime.search_catch_up, "_timeout", 0.0)
    assert not (await store.search("ответ")).complete
    await until(partial(documents, store, len(FORMS)))
    assert set(ids(await store.search("ответ"))) == ANSWERS


@on_sqlite
async def test_the_indexer_takes_in_what_comes(store: ConversationStore, forms: Outbox) -> None:
    running = asyncio.create_task(BackgroundIndexer(store.catch_up_search, poll=0.02).run())
    try:
        await send(store, forms, "c", Message.user("позже", id="later"))
        await until(partial(documents, store, 16))
    finally:
        await end(running)
    assert code_of("позже") in (await documents(store, 16))[0][1]


async def test_a_message_longer_than_any_limit_of_a_database_is_indexed(store: ConversationStore) -> None:
    # In parts: a string above 256 KiB is kept apart, and not searched.
    words = [f"слово{number}" for number in range(20_000)]
    different = [Text(" ".join(words[start : start + 10_000])) for start in (0, 10_000)]
    same = [Text("ответ " * 20_000)] * 3
    said = {"different": different, "same": same, "one": "x" * 250_000, "after": "ответ"}
    await indexed(store, *(Message.user(content, id=name) for name, content in said.items()))

    async def found() -> bool:
        return ids(await store.search("слово15999")) == ["different"]

    # InnoDB shows none of the words of a long message while it moves them from its cache to its index.
    await until(found)
    assert ids(await store.search("слово16000")) == []
    assert ids(await store.search('"слово7 слово8"')) == ["different"]
    assert set(ids(await store.search("ответ"))) == {"same", "after"}
    assert (await store.search("ответ")).complete


async def test_a_phrase_is_found_behind_very_many_of_its_words(store: ConversationStore) -> None:
    """PostgreSQL keeps 256 positions of a word."""
    said = {"late": "tea " * 256 + "and green tea", "short": "green tea", "apart": "green " + "and tea " * 300}
    await indexed(store, *(Message.user(text, id=name) for name, text in (said | {"turned": "teas, green"}).items()))
    for query, expected in (
        ('"green tea"', {"late", "short"}),
        ("green-tea", {"late", "short"}),
        ("green-teas", {"late", "short"}),
        ('"tea tea"', {"late"}),
        ('tea -"green tea"', {"apart", "turned"}),
        ('green -"tea tea"', {"short", "apart", "turned"}),
    ):
        assert set(ids(await store.search(query))) == expected, query


async def test_postgresql_goes_by_the_words_without_statistics_too(fresh_postgresql_url: str) -> None:
    """A table that has just been filled: its planner thinks that every condition finds one row."""
    scope = SearchScope(owner="1", conversation=None, bounds={0: 10_000})
    statement = index_for("postgresql").select(parse("17"), scope, limit=21)
    async with ConversationStore.open(fresh_postgresql_url, migrate=True) as store:
        await indexed(store, *(Message.user(f"ответ {number}") for number in range(3_000)))
        plan = await rows_of(store, sa.text(f"EXPLAIN {_literal(statement)}"))
    assert any("Bitmap Index Scan on ix_letopis_search_words" in row[0] for row in plan), plan
    assert not any("pk_letopis_search" in row[0] for row in plan)


def _literal(statement: sa.ClauseElement) -> str:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    return str(statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True})).replace(":", "\\:")
