"""Prove that what was erased is gone for every reader of its conversation, and stays for the forks that read it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from letopis.store import Message
from letopis.store.model.event_types import (
    Body,
    ConversationAnnotated,
    ConversationDeleted,
    ConversationRenamed,
    ConversationRewound,
    ConversationStarted,
    ConversationTagged,
    ConversationTrimmed,
    CustomEvent,
    MessageEdited,
    MessageRedacted,
    MessageSent,
    ReactionAdded,
)
from letopis.store.rules.redaction import strip_event
from letopis.store.testing.capabilities import Capability, requires
from letopis.store.testing.conformance import StoreConformance
from letopis.store.testing.destination_store import DestinationStore
from letopis.store.testing.forks import forked, texts
from letopis.store.testing.outbox import Outbox
from letopis.store.testing.redaction import assert_is_the_fold

OLD, YOUNG = "old-t0ken", "young-t0ken"
TALK: Sequence[Message | Body] = (
    ConversationStarted(owner_id="42", title=OLD),
    ConversationAnnotated(metadata={"note": OLD}),
    ConversationTagged(add=[OLD]),
    Message.user(f"{OLD} one", id="one"),
    MessageEdited(message_id="one", content=f"{OLD} edited"),
    ReactionAdded(message_id="one", key="like", value=OLD),
    Message.assistant(f"{OLD} two", id="two"),
    CustomEvent(name="note", data={"text": OLD}),
)
LATER = "later-t0ken"
CHANGES: Sequence[Message | Body] = (
    MessageEdited(message_id="one", content=LATER),
    MessageSent(message_id="two", file_path=LATER),
    Message.user(YOUNG, id="young"),
    MessageEdited(message_id="young", content=f"{YOUNG} edited"),
)
LAST = len(TALK)
"""The last version of what is erased."""
TRIM = ConversationTrimmed(upto=LAST, rule="default")
RESET = ConversationRewound(erase=True)
BOUNDED = ConversationRewound(erase=True, upto=LAST)
DELETED = ConversationDeleted()


async def seen(store: DestinationStore, name: str) -> str:
    """Return all that readers of a conversation see of it, now and in the past."""
    log = (await store.events(name)).items
    shown: list[object] = [[(event.type, event.data, event.metadata) for event in log]]
    for as_of in (None, *range(1, len(log) + 1)):
        found = await store.conversation(name, as_of=as_of)
        shown.append(None if found is None else (found.title, found.metadata, found.tags))
        for every in (False, True):
            messages = (await store.messages(name, as_of=as_of, every=every)).items
            shown.append([(message.text, message.reactions) for message in messages])
    async for event in store.subscribe():
        if event.conversation_id == name:
            shown.append((event.type, event.data, event.metadata))
        if event.position == await store.head():
            break
    return repr(shown)


class ErasureConformance(StoreConformance):
    """Reset a conversation up to a version, while others go on in it."""

    @pytest.mark.parametrize("together", [True, False])
    async def test_a_reset_up_to_a_version_spares_what_was_said_since(
        self, store: DestinationStore, *, together: bool
    ) -> None:
        """Another outbox went on after the erasure was recorded: its words stay, wherever the reset comes."""
        asker, other = Outbox("asker"), Outbox("other")
        asker.append("p", *TALK)
        await asker.deliver(store)
        # What was pending when the erasure was carried out there arrives erased.
        for body in (Message.user(OLD, id="late"), ConversationRenamed(title=OLD)):
            [event] = asker.append("p", body)
            asker.lanes["p"][-1] = strip_event(event)
        await asker.deliver(store)
        other.append(
            "p",
            Message.user(YOUNG, id="young"),
            MessageEdited(message_id="two", content=YOUNG),
            ConversationRenamed(title=YOUNG),
            ConversationTagged(add=[YOUNG]),
            Message.user("redacted", id="redacted"),
            MessageRedacted(message_id="redacted"),
            Message.user("undone", id="undone"),
            ConversationRewound(to_message_id="redacted"),
        )
        if not together:
            await other.deliver(store)
        other.append("p", BOUNDED)
        await other.deliver(store)
        other.append("p", ReactionAdded(message_id="young", key="like"), Message.user("last", id="last"))
        await other.deliver(store)

        shown = (await store.messages("p")).items
        assert [(message.id, message.text) for message in shown] == [
            ("young", YOUNG),
            ("redacted", ""),
            ("last", "last"),
        ]
        found = await store.conversation("p")
        assert found is not None
        assert (found.title, found.metadata, found.tags, found.message_count) == (YOUNG, {}, (YOUNG,), 3)
        assert (found.owner_id, found.reset_to) == ("42", LAST)
        assert OLD not in await seen(store, "p") and OLD not in await self.stored_text(store)
        await assert_is_the_fold(store, "p")
        assert [message.id for message in await store.messages("p", as_of=LAST)] == ["one", "two"]

    @pytest.mark.parametrize("together", [True, False])
    @pytest.mark.parametrize("end", [TRIM, BOUNDED], ids=["trim", "bounded"])
    async def test_an_edit_beyond_the_bound_goes_with_its_message(
        self, store: DestinationStore, end: Body, *, together: bool
    ) -> None:
        outbox = Outbox()
        outbox.append("p", *TALK, *CHANGES)
        if not together:
            await outbox.deliver(store)
        outbox.append("p", end)
        await outbox.deliver(store)
        shown, log = await seen(store, "p"), (await store.events("p", after=LAST)).items
        assert LATER not in shown and LATER not in await self.stored_text(store)
        assert [event.data.get("content", "") for event in log[:-1]] == ["", "", YOUNG, f"{YOUNG} edited"]
        assert texts((await store.messages("p")).items[-1:]) == [f"{YOUNG} edited"]
        await assert_is_the_fold(store, "p")

    @pytest.mark.parametrize("upto", [0, LAST])
    async def test_a_reset_up_to_a_version_brings_nothing_back(self, store: DestinationStore, upto: int) -> None:
        outbox = Outbox()
        outbox.append("p", *TALK, RESET)
        [event] = outbox.append("p", ConversationRenamed(title=OLD))
        outbox.lanes["p"][-1] = strip_event(event)
        await outbox.deliver(store)
        outbox.append("p", ConversationRewound(erase=True, upto=upto))
        await outbox.deliver(store)
        found = await store.conversation("p")
        assert found is not None and (found.title or None, found.metadata, found.tags) == (None, {}, ())
        await assert_is_the_fold(store, "p")

    async def test_a_reset_up_to_the_beginning_takes_nothing_that_is_stored(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append("p", *TALK, ConversationRewound(erase=True, upto=0))
        await outbox.deliver(store)
        assert [message.id for message in await store.messages("p")] == ["one", "two"]
        assert (await store.conversation("p")).title == OLD  # type: ignore[union-attr]
        await assert_is_the_fold(store, "p")


@requires(Capability.FORKS)
class ForkErasureConformance(StoreConformance):
    """Reset, trim and delete conversations that forks read, and the forks."""

    @pytest.mark.parametrize("end", [RESET, BOUNDED, TRIM, DELETED], ids=["reset", "bounded", "trim", "deletion"])
    async def test_what_a_fork_keeps_is_gone_for_its_parent(self, store: DestinationStore, end: Body) -> None:
        """Not by any past state, event or log: the words are there for the fork alone."""
        outbox = Outbox()
        outbox.append("p", *TALK)
        outbox.append("f", forked("p", LAST), Message.user("mine"))
        outbox.append("g", forked("f", 2))
        await outbox.deliver(store)
        f, g = (await store.messages("f")).items, (await store.messages("g")).items
        outbox.append("p", end, Message.user(YOUNG))
        await outbox.deliver(store)

        state = [OLD, {"note": OLD}, (OLD,)] if end is TRIM else []
        left = (await seen(store, "p")).replace(repr(OLD), "STATE") if state else await seen(store, "p")
        assert OLD not in left.replace("STATE", "")
        assert (f"'{YOUNG}'" in left) is (end is not DELETED)
        assert ((await store.messages("f")).items, (await store.messages("g")).items) == (f, g)
        assert texts(f) == [f"{OLD} edited", f"{OLD} two", "mine"] and f[0].reactions
        assert OLD in await self.stored_text(store) or type(self).stored_text is StoreConformance.stored_text
        outbox.append("f", ConversationDeleted())
        outbox.append("g", ConversationDeleted())
        await outbox.deliver(store)
        assert (f"{OLD} edited" in await self.stored_text(store)) is False

    @pytest.mark.parametrize("together", [True, False])
    @pytest.mark.parametrize("end", [TRIM, BOUNDED], ids=["trim", "bounded"])
    async def test_a_fork_keeps_an_edit_beyond_the_bound_that_it_reads(
        self, store: DestinationStore, end: Body, *, together: bool
    ) -> None:
        outbox = Outbox()
        outbox.append("p", *TALK, *CHANGES)
        outbox.append("f", forked("p", LAST + 1))
        outbox.append("g", forked("p", LAST + 3))
        if not together:
            await outbox.deliver(store)
        outbox.append("p", end)
        await outbox.deliver(store)
        outbox.append("late", forked("p", LAST + 5))
        await outbox.deliver(store)

        assert LATER not in await seen(store, "p") and LATER not in await seen(store, "late")
        assert texts((await store.messages("f")).items) == [LATER, f"{OLD} two"]
        shown = (await store.messages("g")).items
        assert texts(shown) == [LATER, f"{OLD} two", YOUNG] and shown[1].delivery_data == {"file_path": LATER}
        outbox.append("g", ConversationDeleted())
        await outbox.deliver(store)
        assert texts((await store.messages("f")).items) == [LATER, f"{OLD} two"]
        outbox.append("f", ConversationDeleted())
        await outbox.deliver(store)
        assert LATER not in await self.stored_text(store), "what was forked later holds nothing back"
        assert f"{YOUNG} edited" in await seen(store, "late")
        await assert_is_the_fold(store, "p")

    @pytest.mark.parametrize("end", [DELETED, RESET])
    async def test_a_fork_whose_messages_are_taken_back_goes_on_reading(
        self, store: DestinationStore, end: Body
    ) -> None:
        """An undo, a pop or a replacement that leaves no message is no clear: it can be read as it was."""
        outbox = Outbox()
        outbox.append("p", Message.user(OLD, id="one"))
        outbox.append("f", forked("p", 1), Message.user("mine", id="mine"))
        outbox.append("g", forked("f", 2))
        outbox.append("f", ConversationRewound.back_to(None, "undo"), Message.user("again"))
        outbox.append("late", forked("f", 4))
        outbox.append("p", end)
        await outbox.deliver(store)

        assert texts((await store.messages("f")).items) == texts((await store.messages("late")).items) == ["again"]
        assert texts((await store.messages("f", as_of=2)).items) == texts((await store.messages("g")).items)
        assert texts((await store.messages("g")).items) == [OLD, "mine"]
        outbox.append("f", ConversationRewound(to_message_id="one"))  # it is off the path already
        outbox.append("g", ConversationDeleted())
        outbox.append("late", ConversationDeleted())
        await outbox.deliver(store)
        assert texts((await store.messages("f")).items) == ["again"]
        assert texts((await store.messages("f", as_of=2)).items) == [OLD, "mine"]
        outbox.append("f", ConversationRewound())
        await outbox.deliver(store)
        assert OLD not in await self.stored_text(store)

    async def test_a_trimmed_fork_keeps_its_count_and_no_words(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append("p", Message.user(OLD, id="one"), Message.user(f"{OLD} two", id="two"), ConversationDeleted())
        outbox.append("f", forked("p", 2), Message.user("mine", id="mine"), Message.user("young", id="young"))
        outbox.append("g", forked("f", 3))
        await outbox.deliver(store)
        outbox.append("f", ConversationTrimmed(upto=2, rule="default"))
        outbox.append("late", forked("f", 4))
        await outbox.deliver(store)

        ids = ["one", "two", "mine", "young"]
        for name in ("f", "late"):
            shown = (await store.messages(name)).items
            assert [(message.id, message.text) for message in shown] == list(
                zip(ids, ["", "", "", "young"], strict=True)
            )
            assert all(message.redacted for message in shown[:3])
        assert OLD not in await seen(store, "f")
        assert texts((await store.messages("g")).items) == [OLD, f"{OLD} two", "mine", "young"]
        outbox.append("g", ConversationDeleted())
        await outbox.deliver(store)
        assert OLD not in await self.stored_text(store), "a trimmed fork holds nothing back"
        assert [message.id for message in await store.messages("f")] == ids

    async def test_a_reaction_to_a_trimmed_message_is_not_kept(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append("p", *TALK, TRIM, ReactionAdded(message_id="one", key="like", value=YOUNG))
        outbox.append("f", forked("p", LAST + 2))
        await outbox.deliver(store)
        assert [message.reactions for message in await store.messages("p")] == [(), ()]
        assert [message.reactions for message in await store.messages("p", as_of=LAST + 2)] == [(), ()]
        outbox.append("p", ConversationTrimmed(upto=LAST + 2, rule="default"))
        await outbox.deliver(store)
        assert [message.reactions for message in await store.messages("f")] == [(), ()]
        outbox.append("f", ConversationDeleted())
        await outbox.deliver(store)
        assert YOUNG not in await self.stored_text(store)
        await assert_is_the_fold(store, "p")
