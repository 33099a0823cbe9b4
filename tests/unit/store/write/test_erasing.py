"""What erases content takes all of it and nothing else; a deletion retains what forks read until none does."""

from pathlib import Path

import pytest

from letopis.store import (
    ConversationDeleted,
    ConversationStore,
    ConversationTrimmed,
    Message,
    MessageRedacted,
)
from letopis.store.testing.forks import forked
from letopis.store.testing.outbox import Outbox
from letopis.store.write.applier import Applier
from tests.support.sayings import new_outbox, send
from tests.support.sqlite_rows import rows
from tests.support.statements import over, statements_of


@pytest.mark.parametrize("retained", [1, 2])
async def test_erase_released_tells_whether_it_stripped_an_event(
    retained: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def crash(_: Applier, marks: object) -> None:
        """The process ends before the second transaction of an apply."""

    outbox = Outbox()
    async with ConversationStore.open(tmp_path / "history.db") as store:
        outbox.append("parent", Message.user("one"), Message.user("two"))
        await send(store, outbox, "fork", forked("parent", retained))
        await send(store, outbox, "parent", ConversationDeleted())
        eraser = (await store.runtime.prepared()).applier._eraser
        monkeypatch.setattr(Applier, "_erase_released", crash)
        await send(store, outbox, "fork", ConversationDeleted())
        answers = [await over(store, lambda connection: eraser.erase_released(connection, now=1)) for _ in range(2)]

    assert answers == [True, False]


async def test_erase_released_locks_no_conversation_that_retains_nothing(tmp_path: Path) -> None:
    async with ConversationStore.open(tmp_path / "history.db") as store:
        await new_outbox(store, "bystander", Message.user("one"))
        eraser = (await store.runtime.prepared()).applier._eraser
        with statements_of(store) as ran:
            assert not await over(store, lambda connection: eraser.erase_released(connection, now=1))

    assert ran
    assert "bystander" not in repr(ran)


async def test_what_a_fork_read_that_begins_and_ends_with_its_parent_is_stripped(tmp_path: Path) -> None:
    outbox = Outbox()
    async with ConversationStore.open(tmp_path / "history.db") as store:
        await send(store, outbox, "parent", Message.user("secret"))
        outbox.append("fork", forked("parent", 1), ConversationDeleted())
        await send(store, outbox, "parent", ConversationDeleted())
    stored = rows(tmp_path / "history.db", "SELECT data FROM letopis_events")

    assert len(stored) == 4
    assert "secret" not in repr(stored)


async def test_redacted_first_message_is_not_retained_for_a_fork(tmp_path: Path) -> None:
    outbox = Outbox()
    async with ConversationStore.open(tmp_path / "history.db") as store:
        await send(store, outbox, "parent", Message.user("secret", id="m"))
        await send(store, outbox, "fork", forked("parent", 1))
        await send(store, outbox, "parent", MessageRedacted(message_id="m"), ConversationDeleted())

    assert "secret" not in repr(rows(tmp_path / "history.db", "SELECT data FROM letopis_events"))


@pytest.mark.parametrize("number", [1, 21])  # events are found by the ids of their messages; or all are read
async def test_redaction_leaves_a_message_that_says_the_id_of_another(number: int, tmp_path: Path) -> None:
    outbox, ids = Outbox(), [f"m{one}" for one in range(number)]
    async with ConversationStore.open(tmp_path / "history.db") as store:
        await send(store, outbox, "c", *(Message.user("secret", id=name) for name in ids), Message.user("m0"))
        await send(store, outbox, "c", *(MessageRedacted(message_id=name) for name in ids))
        texts = [message.text for message in await store.messages("c")]

    assert texts == [*("" for _ in ids), "m0"]


@pytest.mark.parametrize(
    ("trims", "marks"),
    [
        ([4], 0),
        ([5], 3),
        ([3, 6], 3),  # the first has taken most of the room
        ([5, 9], 3),  # the first was marked, and has taken none
    ],
)
async def test_trims_of_a_delivery_are_marked_where_they_find_no_room(
    trims: list[int], marks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letopis.store.write.row_writer.MAX_ROWS_PER_TRANSACTION", 4)
    outbox = Outbox()
    async with ConversationStore.open(tmp_path / "history.db") as store:
        await send(store, outbox, "c", *(Message.user("old") for _ in range(9)))
        await send(store, outbox, "c", *(ConversationTrimmed(upto=upto, rule="default") for upto in trims))

        assert (await store.pending_tasks()).tasks == marks
