"""Prove that a fork reads its ancestors as they were when it was made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from letopis.store import Event, Message, MessageEdited, MessageSent
from letopis.store.model.conversations import RecordedMessage
from letopis.store.model.event_types import (
    ConversationArchived,
    ConversationDeleted,
    ConversationRewound,
    ConversationStarted,
    MessageRedacted,
    ReactionAdded,
    ReactionRemoved,
)
from letopis.store.rules.fold import fold
from letopis.store.rules.reducer import NO_MESSAGE
from letopis.store.testing.capabilities import Capability, requires
from letopis.store.testing.conformance import StoreConformance
from letopis.store.testing.destination_store import DestinationStore
from letopis.store.testing.outbox import Outbox
from letopis.store.testing.random_events import Talk
from letopis.store.testing.time_travel import paged


def forked(of: str, version: int | None = None, **given: Any) -> ConversationStarted:
    """Return the beginning of a fork of a conversation."""
    place = {"conversation_id": of} | ({} if version is None else {"version": version})
    return ConversationStarted(forked_from=place | given)


async def by_hand(store: DestinationStore, name: str, version: int | None = None) -> list[RecordedMessage]:
    """Return the path of a conversation, folded event by event, its ancestors' messages first."""
    log = (await store.events(name, first=10_000)).items
    folded = fold(log[:version])
    found = folded.conversation
    if found is None or not found.inherits or (fork := found.forked_from) is None:
        return list(folded.path)
    upto = fork.version
    if upto is None:
        parent = await store.events(fork.conversation_id, first=10_000)
        upto = next(event.version for event in parent if event.event_id == fork.event_id)
    inherited = await by_hand(store, fork.conversation_id, upto)
    ids = [message.id for message in inherited]
    if found.inherited_to == NO_MESSAGE:
        inherited = []
    elif found.inherited_to in ids:
        inherited = inherited[: len(ids) - ids[::-1].index(found.inherited_to)]
    return [*inherited, *folded.path]


def texts(messages: Sequence[RecordedMessage]) -> list[str]:
    """Return the texts of messages."""
    return [message.text for message in messages]


