"""What an import asks of the history store does not grow with the conversation; what an export holds of each."""

import json
from collections.abc import Collection, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from letopis import ConversationStore, Message
from letopis.ops.transfer import importer
from letopis.ops.transfer.importer import ImportCounts, Importer
from letopis.outbox import History, OutboxFile, Relay, Retention
from letopis.outbox.event_log.retention import Pruner
from letopis.outbox.history.exporter import Exporter
from letopis.store.read.reader import Reader
from letopis.store.transfer.jsonl import Line, Refused
from tests.support.relays import deliver_all

COUNT = 200


def lines(*, changed: int | None = None, count: int = COUNT) -> Iterator[Line]:
    for number in range(count):
        text = "changed" if number == changed else f"words of {number}"
        message = Message.user(text, id=f"m{number}")
        yield Line(number=number + 1, size=10, conversation_id="chat", message=message)


async def imported(
    outbox: OutboxFile, store: ConversationStore, given: Iterator[Line]
) -> tuple[ImportCounts, list[int]]:
    refused: list[Refused] = []
    with Importer(outbox, store, refused.append) as run:
        counts = await run.take(given)
    return counts, [one.number for one in refused]


@pytest.fixture(params=["pruned", "another"])
async def again(
    request: pytest.FixtureRequest, outbox: OutboxFile, store: ConversationStore, tmp_path: Path
) -> OutboxFile:
    """An outbox that is to import what the store alone holds."""
    await imported(outbox, store, lines())
    await Relay(outbox, store).drain()
    if request.param == "another":
        return await OutboxFile.open(tmp_path / "another.outbox.db")
    prune = Pruner(Retention(keep_last=0, keep_for=timedelta(0)), outbox.now_us)
    while await outbox.write(prune):
        pass
    return outbox


async def test_each_chunk_is_compared_with_as_many_events_as_it_has_lines(
    again: OutboxFile, store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer, "CHUNK_LINES", 20)
    compared = list[int]()
    digests = Reader.digests

    async def counted(self: Reader, connection: Any, conversation_id: str, ids: Collection[UUID]) -> dict[UUID, Any]:
        found = await digests(self, connection, conversation_id, ids)
        compared.append(len(found))
        return found

    async def none(self: ConversationStore, conversation_id: str, *, after: int = 0, limit: int = 500) -> object:
        assert limit == 1, "the whole conversation is read"
        return await events(self, conversation_id, after=after, limit=limit)

    events = ConversationStore.events
    monkeypatch.setattr(Reader, "digests", counted)
    monkeypatch.setattr(ConversationStore, "events", none)

    counts, refused = await imported(again, store, lines(changed=150, count=COUNT + 20))
    assert (counts.imported, counts.known, refused) == (20, COUNT - 1, [151])
    assert compared == [20] * (COUNT // 20) + [0]
    if again.path.name.startswith("another"):
        await again.close()


async def test_what_the_store_has_erased_counts_as_known(
    outbox: OutboxFile, store: ConversationStore, tmp_path: Path
) -> None:
    await imported(outbox, store, lines())
    await Relay(outbox, store).drain()
    async with History(tmp_path / "eraser.outbox.db", store=store, relay=False, watch=False) as eraser:
        await eraser.chat("chat").reset()
        await deliver_all(eraser)
    another = await OutboxFile.open(tmp_path / "another.outbox.db")
    counts, refused = await imported(another, store, lines(changed=3))
    await another.close()
    assert (counts.imported, counts.known, refused) == (0, COUNT, [])


async def exported(history: History) -> list[dict[str, Any]]:
    await deliver_all(history)
    return [json.loads(line) async for line in Exporter(history).of_all()]


async def test_a_fork_is_whole_without_its_parent(history: History) -> None:
    await history.append("parent", Message.user("one", id="m1"), Message.assistant("two", id="m2"))
    await history.chat("parent").fork("fork", at="m1")
    await history.append("fork", Message.assistant("another two", id="m3"))
    contents = {(one["conversation_id"], one["content"]) for one in await exported(history)}
    assert contents == {("parent", "one"), ("parent", "two"), ("fork", "one"), ("fork", "another two")}


async def test_what_is_archived_is_exported_and_what_is_deleted_is_not(history: History) -> None:
    for name in ("open", "archived", "deleted"):
        await history.append(name, Message.user(f"in {name}"))
    await history.chat("archived").archive()
    await history.append("open", Message.assistant("as far as", status="interrupted"))
    await history.chat("deleted").delete()
    found = await exported(history)
    assert sorted(one["conversation_id"] for one in found) == ["archived", "open", "open"]
    assert [one["status"] for one in found if one["content"] == "as far as"] == ["interrupted"]
