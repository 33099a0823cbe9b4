"""What is too long for one transaction is marked, a hold spares, and a refused event makes nothing else late."""

from pathlib import Path

import pytest

from letopis.outbox.event_log.append_encoding import prepare
from letopis.store import (
    ConversationDeleted,
    ConversationRewound,
    ConversationStore,
    Message,
    MessageEdited,
    MessageRedacted,
    Seen,
)
from letopis.store.model.event_types import Body
from letopis.store.testing.outbox import Outbox
from tests.support.sayings import new_outbox, send

LONG = 20


@pytest.mark.parametrize("left", [4, 15])
async def test_long_rewind_leaves_the_right_count(left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("letopis.store.write.loading.MAX_ROWS_PER_TRANSACTION", 2)
    outbox = Outbox()
    async with ConversationStore.open(tmp_path / "history.db") as store:
        await send(store, outbox, "c", *(Message.user("words", id=f"m{number}") for number in range(1, LONG + 1)))
        await send(store, outbox, "c", ConversationRewound(to_message_id=f"m{left}"))
        found = await store.conversation("c")

        assert (await store.pending_tasks()).tasks == 1
    assert found is not None
    assert found.message_count == left


@pytest.mark.parametrize("body", [ConversationDeleted(), ConversationRewound(erase=True)])
async def test_erasure_of_few_messages_with_many_events_is_left_to_steps(
    body: Body, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letopis.store.write.loading.MAX_ROWS_PER_TRANSACTION", 2)
    async with ConversationStore.open(tmp_path / "history.db") as store:
        edits = [MessageEdited(message_id="m", content=f"draft {number}") for number in range(3)]
        outbox = await new_outbox(store, "c", Message.user("words", id="m"), *edits)
        await send(store, outbox, "c", body)

        assert (await store.pending_tasks()).erasing == 1


async def superseded(path: Path, *parts: tuple[int, int], rival: bool) -> set[int]:
    """Deliver an append, 3 and 4, whose first event is refused, and an answer to it, 5; return what is superseded."""
    async with ConversationStore.open(path) as store:
        if rival:
            await new_outbox(store, "c", Message.user("seen by all that follow"))
        outbox = await new_outbox(store, "c", Message.user("tea", id="m"), MessageRedacted(message_id="m"))
        append = [MessageEdited(message_id="m", content="late"), Message.user("more")]
        outbox.append_encoded("c", prepare("c", append, after=Seen(sequence=2, version=2 + rival)).events)
        outbox.append_encoded("c", prepare("c", [Message.user("answer")], after=Seen(sequence=3)).events)
        results = [await store.apply(outbox.origin, [outbox.batch("c", *part)]) for part in parts]
    return {sequence for result in results for applied in result.applied for sequence in applied.superseded}


@pytest.mark.parametrize("rival", [False, True])
@pytest.mark.parametrize("parts", [[(3, 5)], [(3, 3), (4, 5)], [(3, 4), (5, 5)], [(3, 3), (4, 4), (5, 5)]])
async def test_refused_event_makes_neither_the_rest_of_its_append_nor_an_answer_late(
    parts: list[tuple[int, int]], rival: bool, tmp_path: Path
) -> None:
    assert await superseded(tmp_path / "history.db", *parts, rival=rival) == {3}
