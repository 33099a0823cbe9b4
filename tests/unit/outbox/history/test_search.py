"""A search includes pending messages, and excludes what was rewound here, before the store knows of it."""

import asyncio
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from letopis.outbox import History
from letopis.outbox.pending_reads import pending_search
from letopis.store import ConversationRewound, Hit, InvalidInput, Message, MessageEdited, MessageRedacted, Page, Seen
from letopis.store.model.event_types import ConversationDeleted, ConversationStarted, ReactionAdded
from letopis.store.read.paging import CursorCodec
from letopis.store.testing.outbox import Outbox
from tests.support.relays import deliver_all, sql
from tests.support.sayings import send


def opened(folder: Path, **options: Any) -> History:
    return History(folder / "bot.outbox.db", relay=False, watch=False, **options)


def ids(page: Iterable[Hit]) -> list[str]:
    return [hit.message.id for hit in page]


async def say(history: History, conversation: str, **messages: str) -> None:
    await history.append(conversation, *(Message.user(text, id=name) for name, text in messages.items()))


async def test_what_is_pending_is_found_and_comes_first(history: History) -> None:
    await say(history, "a", old="старый ответ", other="мимо")
    await deliver_all(history)
    await say(history, "a", new="новые ответы")
    await say(history, "b", newer="ответила", elsewhere="ветер")
    await history.append("b", ReactionAdded(message_id="newer", key="👍"))

    page = await history.search("ответ")

    assert ids(page) == ["newer", "new", "old"]
    assert page.complete and page.next is None
    assert [hit.message.saved for hit in page] == ["pending", "pending", "saved"]
    assert [hit.snippet[a:b] for hit in page for a, b in hit.marks] == ["ответила", "ответы", "ответ"]
    assert page[0].score > 1 > page[2].score
    await deliver_all(history)
    assert set(ids(await history.search("ответ"))) == {"newer", "new", "old"}


@pytest.mark.parametrize("saved", [True, False])
async def test_what_is_taken_back_here_is_not_found_at_once(history: History, saved: bool) -> None:
    for name in ("redacted", "edited", "rewound", "deleted", "cleared"):
        await say(history, name, **{f"{name}-1": "ответ раз", f"{name}-2": "ответ два"})
    if saved:
        await deliver_all(history)
        assert len(await history.search("ответ")) == 10

    await history.append("redacted", MessageRedacted(message_id="redacted-1"))
    await history.append("edited", MessageEdited(message_id="edited-1", content="вопрос"))
    await history.append(
        "rewound", ConversationRewound(to_message_id="rewound-1"), Message.user("ответ три", id="three")
    )
    await history.append("deleted", ConversationDeleted())
    await history.append("cleared", ConversationRewound())

    for _ in range(2):
        assert set(ids(await history.search("ответ"))) == {"redacted-2", "edited-2", "rewound-1", "three"}
        page = await history.search("вопрос")
        assert [(hit.message.id, hit.message.role, hit.message.edited) for hit in page] == [("edited-1", "user", True)]
        await deliver_all(history)


async def test_nothing_of_another_owner_is_found(history: History, tmp_path: Path) -> None:
    await history.append("a", Message.user("ответ", id="a"), owner="1")
    await history.append("b", Message.user("ответ", id="b"), owner="2")
    await say(history, "c", c="ответ")
    await deliver_all(history)
    for name in "abc":
        await say(history, name, **{f"{name}2": "ответ"})
    await history.append("d", Message.user("ответ", id="d"), owner="1")

    assert set(ids(await history.search("ответ", owner="1"))) == {"a", "a2", "d"}
    assert set(ids(await history.search("ответ", owner="2"))) == {"b", "b2"}
    assert set(ids(await history.search("ответ", conversation="c"))) == {"c", "c2"}
    assert ids(await history.search("ответ", conversation="c", owner="1")) == []
    assert ids(await history.search("ответ", owner="3")) == []
    # Another outbox knows nothing of the owner, and adds to the conversation.
    async with History(tmp_path / "other.outbox.db", store=history.store, relay=False, watch=False) as other:
        await say(other, "a", a3="ответ")
        await say(other, "b", b3="ответ")
        await other.append("c", ConversationStarted(owner_id="1"), Message.user("ответ", id="c3"))
        assert set(ids(await other.search("ответ", owner="1"))) == {"a", "a3", "c3"}
        assert set(ids(await other.search("ответ", owner="2"))) == {"b", "b3"}


async def test_search_goes_by_the_owner_in_the_store_once_all_is_delivered(history: History) -> None:
    await send(history.store, Outbox("other.outbox.db"), "a", Message.user("мимо"))
    # The store puts the owner aside: the condition does not hold there.
    await history.append("a", ConversationStarted(owner_id="1"), expected=Seen(sequence=0, version=0))
    await say(history, "a", one="ответ", two="ответ")

    first = await history.search("ответ", owner="1", limit=1)
    await deliver_all(history)
    second = await history.search("ответ", owner="1", after=first.next)

    assert (ids(first), ids(second)) == (["two"], [])


async def test_pages_repeat_and_miss_nothing_while_what_was_pending_is_saved(history: History) -> None:
    await say(history, "a", **{f"old-{number}": "ответ" for number in range(8)})
    await deliver_all(history)
    await say(history, "b", **{f"new-{number}": "ответы" for number in range(7)})
    await history.append("a", MessageEdited(message_id="old-3", content="ответ, подумав"))

    seen: list[str] = []
    after, turns = None, 0
    while True:
        page: Page[Hit] = await history.search("ответ", limit=3, after=after)
        assert len(page) <= 3
        seen += ids(page)
        turns += 1
        await say(history, "b", **{f"later-{turns}": "ответ ответ"})
        if turns == 2:
            await history.append("b", MessageRedacted(message_id="new-0"))
        if turns % 2:
            await deliver_all(history)
        if (after := page.next) is None:
            break

    assert len(seen) == len(set(seen))
    # Redacted before its page came.
    assert set(seen) == {*(f"old-{number}" for number in range(8)), *(f"new-{number}" for number in range(1, 7))}


