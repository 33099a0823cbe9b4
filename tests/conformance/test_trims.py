"""A trim takes the content away up to a version, at once or in steps, and touches nothing after it."""

from collections.abc import Sequence

import pytest

from letopis.store import ConversationStore, ConversationTagged, ConversationTrimmed, Message, MessageEdited
from letopis.store.model.event_types import (
    Body,
    ConversationAnnotated,
    ConversationDeleted,
    ConversationRenamed,
    ConversationRewound,
    ConversationStarted,
    CustomEvent,
    MessageSent,
    ReactionAdded,
)
from letopis.store.ops.rebuild import rebuild
from letopis.store.rules.fold import fold
from letopis.store.testing.forks import forked
from letopis.store.testing.outbox import Outbox, assert_no_gaps
from tests.conformance.tables import on_sqlite, stored_text
from tests.conformance.test_tasks import take_small_steps
from tests.support.sayings import change, differences, finish_tasks, new_outbox, present, problems, send

OLD, YOUNG = "old-t0ken", "young-t0ken"
CHAT = "chat-1"


def trim(upto: int) -> ConversationTrimmed:
    return ConversationTrimmed(upto=upto, rule="default")


def talk(*, old: int = 6, young: int = 3) -> Sequence[Message | Body]:
    """A title, messages, a reaction, an edit and an event of the application; ``old + 6`` versions are old."""
    return [
        ConversationStarted(owner_id="42", title="kept title"),
        ConversationAnnotated(metadata={"kept": "metadata"}),
        *(Message.user(f"{OLD} {number}", id=f"o{number}", tokens=2) for number in range(old)),
        MessageEdited(message_id="o1", content=f"{OLD} edited"),
        MessageSent(message_id="o2", platform_ids={"telegram": 1}, file_path=OLD),
        ReactionAdded(message_id="o3", key="like", value=OLD),
        CustomEvent(name="note", data={"text": OLD}),
        *(Message.user(f"{YOUNG} {number}", id=f"y{number}", tokens=3) for number in range(young)),
        ReactionAdded(message_id="y0", key="like", value=YOUNG),
    ]


async def assert_agrees(store: ConversationStore, *names: str) -> None:
    """Rows, fold and rebuild agree, and each erased event has its cause."""
    assert await problems(store) == []
    await assert_no_gaps(store)
    for name in names:
        log = await store.events(name, first=1000)
        folded = fold(log)
        if not any(event.type == "conversation.started" and "forked_from" in event.data for event in log):
            assert (await store.messages(name, every=True)).items == folded.messages
        found = present(await store.conversation(name))
        assert found.with_changes(number=None, active=False) == folded.conversation
    assert await differences(store) == set()


@pytest.mark.parametrize("in_steps", [False, True])
@pytest.mark.parametrize("together", [False, True])
async def test_old_content_is_gone_and_young_content_is_as_it_was(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch, *, in_steps: bool, together: bool
) -> None:
    if in_steps:
        take_small_steps(monkeypatch, "write.erasing", "write.row_writer", rows=0)  # every trim is marked
    outbox = Outbox()
    outbox.append(CHAT, *talk(), MessageEdited(message_id="o0", content=f"{OLD} later"))
    outbox.append(CHAT, MessageEdited(message_id="y1", content=f"{YOUNG} 1"))
    if not together:
        await outbox.deliver(store)
        before = (await store.messages(CHAT)).items
    await send(store, outbox, CHAT, trim(12))

    async def expect() -> None:
        shown = (await store.messages(CHAT)).items
        assert [message.id for message in shown] == [*(f"o{n}" for n in range(6)), *(f"y{n}" for n in range(3))]
        assert [(m.redacted, m.text, m.reactions) for m in shown[:6]] == [(True, "", ())] * 6
        assert [message.text for message in shown[6:]] == [f"{YOUNG} {number}" for number in range(3)]
        if not together:
            assert shown[6:] == before[6:]
        log = repr((await store.events(CHAT)).items)
        assert OLD not in log and log.count(YOUNG) == 5
        found = present(await store.conversation(CHAT))
        assert (found.trimmed, found.title, found.metadata) == (12, "kept title", {"kept": "metadata"})
        assert (found.message_count, found.tokens) == (9, 21)
        assert (len(await store.search(OLD)), len(await store.search(YOUNG))) == (0, 3)

    await expect()
    assert await problems(store) == []
    assert (await store.pending_tasks()).tasks == (3 if in_steps and not together else 0)
    await finish_tasks(store)
    await expect()
    held = await stored_text(store)
    assert OLD not in held and YOUNG in held
    await assert_agrees(store, CHAT)


@on_sqlite
async def test_of_two_trims_for_one_place_the_second_changes_nothing(store: ConversationStore) -> None:
    one, two = Outbox("one"), Outbox("two")
    await send(store, one, CHAT, *talk(), trim(12))
    before = (await store.messages(CHAT, every=True)).items
    await send(store, two, CHAT, trim(12), trim(5))
    assert (await store.messages(CHAT, every=True)).items == before
    found = await store.conversation(CHAT)
    assert found is not None and (found.version, found.trimmed) == (19, 12)
    await assert_agrees(store, CHAT)
    await send(store, two, CHAT, trim(14))
    assert [message.redacted for message in await store.messages(CHAT)] == [True] * 8 + [False]
    await assert_agrees(store, CHAT)


