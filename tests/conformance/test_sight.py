"""What is gone is gone for every reader of a history, pending or delivered; a fork that reads it keeps it."""

import pytest

from letopis import ConversationStore, History, Message
from letopis.store import ConversationRewound, ConversationTrimmed, MessageEdited
from letopis.store.testing.erasure import OLD, YOUNG, seen
from tests.conformance.tables import on_sqlite, stored_text
from tests.support.sayings import Bots, assert_nowhere, differences, drain, present

CHAT, FORK = "chat-1", "fork-1"


async def shown(history: History, name: str) -> str:
    """Return all that a history shows of a conversation, now and in the past."""
    found: list[object] = []
    log = (await history.chat(name).events()).items
    found.append([(event.type, event.data, event.metadata) for event in log])
    versions = [event.version for event in log if event.version is not None]
    for as_of in (None, *versions, *(event.occurred_at for event in log)):
        state = await history.chat(name).conversation(as_of=as_of)
        found.append(state and (state.title, state.metadata, state.tags))
        for every in (False, True):
            messages = (await history.messages(name, as_of=as_of, every=every)).items
            found.append([(message.text, message.reactions) for message in messages])
    found.append((await history.chat(name).events(last=50)).items)
    found.append([hit.message.text for hit in await history.search(OLD, conversation=name)])
    return repr(found)


async def begin(history: History) -> None:
    """Begin a conversation, and a fork that reads it."""
    await history.append(CHAT, Message.user(f"{OLD} one", id="one"), Message.user(f"{OLD} two", id="two"), owner="42")
    await history.append(CHAT, MessageEdited(message_id="two", content=f"{OLD} edited"))
    await history.chat(CHAT).rename(OLD)
    await history.chat(CHAT).react("one", OLD)
    await drain(history)
    await history.chat(CHAT).fork(FORK)
    await history.append(FORK, Message.user("mine", id="mine"))
    await drain(history)


@pytest.mark.parametrize("end", ["reset", "bounded", "redact", "delete"])
@pytest.mark.parametrize("delivered", [False, True])
async def test_what_a_fork_keeps_is_gone_for_whoever_reads_its_parent(
    one: History, store: ConversationStore, end: str, *, delivered: bool
) -> None:
    await begin(one)
    kept = [(message.id, message.text) for message in await one.messages(FORK)]
    assert kept == [("one", f"{OLD} one"), ("two", f"{OLD} edited"), ("mine", "mine")]
    chat = one.chat(CHAT)
    if end == "bounded":
        upto = present(await one.chat(CHAT).conversation()).version
        await one.append(CHAT, ConversationRewound(erase=True, upto=upto))
    elif end == "redact":
        await chat.redact("one", "two")
        await chat.rename("")
    else:
        await (chat.reset() if end == "reset" else chat.delete())
    if delivered:
        await drain(one)
    left = await shown(one, CHAT)
    if end == "redact":
        assert f"{OLD} " not in left  # the earlier title and the reaction are no content of these messages
    else:
        assert OLD not in left and (not delivered or OLD not in await seen(store, CHAT))
    if end == "redact":
        kept = [("one", ""), ("two", ""), ("mine", "mine")]
    assert [(message.id, message.text) for message in await one.messages(FORK)] == kept


@pytest.mark.parametrize("delivered", [False, True])
async def test_a_reset_up_to_a_version_is_read_with_what_others_have_said_since(
    one: History, two: History, *, delivered: bool
) -> None:
    await begin(one)
    upto = present(await one.chat(CHAT).conversation()).version
    await two.append(CHAT, *(Message.user(f"{YOUNG} {number}", id=f"y{number}") for number in range(4)), owner="42")
    await two.chat(CHAT).rename(YOUNG)
    await drain(two)
    await one.append(CHAT, ConversationRewound(erase=True, upto=upto), Message.user("after", id="after"))
    if delivered:
        await drain(one)
    ids = ["y0", "y1", "y2", "y3", "after"]
    assert [message.id for message in await one.messages(CHAT)] == ids
    assert [message.id for message in await one.messages(CHAT, last=3)] == ids[-3:]
    pages, after = list[str](), None
    while True:
        page = await one.messages(CHAT, first=2, after=after)
        pages += [message.id for message in page]
        if (after := page.next) is None:
            break
    assert pages == ids
    found = present(await one.chat(CHAT).conversation())
    assert (found.message_count, found.title) == (5, YOUNG if delivered else None)
    assert [hit.message.id for hit in await one.search(OLD, conversation=CHAT)] == []
    assert OLD not in await shown(one, CHAT)