@requires(Capability.FORKS)
class ForkConformance(StoreConformance):
    """Read forks of forks, and change or erase their ancestors."""

    async def test_a_fork_reads_its_parent_up_to_a_version(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append("p", Message.user("one"), Message.assistant("two"), Message.user("three"))
        outbox.append("f", forked("p", 2), Message.user("mine"))
        await outbox.deliver(store)

        page = await store.messages("f")
        assert texts(page.items) == ["one", "two", "mine"]
        assert [(message.conversation_id, message.version) for message in page] == [("p", 1), ("p", 2), ("f", 2)]
        assert page.complete and page.next is None
        found = await store.conversation("f")
        assert found is not None and (found.message_count, found.inherits) == (1, True)
        # Versions are the conversation's own.
        assert texts((await store.messages("f", after=0)).items) == ["mine"]
        assert texts((await store.messages("f", before=2)).items) == ["one", "two"]

    async def test_a_redacted_message_keeps_its_reactions_where_a_fork_reads_it(self, store: DestinationStore) -> None:
        """The parent is reset: what the fork reads of it stays as it was when the fork was made."""
        outbox = Outbox()
        outbox.append("p", Message.user("one", id="m"), Message.assistant("two", id="n"))
        outbox.append("p", *(ReactionAdded(message_id=one, key="like", actor="7") for one in ("m", "n")))
        outbox.append("p", MessageRedacted(message_id="m"))
        outbox.append("f", forked("p", 5))
        await outbox.deliver(store)
        before = (await store.messages("f")).items
        outbox.append("p", ConversationRewound(erase=True))
        await outbox.deliver(store)

        assert (await store.messages("f")).items == before
        assert [(one.redacted, len(one.reactions)) for one in before] == [(True, 1), (False, 1)]

    @pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
    async def test_pages_go_on_over_every_seam(self, store: DestinationStore, size: int) -> None:
        """Fork forks of forks, one of them without messages of its own."""
        outbox = Outbox()
        outbox.append("a", *(Message.user(f"a{number}", id=f"a{number}") for number in range(5)))
        outbox.append("b", forked("a", 4), *(Message.user(f"b{number}", id=f"b{number}") for number in range(4)))
        outbox.append("c", forked("b", 3))
        outbox.append("d", forked("c", 1), *(Message.user(f"d{number}", id=f"d{number}") for number in range(3)))
        outbox.append("e", forked("d", 4), ConversationRewound(to_message_id="b1"), Message.user("e0"))
        outbox.append("f", forked("e", 3), ConversationRewound(to_message_id="a1"), Message.user("f0"))
        outbox.append("g", forked("f", 3), ConversationRewound())
        outbox.append("h", forked("g", 2), Message.user("h0"))
        await outbox.deliver(store)

        expected = {
            "d": ["a0", "a1", "a2", "a3", "b0", "b1", "d0", "d1", "d2"],
            "e": ["a0", "a1", "a2", "a3", "b0", "b1", "e0"],
            "f": ["a0", "a1", "f0"],
            "g": [],
            "h": ["h0"],
        }
        for name, said in expected.items():
            assert texts(await by_hand(store, name)) == said
            assert texts(await paged(store, name, size)) == said
            assert await paged(store, name, size) == await by_hand(store, name)

    @pytest.mark.parametrize("seed", [0, 1])
    async def test_random_forks_are_the_fold_of_their_events(self, store: DestinationStore, seed: int) -> None:
        """Fork random conversations at random points while all go on, with redactions and rewinds."""
        outbox, talks, names = Outbox(), dict[str, Talk](), ["p"]
        talks["p"] = Talk(seed)
        for number in range(30):
            chance = talks["p"].chance
            name = chance.choice(names)
            outbox.append(name, *(talks[name].next(name) for _ in range(chance.randrange(1, 7))))
            await outbox.deliver(store)
            if number % 4 == 3:
                parent, fork = chance.choice(names), f"f{number}"
                head = await store.conversation(parent)
                assert head is not None
                version = chance.randrange(1, head.version + 1)
                inherited = [message.id for message in await by_hand(store, parent, version)]
                talks[fork] = Talk(seed * 100 + number, elsewhere=inherited)
                outbox.append(fork, forked(parent, version))
                names.append(fork)
        await outbox.deliver(store)

        for name in names:
            whole = await by_hand(store, name)
            assert list(await store.messages(name)) == whole
            assert await paged(store, name, 3) == whole
            head = await store.conversation(name)
            assert head is not None
            for version in range(0, head.version + 1, 4):
                assert list(await store.messages(name, as_of=version)) == (
                    await by_hand(store, name, version) if version else []
                )

    async def test_what_the_parent_goes_through_later_is_not_seen(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append(
            "p",
            Message.user("one", id="1"),
            Message.assistant("two", id="2"),
            ReactionAdded(message_id="1", key="+"),
            MessageEdited(message_id="2", content="two, edited"),
        )
        outbox.append("f", forked("p", 4))
        await outbox.deliver(store)
        before = await store.messages("f")
        outbox.append(
            "p",
            MessageEdited(message_id="2", content="edited again"),
            MessageSent(message_id="2", platform_ids={"telegram": 1}),
            ReactionRemoved(message_id="1", key="+"),
            ReactionAdded(message_id="2", key="-"),
            ConversationRewound(to_message_id="1"),
            Message.assistant("other"),
            ConversationArchived(),
        )
        await outbox.deliver(store)

        assert texts(before.items) == ["one", "two, edited"]
        assert await store.messages("f") == before
        assert texts((await store.messages("p")).items) == ["one", "other"]
        outbox.append("f", Message.user("mine"))
        outbox.append("g", forked("f", 2))
        await outbox.deliver(store)
        assert list(await store.messages("g")) == [*before, (await store.messages("f"))[-1]]

    async def test_what_is_redacted_in_the_parent_is_gone_everywhere(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append("p", Message.user("secret", id="1"), MessageEdited(message_id="1", content="secret too"))
        outbox.append("f", forked("p", 2))
        outbox.append("g", forked("f", 1))
        await outbox.deliver(store)
        assert texts((await store.messages("g")).items) == ["secret too"]
        outbox.append("p", MessageRedacted(message_id="1"))
        await outbox.deliver(store)

        for name in ("p", "f", "g"):
            (message,) = await store.messages(name)
            assert (message.redacted, message.text, message.edited) == (True, "", False)
        assert "secret" not in await self.stored_text(store, "p")

    async def test_a_deleted_parent_is_kept_for_as_long_as_it_is_read(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append(
            "p", Message.user("first", id="1"), ReactionAdded(message_id="1", key="+"), Message.user("second")
        )
        outbox.append("f", forked("p", 2), Message.user("my turn"))
        outbox.append("g", forked("f", 2), Message.user("again"))
        await outbox.deliver(store)
        f, g = (await store.messages("f")).items, (await store.messages("g")).items
        outbox.append("p", ConversationDeleted())
        await outbox.deliver(store)

        assert (await store.messages("p")).items == ()
        assert texts((await store.messages("p", as_of=2)).items) == [""]
        assert (await store.messages("f")).items == f
        assert (await store.messages("g")).items == g
        assert "second" not in await self.stored_text(store, "p")

        outbox.append("f", ConversationDeleted())
        await outbox.deliver(store)
        assert (await store.messages("f")).items == ()
        assert (await store.messages("g")).items == g
        outbox.append("g", ConversationDeleted())
        await outbox.deliver(store)
        for name, said in (("p", "first"), ("f", "my turn"), ("g", "again")):
            assert said not in await self.stored_text(store, name)
            assert (await store.messages(name)).items == ()

    async def test_a_fork_that_is_cleared_lets_its_parent_go(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append("p", Message.user("first"))
        outbox.append("f", forked("p", 1))
        await outbox.deliver(store)
        outbox.append("p", ConversationDeleted())
        await outbox.deliver(store)
        assert texts((await store.messages("f")).items) == ["first"]
        outbox.append("f", ConversationRewound())
        await outbox.deliver(store)

        assert "first" not in await self.stored_text(store, "p")
        assert (await store.messages("f")).items == ()

    async def test_a_fork_and_the_deletion_of_its_parent_may_arrive_together(self, store: DestinationStore) -> None:
        outbox = Outbox()
        said = outbox.append("p", Message.user("first"), Message.user("second"), ConversationDeleted())
        outbox.append("f", forked("p", event_id=str(said[0].event_id)))
        outbox.append("a", forked("p", 1))
        await outbox.deliver(store)

        for name in ("f", "a"):
            assert texts((await store.messages(name)).items) == ["first"]
        assert (await store.messages("p")).items == ()
        assert "second" not in await self.stored_text(store, "p")

    async def test_a_fork_made_after_a_deletion_has_messages_without_content(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append("p", Message.user("first", id="1"), ReactionAdded(message_id="1", key="+"), ConversationDeleted())
        await outbox.deliver(store)
        outbox.append("f", forked("p", 2))
        outbox.append("g", forked("p", 3))
        await outbox.deliver(store)

        (message,) = await store.messages("f")
        assert (message.redacted, message.text, message.reactions) == (True, "", ())
        assert list(await store.messages("f")) == await by_hand(store, "f")
        assert (await store.messages("g")).items == ()

    async def test_a_fork_point_that_is_not_here_yet_is_read_once_it_is(self, store: DestinationStore) -> None:
        """Lanes are delivered in any order: the fork may come before what it names, also through another outbox."""
        one, two = Outbox(), Outbox()
        encoded = one.append("p", Message.user("a"), Message.user("b"), Message.user("c"))
        two.append("f", ConversationStarted(forked_from={"conversation_id": "p", "event_id": str(encoded[1].event_id)}))
        two.append("f", Message.user("mine"))
        await two.deliver(store)
        for page in (await store.messages("f"), await store.messages("f", first=5), await store.messages("f", last=5)):
            assert texts(page.items) == ["mine"]
            assert not page.complete
        assert (await store.messages("f", last=1)).items == page.items

        two.append("p", Message.user("theirs"))
        await two.deliver(store)
        await one.deliver(store)
        page = await store.messages("f")
        assert texts(page.items) == ["theirs", "a", "b", "mine"]
        assert page.complete

    async def test_a_ring_of_forks_ends(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append("a", forked("b", 1), Message.user("a"))
        outbox.append("b", forked("a", 2), Message.user("b"))
        outbox.append("self", forked("self", 9), Message.user("s"))
        await outbox.deliver(store)

        page = await store.messages("a")
        assert (texts(page.items), page.complete) == (["a"], False)
        page = await store.messages("b")
        assert (texts(page.items), page.complete) == (["a", "b"], False)
        page = await store.messages("self", first=3)
        assert (texts(page.items), page.complete) == (["s"], False)

    @pytest.mark.parametrize("wrong", ["1.", ".1", "1.x", "1.-1", "1.2.3", "100.1", "1,2", "²"])
    async def test_an_invalid_place_is_refused(self, store: DestinationStore, wrong: str) -> None:
        with pytest.raises(ValueError, match="before"):
            await store.messages("f", before=wrong)

    async def test_unknown_events_of_the_parent_are_no_hindrance(self, store: DestinationStore) -> None:
        outbox = Outbox()
        outbox.append("p", Event(type="weather.changed", data={"message_id": 7}), Message.user("one", id="1"))
        outbox.append(
            "p", Event(type="message.edited", schema_version=9, data={"message_id": "1"}), Message.user("two")
        )
        outbox.append("f", forked("p", 3))
        await outbox.deliver(store)

        assert list(await store.messages("f")) == await by_hand(store, "f")
        assert texts((await store.messages("f")).items) == ["one"]
