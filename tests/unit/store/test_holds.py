"""A hold on an owner, a conversation or an author refuses whatever would erase: asked in one place."""

from pathlib import Path

import pytest

from letopis.store import ConversationStarted, ConversationStore, Held, Message
from letopis.store.holds import refuse_held
from tests.support.sayings import new_outbox, send


@pytest.fixture
async def store(tmp_path: Path):  # type: ignore[no-untyped-def]
    async with ConversationStore.open(tmp_path / "history.db") as opened:
        outbox = await new_outbox(opened, "chat-1", ConversationStarted(owner_id="42"), Message.user("words"))
        await send(opened, outbox, "chat-2", ConversationStarted(owner_id="43"), Message.user("words", author="42"))
        yield opened


@pytest.mark.parametrize(
    ("kind", "subject", "refused", "taken"),
    [
        ("conversation", "chat-1", [("owner", "42"), ("person", "42"), ("conversation", "chat-1")], ("owner", "43")),
        ("owner", "42", [("owner", "42"), ("person", "42"), ("conversation", "chat-1")], ("conversation", "chat-2")),
        ("owner", "7", [("person", "7")], ("conversation", "chat-1")),
    ],
)
async def test_a_hold_refuses_erasures_of_what_it_covers_and_of_nothing_else(
    store: ConversationStore, kind: str, subject: str, refused: list[tuple[str, str]], taken: tuple[str, str]
) -> None:
    await store.erasures.hold(kind, subject, reason="a court asked")  # type: ignore[arg-type]
    for erased, name in refused:
        with pytest.raises(Held) as error:
            await store.erasures.register(erased, name, how="reset")  # type: ignore[arg-type]
        assert (error.value.kind, error.value.subject, error.value.reason) == (kind, subject, "a court asked")
        if erased in ("owner", "conversation"):
            with pytest.raises(Held):
                await store.erasures.check_not_held(**{erased: name})  # type: ignore[arg-type]
    assert (await store.erasures.register(*taken, how="reset")).number == 1  # type: ignore[arg-type]


async def test_a_hold_on_an_owner_covers_what_they_wrote_as_an_author(store: ConversationStore) -> None:
    await store.erasures.hold("owner", "42", reason="a court asked")
    with pytest.raises(Held):
        await store.runtime.read(lambda _, connection: refuse_held(connection, author="42"))
    await store.runtime.read(lambda _, connection: refuse_held(connection, author="43", owner="43"))