@on_sqlite
async def test_a_trim_cannot_reach_beyond_itself(store: ConversationStore) -> None:
    await new_outbox(store, CHAT, Message.user(OLD, id="a"), trim(10_000), Message.user(YOUNG, id="b"))
    assert [message.text for message in await store.messages(CHAT)] == ["", YOUNG]
    await assert_agrees(store, CHAT)


@on_sqlite
@pytest.mark.parametrize("in_steps", [False, True])
async def test_fork_reads_on(store: ConversationStore, monkeypatch: pytest.MonkeyPatch, *, in_steps: bool) -> None:
    if in_steps:
        take_small_steps(monkeypatch, "write.erasing", "write.row_writer", rows=0)  # every trim is marked
    outbox = Outbox()
    outbox.append("p", *talk())
    await send(store, outbox, "f", forked("p", 6), Message.user("own", id="f0"))
    before = (await store.messages("f")).items
    assert [message.text for message in before] == [*(f"{OLD} {number}" for number in range(4)), "own"]
    await send(store, outbox, "p", trim(12))
    await finish_tasks(store)
    assert (await store.messages("f")).items == before
    assert all(message.redacted for message in (await store.messages("p")).items[:6])
    held = await stored_text(store)
    assert f"{OLD} 3" in held and f"{OLD} 4" not in held and f"{OLD} edited" not in held
    await assert_agrees(store, "p", "f")
    # A fork from after the trim holds nothing back.
    await send(store, outbox, "late", forked("p", 17))
    await send(store, outbox, "f", trim(1))
    await outbox.deliver(store)
    await finish_tasks(store)
    shown = (await store.messages("f")).items
    assert [message.id for message in shown] == [message.id for message in before], "counts do not change"
    assert [message.text for message in shown] == ["", "", "", "", "own"]
    held = await stored_text(store)
    assert OLD not in held and YOUNG in held and "kept title" in held
    await assert_agrees(store, "p", "f", "late")


@on_sqlite
async def test_an_edit_that_a_fork_keeps_leaves_with_it_after_a_rebuild(store: ConversationStore) -> None:
    outbox = Outbox()
    outbox.append("p", *talk(), MessageEdited(message_id="o0", content=f"{OLD} later"))
    await send(store, outbox, "f", forked("p", 17))
    await send(store, outbox, "p", trim(12))
    await change(store, "DELETE FROM letopis_conversations WHERE conversation_id = 'p'")
    assert True in [rebuilt.written async for rebuilt in rebuild(store)]
    assert (await store.messages("f")).items[0].text == f"{OLD} later"
    assert OLD not in repr((await store.events("p")).items)
    await send(store, outbox, "f", ConversationDeleted())
    await outbox.deliver(store)
    assert OLD not in await stored_text(store)


@on_sqlite
async def test_what_a_fork_reads_between_two_trims_stays(store: ConversationStore) -> None:
    """The fork began after the first trim, at a version beyond what the second one takes."""
    outbox = Outbox()
    outbox.append("p", *(Message.user(f"words {number}", id=f"m{number}") for number in range(1, 11)), trim(4))
    outbox.append("f", forked("p", 11))
    await send(store, outbox, "g", forked("p", 6))
    before = (await store.messages("f")).items
    await send(store, outbox, "p", trim(8))
    outbox.append("g", ConversationDeleted())  # has what is retained checked again
    await outbox.deliver(store)
    await outbox.deliver(store)
    assert (await store.messages("f")).items == before
    assert [message.text for message in before] == ["", "", "", "", *(f"words {number}" for number in range(5, 11))]
    await assert_agrees(store, "p")


@on_sqlite
async def test_later_changes_of_a_trimmed_message_are_not_shown(store: ConversationStore) -> None:
    outbox, late = Outbox("one"), Outbox("two")
    await send(store, outbox, CHAT, *talk(), trim(12))
    late.append(CHAT, MessageEdited(message_id="o0", content=OLD), ReactionAdded(message_id="o0", key="+", value="x"))
    await late.deliver(store)
    assert OLD not in await stored_text(store)
    assert (await store.messages(CHAT)).items[0].text == ""
    await assert_agrees(store, CHAT)


async def test_a_reset_and_a_deletion_after_a_trim_erase_the_rest(store: ConversationStore) -> None:
    for name, end in (("reset", ConversationRewound(erase=True)), ("deleted", ConversationDeleted())):
        outbox = await new_outbox(store, name, *talk(), trim(12), ConversationTagged(add=["vip"]))
        assert present(await store.conversation(name)).tags == ("vip",)
        await send(store, outbox, name, end)
        held = await stored_text(store, name)
        assert YOUNG not in held and "kept title" not in held and "vip" not in held
        assert present(await store.conversation(name)).tags == ()
    assert (await problems(store), await differences(store)) == ([], set())


async def test_rebuilding_repairs_rows_of_a_trimmed_conversation(store: ConversationStore) -> None:
    await new_outbox(store, CHAT, *talk(), trim(12), ConversationRenamed(title="second"))
    before, row = (await store.messages(CHAT, every=True)).items, await store.conversation(CHAT)
    cut = "UPDATE letopis_conversations SET trimmed = 0, tags = NULL, title = NULL"
    await change(store, "DELETE FROM letopis_messages", cut)
    assert [rebuilt.written async for rebuilt in rebuild(store, every=True)] == [True]
    assert ((await store.messages(CHAT, every=True)).items, await store.conversation(CHAT)) == (before, row)