@on_sqlite
async def test_a_reset_up_to_a_version_brings_back_no_title_that_a_fork_has_retained(
    one: History, store: ConversationStore
) -> None:
    await begin(one)
    for reset in (ConversationRewound(erase=True), ConversationRewound(erase=True, upto=1)):
        await one.append(CHAT, reset)
        await drain(one)
    assert present(await one.chat(CHAT).conversation()).title is None
    assert await differences(store) == set()


@on_sqlite
async def test_popping_all_that_a_fork_shows_leaves_it_readable_as_it_was(
    one: History, store: ConversationStore
) -> None:
    await begin(one)
    for _ in range(3):
        await one.chat(FORK).pop()
    await one.chat(CHAT).delete()
    for _ in range(2):
        assert (await one.messages(FORK)).items == ()
        version = present(await one.chat(FORK).conversation()).version
        at = [message.text for message in await one.messages(FORK, as_of=2)]
        assert at == [f"{OLD} one", f"{OLD} edited", "mine"], version
        await drain(one)
    await one.chat(FORK).rewind(to=None)
    await drain(one)
    assert f"{OLD} one" not in await stored_text(store)


@on_sqlite
async def test_a_fork_that_is_trimmed_keeps_its_count(one: History) -> None:
    await begin(one)
    await one.append(FORK, ConversationTrimmed(upto=2, rule="default"), Message.user("young", id="young"))
    for _ in range(2):
        messages = (await one.messages(FORK)).items
        assert [(message.id, message.text) for message in messages] == [
            ("one", ""),
            ("two", ""),
            ("mine", ""),
            ("young", "young"),
        ]
        assert OLD not in await shown(one, FORK)
        await drain(one)


async def test_nothing_is_retained_for_a_fork_that_begins_after_a_reset(store: ConversationStore, bots: Bots) -> None:
    """Though one delivery brings both, and another reset after them."""
    one, two = bots
    await one.append("chat", Message.user(f"{OLD} said"), owner="42")
    await drain(one, two)
    await two.append("chat", Message.user("hello"))
    await one.erase(owner="42", how="reset")
    await two.erase(owner="42", how="reset")
    await two.append("chat", ConversationRewound())
    await two.chat("chat").fork("fork", owner="41")
    await two.erase(owner="42", how="reset")
    await drain(two, one)

    assert (await store.messages("fork")).items == ()
    await assert_nowhere(OLD, store, one, two)


@pytest.mark.parametrize("end", ["reset", "delete"])
@pytest.mark.parametrize("delivered", [False, True])
async def test_a_fork_retains_only_what_it_has_read(
    store: ConversationStore, one: History, end: str, delivered: bool
) -> None:
    """Not what was erased before it began, whether another fork has kept that or all comes in one delivery."""
    chat = one.chat(CHAT)
    await one.append(CHAT, Message.user(f"{OLD} one"), Message.user(f"{OLD} two"), owner="42")
    if delivered:
        await chat.fork("early", owner="41")
        await drain(one)
    await chat.reset()
    await one.append(CHAT, Message.user("read by a fork"), owner="42")
    await chat.fork(FORK, owner="41")
    await getattr(chat, end)()
    if delivered:
        await drain(one)
        assert OLD in await stored_text(store)
        await one.chat("early").delete()
    await drain(one)

    assert [message.text for message in await store.messages(FORK)] == ["read by a fork"]
    await assert_nowhere(OLD, store, one)


async def test_a_fork_that_was_pending_when_it_was_erased_inherits_nothing(
    store: ConversationStore, bots: Bots
) -> None:
    """Where another outbox has said something in it: the reset is bounded by that."""
    one, two = bots
    await one.append("chat", Message.user(f"{OLD} said"))
    await one.append("other", Message.user("inherited"))
    await drain(one)
    await two.chat("chat").fork("fork")
    await two.chat("other").fork("kept")
    await one.append("fork", Message.user("said here"))
    await drain(one)
    await two.chat("fork").reset(everywhere=True)
    await two.append("fork", Message.user("said later"))
    await drain(two, one)
    await one.chat("chat").delete()
    await drain(one, two)

    assert [message.text for message in await store.messages("fork")] == ["said later"]
    assert [message.text for message in await store.messages("kept")] == ["inherited"]
    await assert_nowhere(OLD, store, one, two)