async def test_while_the_store_is_away_the_outbox_is_searched(tmp_path: Path) -> None:
    async with opened(tmp_path) as history:
        await history.append("a", Message.user("старый ответ", id="saved"), owner="1")
        await say(history, "b", gone="ответ", edited="ответ", kept="ответы")
        await deliver_all(history)
    async with opened(tmp_path, store="postgresql://bot@127.0.0.1:1/history", read_timeout=0.5) as history:
        await say(history, "b", new="ответила")
        await history.append("b", MessageRedacted(message_id="gone"), MessageEdited(message_id="edited", content="?"))

        page = await history.search("ответ")

        assert ids(page) == ["new", "kept", "saved"]
        assert not page.complete
        assert [hit.message.saved for hit in page] == ["pending", "saved", "saved"]
        assert ids(await history.search("ответ", owner="1")) == ["saved"]
        first = await history.search("ответ", limit=2)
        second = await history.search("ответ", limit=2, after=first.next)
        assert ids(first) + ids(second) == ["new", "kept", "saved"]
        assert second.next is None
        with pytest.raises(InvalidInput):
            await history.search("???")
    async with opened(tmp_path) as history:
        # The store is back: what was shown during the outage is not shown again.
        second = await history.search("ответ", limit=20, after=first.next)
        assert ids(second) == ["saved"]


async def test_more_than_can_be_looked_through_is_said(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    await say(history, "a", one="ответ", two="тайна")
    await deliver_all(history)
    monkeypatch.setattr(pending_search, "MAX_SEARCHED_EVENTS", 2)
    await history.append("a", *(Message.user("ответ") for _ in range(3)))
    await history.append("a", MessageRedacted(message_id="two"))
    await say(history, "b", three="ответ")

    page = await history.search("ответ")

    assert ids(page) == ["three", "one"]
    assert not page.complete
    # What takes something back is heeded, however much there is.
    assert ids(await history.search("тайна")) == []


async def test_a_damaged_event_hides_itself_only(history: History) -> None:
    await say(history, "a", one="ответ")
    await say(history, "b", two="ответ", three="ответ")
    await sql(history.outbox, "UPDATE letopis_outbox_events SET data = '{broken' WHERE data LIKE '%two%'")
    page = await history.search("ответ")
    assert ids(page) == ["three", "one"]
    assert not page.complete


async def test_what_is_no_place_is_refused(history: History) -> None:
    encode = CursorCodec("history-search", "hits").encode
    beyond: list[tuple[Any, ...]] = [([1], 2, None), ([-1], 0, None), ([1] * 1_001, 0, None)]
    of_no_kind: list[tuple[Any, ...]] = [(1,), (["a"], 0, None), ([], 0, 5), ([], 0, "no place of a store")]
    for after in ("x", *(encode(*place) for place in beyond + of_no_kind)):
        with pytest.raises(InvalidInput, match="after"):
            await history.search("ответ", after=after)
    with pytest.raises(InvalidInput, match="limit"):
        await history.search("ответ", limit=0)


class TestCommand:
    @pytest.fixture(autouse=True)
    def said(self, elsewhere: None, tmp_path: Path) -> None:
        async def say_all() -> None:
            async with opened(tmp_path) as history:
                await history.append("chat-1", Message.user("Где мой ответ?", id="m-1"), owner="42")
                await history.append("chat-2", Message.assistant("Ответы\x1b[31m тут", id="m-2"), owner="43")
                await deliver_all(history)
                await history.append("chat-1", Message.user("ответь же", id="m-3"))

        asyncio.run(say_all())

    def test_it_shows_what_it_found(self, letopis: Any) -> None:
        code, out, err = letopis("history", "search", "ответ")
        assert (code, err) == (0, "")
        lines = out.splitlines()
        assert lines[0].startswith("chat-1  ") and lines[0].endswith("user  [pending]")
        assert lines[1] == "    ответь же"
        assert {lines[3], lines[5]} == {"    Где мой ответ?", "    Ответы [31m тут"}

    def test_the_json_is_what_is_documented(self, letopis: Any, tmp_path: Path) -> None:
        def found(*options: str, where: Sequence[str] = ()) -> Any:
            code, out, _ = letopis(*where, "history", "search", "ответ", *options, "--json")
            assert code == 0
            return json.loads(out)

        first = found("--limit", "2")
        assert set(first) == {"hits", "next", "complete", "unindexed"}
        assert (first["complete"], first["unindexed"]) == (True, 0)
        assert set(first["hits"][0]) == {"conversation_id", "message", "snippet", "marks", "score"}
        assert len(found("--after", first["next"])["hits"]) == 1
        alone = ("--outbox", "none.db", "--store", str(tmp_path / "bot.history.db"))
        for options, where, expected in (
            (("--owner", "42"), (), {"m-3", "m-1"}),
            (("--conversation", "chat-2"), (), {"m-2"}),
            ((), alone, {"m-1", "m-2"}),
        ):
            assert {hit["message"]["id"] for hit in found(*options, where=where)["hits"]} == expected

    def test_nothing_found_is_3_and_no_word_is_2(self, letopis: Any) -> None:
        assert letopis("history", "search", "ветер")[0] == 3
        code, out, err = letopis("history", "search", "???")
        assert out == "" and "no word" in err
        assert code in (1, 2)
        assert letopis("history", "search", "--", "-ответ")[0] == code
