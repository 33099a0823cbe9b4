"""Forks and time travel as a bot sees them: the same before, during and after an outage."""

from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from letopis import History, InvalidInput, Message, RecordedMessage, StoreUnavailable
from letopis.store import ConversationRewound, ConversationStarted, MessageRedacted, Page
from tests.support.outboxes import open_apart, prune
from tests.support.relays import deliver_all
from tests.support.sayings import all_pages, present

NOWHERE = "postgresql://127.0.0.1:1/none"
START = datetime(2026, 1, 1, tzinfo=UTC)


def cut_off(history: History) -> History:
    """Return a history on the same file whose store is away."""
    return open_apart(history.outbox.path, store=NOWHERE, relay=False, watch=False)


def texts(page: Page[RecordedMessage] | list[RecordedMessage]) -> list[str]:
    return [message.text for message in page]


async def paged(history: History, name: str, size: int, **given: Any) -> list[RecordedMessage]:
    """All messages by pages backward, checked against those by pages forward and those in one piece."""
    messages = partial(history.messages, name, **given)

    async def full(**place: Any) -> Page[RecordedMessage]:
        page = await messages(last=size, **place)
        assert len(page) == size or page.next is None
        return page

    backward = await all_pages(full, by="before")
    forward = await all_pages(partial(messages, first=size), most=size)
    assert forward == backward == list(await history.messages(name, last=None, **given))
    return forward


async def test_a_fork_shows_its_parent_before_its_own(history: History) -> None:
    await history.append("p", Message.user("one", id="1"), Message.assistant("two"), owner="42")
    name = (await history.chat("p").fork(title="another way", activate=True)).conversation_id
    await history.append(name, Message.user("three"))

    page = await history.messages(name)
    found = present(await history.chat(name).conversation())
    assert texts(page) == ["one", "two", "three"]
    assert [message.conversation_id for message in page] == ["p", "p", name]
    assert present(page.seen) == found.seen
    assert (found.owner_id, found.title, found.message_count, found.inherits) == ("42", "another way", 1, True)
    assert present(await history.active("42")).conversation_id == name


async def test_the_same_while_the_store_is_away(history: History) -> None:
    await history.append("p", Message.user("one", id="1"), Message.assistant("two", id="2"), owner="1")
    await deliver_all(history)
    async with cut_off(history) as alone:
        await alone.append("p", Message.user("three", id="3"))
        await alone.chat("p").fork("f", at="2")
        await alone.chat("f").fork("g")
        await alone.append("g", Message.user("mine"))
        await alone.append("p", Message.user("late"))
        expected = {"f": ["one", "two"], "g": ["one", "two", "mine"], "p": ["one", "two", "three", "late"]}
        for name, said in expected.items():
            page = await alone.messages(name)
            assert texts(page) == said
            assert not page.complete
            assert texts(await paged(alone, name, 1)) == said
    # The store is back, and nothing is delivered yet.
    assert (await history.messages("g")).complete
    for _ in range(2):
        assert texts(await paged(history, "g", 2)) == ["one", "two", "mine"]
        assert texts(await history.messages("f")) == ["one", "two"]
        await deliver_all(history)


async def test_what_is_redacted_here_is_gone_from_forks_at_once(history: History) -> None:
    await history.append("p", Message.user("secret", id="1"), Message.user("kept", id="2"))
    await history.chat("p").fork("pending")
    await deliver_all(history)
    await history.append("p", Message.user("three"))
    await history.chat("p").fork("saved", at=2)
    await history.chat("p").fork("unsaved")
    await history.append("p", MessageRedacted(message_id="1"))
    for name in ("pending", "saved", "unsaved"):
        first, *_ = await history.messages(name)
        assert (first.redacted, first.text) == (True, "")
    assert "secret" not in repr(await history.messages("p", as_of=2))


async def test_a_fork_of_what_another_bot_has_not_delivered_is_not_complete(history: History, tmp_path: Path) -> None:
    await history.append("p", Message.user("one"))
    events = await history.chat("p").events()
    point = {"conversation_id": "p", "event_id": str(events[-1].event_id)}
    async with History(tmp_path / "other.outbox.db", store=history.store, relay=False) as other:
        await other.append("f", ConversationStarted(forked_from=point), Message.user("mine"))
        for expected in (["mine"], ["one", "mine"]):
            await deliver_all(other)
            page = await other.messages("f")
            assert (texts(page), page.complete) == (expected, len(expected) == 2)
            await deliver_all(history)


async def test_what_cannot_be_forked_is_refused(history: History) -> None:
    await history.append("p", Message.user("one", id="1"))
    await deliver_all(history)
    wrong: list[tuple[str, str, dict[str, Any]]] = [
        ("conversation_id", "nobody", {}),
        *(("at", "p", {"at": at}) for at in (9, 0, True, 1.5, "nowhere")),
        ("fork_id", "p", {"fork_id": "p"}),
    ]
    for field, parent, given in wrong:
        with pytest.raises(InvalidInput, check=lambda refused, field=field: refused.field == field):
            await history.chat(parent).fork(**given)
    assert (await history.status()).pending == 0


