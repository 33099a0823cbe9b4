"""A person's messages are found by their author on every store, wherever they were written."""

import json
from io import BytesIO

import pytest
import sqlalchemy as sa

from letopis.outbox import History
from letopis.outbox.history.authored import authored
from letopis.outbox.history.exporter import Exporter
from letopis.store import ConversationStore, InvalidInput, Message, MessageRedacted, StoreUnavailable
from letopis.store.database.schema import messages
from letopis.store.model.events import utc_now
from letopis.store.ops.rebuild import rebuild
from letopis.store.testing.outbox import Outbox
from letopis.store.transfer.transcript_page import TranscriptPage
from tests.support.sayings import change, drain, send

TOKEN = "t0ken-of-"
ANN, BEN = "tg:7:1", "tg:7:2"


async def talk(history: History, group: str, *numbers: int, owner: str = "group") -> None:
    for number in numbers:
        for author in (ANN, BEN):
            words = f"{TOKEN}{author} {number}"
            await history.append(group, Message.user(words, id=f"{author}-{number}", author=author), owner=owner)


async def read(source: History | ConversationStore, author: str) -> list[tuple[str, str]]:
    return [
        (conversation.conversation_id, message.id)
        async for conversation, page in authored(source, author)
        for message in page
    ]


async def test_an_author_is_kept_by_a_redaction_and_by_a_rebuild(store: ConversationStore) -> None:
    outbox = Outbox()
    outbox.append("g", Message.user("a", id="1", author=ANN), Message.user("b", id="2", author=ANN), Message.user("c"))
    await send(store, outbox, "g", MessageRedacted(message_id="1"))
    stored = await store.messages("g")
    assert [(message.text, message.message.author) for message in stored] == [("", ANN), ("b", ANN), ("c", None)]
    assert await read(store, ANN) == [("g", "1"), ("g", "2")]
    assert [one.differences async for one in rebuild(store, check=True, every=True)] == [()]
    await change(store, sa.update(messages).where(messages.c.message_id == "2").values(author=None))
    assert [one.differences async for one in rebuild(store, every=True)] == [("messages[2].author",)]
    assert await read(store, ANN) == [("g", "1"), ("g", "2")]


async def test_pages_of_an_author_are_read_once(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("letopis.outbox.history.authored.PAGE", 2)
    outbox = Outbox()
    for name in ("б", "a", "Z", "z "):
        said = [Message.user("x", id=f"{name}{number}", author=(ANN, BEN)[number % 2]) for number in range(7)]
        outbox.append(name, *said)
    await outbox.deliver(store)
    found = await read(store, ANN)
    names = dict.fromkeys(name for name, _ in found)  # each once, with all of its messages
    assert found == [(name, f"{name}{number}") for name in names for number in (0, 2, 4, 6)]
    assert sorted(names) == sorted(("б", "a", "Z", "z "))


async def test_what_is_pending_counts(one: History, two: History) -> None:
    await talk(one, "g", 1, 2)
    await drain(one)
    await one.chat("g").edit(f"{ANN}-1", "edited since")
    await one.chat("g").redact(f"{ANN}-2")
    await talk(one, "g", 3)
    await talk(one, "late", 1)
    found = {message.id: message async for _, page in authored(one, ANN) for message in page}
    assert await read(one, ANN) == [
        *[("g", f"{ANN}-{number}") for number in (1, 2, 3)],
        ("late", f"{ANN}-1"),
    ]
    assert found[f"{ANN}-2"].redacted
    assert await read(two, ANN) == [("g", f"{ANN}-1"), ("g", f"{ANN}-2")]


async def test_an_export_of_a_person_has_no_word_of_another(one: History) -> None:
    await talk(one, "g", 1, 2, owner=BEN)
    await one.chat("g").react(f"{ANN}-1", f"{TOKEN}reaction", actor=BEN)
    await one.chat("g").rename(f"{TOKEN}title")
    await drain(one)
    await talk(one, "g", 3, owner=BEN)
    page = BytesIO()
    flow = Exporter(one, page=TranscriptPage(page, title=ANN, now=utc_now()), deliveries=True, every=True)
    text = b"".join([line async for line in flow.of_person(ANN)]).decode()
    for exported in (text, page.getvalue().decode().partition("</title>")[2]):
        assert all(f"{TOKEN}{ANN} {number}" in exported for number in (1, 2, 3))
        assert BEN not in exported and "reaction" not in exported and "title" not in exported


async def test_a_person_is_given_their_data_and_erased_by_two_lines(
    one: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letopis.outbox.history.exporter._CHUNK_BYTES", 100)
    await talk(one, "g", 1, 2)
    await one.append("own", Message.user("mine", id="own-1"), owner=ANN)
    await one.chat("own").sent("own-1", platform_ids={"telegram": 7})
    await one.records(owner=ANN).put(("state",), "key", "kept")
    file = BytesIO()

    written = await one.export(file, person=ANN)
    await one.erase(person=ANN, how="delete")

    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert written == len(lines) == 4
    assert sum(TOKEN + ANN in json.dumps(line) for line in lines) == 2
    assert '"telegram":7' in file.getvalue().decode()
    assert BEN not in file.getvalue().decode()
    assert await one.export(BytesIO(), person=ANN) == 0
    assert [message.redacted for message in await one.messages("g", last=None)] == [True, False, True, False]


@pytest.mark.parametrize("arguments", [{}, {"owner": "1", "person": "1"}, {"owner": "1", "answers": True}])
async def test_an_erasure_names_one_owner_or_person(one: History, arguments: dict[str, object]) -> None:
    await one.append("c", Message.user("hi"), owner="1")
    with pytest.raises(InvalidInput):
        await one.erase(how="delete", **arguments)  # type: ignore[arg-type]
    assert len(await one.messages("c")) == 1


async def test_an_export_that_would_lack_something_fails(alone: History) -> None:
    with pytest.raises(StoreUnavailable, match="would be missing"):
        await alone.export(BytesIO(), person=ANN)