async def test_a_fork_names_its_point_by_event_and_by_version_where_it_has_one(history: History) -> None:
    async def point(**at: Any) -> tuple[int | None, UUID | None]:
        receipt = await history.chat("p").fork(**at)
        found = present(await history.chat(receipt.conversation_id).conversation())
        return present(found.forked_from).version, present(found.forked_from).event_id

    await history.append("p", Message.user("one"), Message.user("two"))
    await deliver_all(history)
    events = await history.chat("p").events()
    assert await point() == (3, events[2].event_id)
    assert await point(at=2) == (2, events[1].event_id)
    await history.append("p", Message.user("three"))
    assert await point() == (None, (await history.chat("p").events())[-1].event_id)
    await deliver_all(history)
    await prune(history, keep_last=0)
    async with cut_off(history) as alone:
        with pytest.raises(StoreUnavailable, match="is unreachable"):
            await alone.chat("p").fork()


async def test_time_travel_over_what_is_pending(history: History) -> None:
    """As of a time, it contains what was appended by then, saved or not; as of a version, what is saved."""
    chat = history.chat("p")
    for seconds, what in enumerate(
        (
            Message.user("0"),
            Message.user("1", id="1"),
            Message.user("2", id="2"),
            ConversationRewound(to_message_id="1"),
            Message.user("4"),
        )
    ):
        await history.append("p", what, occurred_at=START + timedelta(seconds=seconds))
        if seconds == 1:
            await deliver_all(history)
    pending = []
    for seconds, said in enumerate((["0"], ["0", "1"], ["0", "1", "2"], ["0", "1"], ["0", "1", "4"])):
        moment = START + timedelta(seconds=seconds, milliseconds=500)
        assert texts(await paged(history, "p", 2, as_of=moment)) == said
        assert present(await chat.conversation(as_of=moment)).message_count == len(said)
        pending.append((moment, [one.event_id for one in await history.messages("p", as_of=moment)]))
    assert texts(await history.messages("p", as_of=10)) == ["0", "1"]
    assert texts(await history.messages("p", as_of=2)) == ["0"]
    assert await chat.conversation(as_of=START - timedelta(1)) is await chat.conversation(as_of=0) is None
    assert texts(await history.messages("p", as_of=START - timedelta(1))) == []

    await deliver_all(history)
    for moment, ids in pending:
        assert [one.event_id for one in await history.messages("p", as_of=moment)] == ids
        assert await history.messages("p", as_of=moment) == await history.store.messages("p", as_of=moment)
        assert await chat.conversation(as_of=moment) == await history.store.conversation("p", as_of=moment)
    async with cut_off(history) as alone:
        for past, said in ((pending[1][0], ["0", "1"]), (2, [])):
            page = await alone.messages("p", as_of=past)
            assert (texts(page), page.complete) == (said, False)
        with pytest.raises(StoreUnavailable, match="does not hold that past"):
            await alone.chat("p").conversation(as_of=2)


async def test_time_travel_of_a_fork_reads_its_parent_at_the_fork_point(history: History) -> None:
    await history.append("p", Message.user("one"), occurred_at=START)
    await history.chat("p").fork("f")
    await history.append("f", Message.user("two", id="2"), Message.user("three"))
    await history.append("p", Message.user("late"))
    moment = datetime.now(UTC)
    await history.append("f", ConversationRewound(to_message_id=None))
    for _ in range(2):
        assert texts(await history.messages("f", as_of=moment)) == ["one", "two", "three"]
        assert texts(await history.messages("f")) == []
        await deliver_all(history)
    assert texts(await paged(history, "f", 1, as_of=2)) == ["one", "two"]
    assert texts(await history.messages("f", as_of=4)) == []


async def test_fork_shows_what_a_superseded_redaction_left(history: History, tmp_path: Path) -> None:
    """The store set the redaction aside, as another outbox was faster: it hides nothing, in forks neither."""
    await history.append("parent", Message.user("one", id="1"), Message.user("two", id="2"))
    await deliver_all(history)
    await history.append("parent", MessageRedacted(message_id="1"), after=await history.messages("parent"))
    async with History(tmp_path / "rival.outbox.db", store=history.store, relay=False) as rival:
        await rival.append("parent", Message.user("three", id="3"))
        await deliver_all(rival)
    await deliver_all(history)
    assert texts(await history.messages("parent")) == ["one", "two", "three"]
    await history.chat("parent").fork("fork", at="2")
    assert texts(await history.messages("fork")) == ["one", "two"]
