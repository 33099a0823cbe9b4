"""Run random operations on a real history and on the plain model, with deliveries and outages in between."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, TypeVar

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy.engine import make_url

from letopis.outbox import History, Relay, Retention
from letopis.store import (
    ConversationActivated,
    ConversationAnnotated,
    ConversationArchived,
    ConversationDeleted,
    ConversationRenamed,
    ConversationRestored,
    ConversationRewound,
    ConversationStore,
    CustomEvent,
    Message,
    MessageEdited,
    MessageFailed,
    MessageRedacted,
    MessageSent,
    ReactionAdded,
    ReactionRemoved,
    RecordedMessage,
    Timeouts,
)
from letopis.store.errors import ConversationGone, EventIdReused, InvalidInput, VersionConflict
from letopis.store.model.event_types import Body
from tests.model.plain import Chat, Plain
from tests.support.gate import Gate

T = TypeVar("T")

OWNERS = ("anna", "борис")
TEXTS = st.sampled_from(["hello", "Как дела?", "  ", "a\nb", "🙂", "x" * 300])
PICK = st.integers(min_value=0, max_value=10_000)
KEYS = st.sampled_from(["👍", "👎", "rating"])
ACTORS = st.sampled_from([None, "anna", "mod"])


class Machine(RuleBasedStateMachine):
    """One outbox, one store, and the expected state of both.

    :cvar store_url: of a store that is there and migrated; examples keep apart by their ids.
    """

    store_url: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._folder = Path(self._stack.enter_context(TemporaryDirectory()))
        self._portal: BlockingPortal = self._stack.enter_context(start_blocking_portal("asyncio"))
        self._prefix = uuid.uuid4().hex[:12]
        self._ids = itertools.count(1)
        self.plain = Plain()
        self.gate: Gate | None = None
        self.history: History
        self.relay: Relay
        self._opened: ExitStack | None = None
        self.shut = False
        self.seen: dict[str, tuple[Any, int]] = {}

    # The house.

    def run(self, work: Callable[..., Coroutine[Any, Any, T]], *args: Any, **options: Any) -> T:
        return self._portal.call(lambda: work(*args, **options))

    @initialize()
    def begin(self) -> None:
        self._url = self.store_url
        if make_url(self.store_url).host is not None:
            self.gate = Gate(self.store_url)
            self.run(self.gate.open)
            self._url = self.gate.url
        self._open()

    def _open(self) -> None:
        self._opened = ExitStack()
        # Nothing is pruned, so that an outage hides nothing of these short histories.
        store = ConversationStore(self._url, timeouts=Timeouts(connect=1.0, statement=5.0))
        self._opened.callback(lambda: self.run(store.close))
        self.history = self._opened.enter_context(
            self._portal.wrap_async_context_manager(
                History.open(
                    self._folder / "bot.outbox.db",
                    store=store,
                    relay=False,
                    watch=False,
                    retention=Retention(keep_last=10_000),
                    read_timeout=2.0,
                )
            )
        )
        self.relay = Relay(self.history.outbox, store)

    def teardown(self) -> None:
        try:
            if self._opened is not None:
                self._let_through()
                self._dispatcher()
                self.holds()
        finally:
            if self._opened is not None:
                self._opened.close()
            if self.gate is not None:
                self.run(self.gate.shut)
            self._stack.close()

    def _let_through(self) -> None:
        if self.gate is not None and self.shut:
            self.run(self.gate.open)
        self.shut = False

    def _dispatcher(self) -> None:
        async def drain() -> None:
            self.relay.breaker.reset() if hasattr(self.relay.breaker, "reset") else None
            await self.relay.drain()

        self.run(drain)
        assert self.run(self.history.drained, 10), "the relay left something behind"

    def chat(self, pick: int) -> Chat | None:
        living = self.plain.living()
        return living[pick % len(living)] if living else None

    def name(self, chat: Chat) -> str:
        return chat.id

    def said(self, chat: Chat, pick: int) -> str:
        """A message of the conversation, now and then one that is nowhere."""
        if pick % 11 == 0 or not chat.said:
            return "nowhere"
        return chat.said[pick % len(chat.said)].id

    def tell(self, chat: Chat, body: Message | Body, **options: Any) -> None:
        self.run(self.history.append, chat.id, body, owner=chat.owner, **options)

    # Saying.

    @rule(owner=st.sampled_from([*OWNERS, None]), text=TEXTS)
    def begin_chat(self, owner: str | None, text: str) -> None:
        owner = None if owner is None else f"{self._prefix}-{owner}"
        chat = self.plain.begin(f"{self._prefix}-{next(self._ids)}", owner)
        self.say_in(chat, "user", text, None)

    def say_in(self, chat: Chat, role: str, text: str, tokens: int | None, **options: Any) -> None:
        name = f"{self._prefix}-m{next(self._ids)}"
        self.tell(chat, Message(role=role, content=text, id=name, tokens=tokens), **options)
        self.plain.say(chat, name, role, text, tokens)

    @rule(
        pick=PICK, role=st.sampled_from(["user", "assistant", "tool"]), text=TEXTS, tokens=st.none() | st.integers(0, 9)
    )
    def say(self, pick: int, role: str, text: str, tokens: int | None) -> None:
        if (chat := self.chat(pick)) is not None:
            self.say_in(chat, role, text, tokens)

    @rule(pick=PICK, which=PICK)
    def say_again(self, pick: int, which: int) -> None:
        if (chat := self.chat(pick)) is None or not chat.said:
            return
        said = chat.said[which % len(chat.said)]
        role, text, tokens = chat.first[said.id]
        again = Message(role=role, content=text, id=said.id, tokens=tokens)  # type: ignore[arg-type]
        if said.redacted:
            with pytest.raises(EventIdReused):
                self.tell(chat, again)
            return
        self.tell(chat, again)
        self.plain.put_back(chat, said.id)

    @rule(pick=PICK, kept=st.integers(0, 4), text=TEXTS)
    def replace(self, pick: int, kept: int, text: str) -> None:
        if (chat := self.chat(pick)) is None:
            return
        # In another order, with something new before it, so that nothing stays in its place.
        stays = [one for one in chat.own if not one.redacted][-kept:][::-1] if kept else []
        new = f"{self._prefix}-m{next(self._ids)}"
        wanted = [
            Message.user(text, id=new),
            *(Message(role=one.role, content=one.text, id=one.id, tokens=one.tokens) for one in stays),  # type: ignore[arg-type]
        ]
        empty = not chat.path
        self.run(self.history.replace, chat.id, wanted, owner=chat.owner)
        if not (empty and not self.shut):
            self.plain.rewind(chat, None)
        self.plain.say(chat, new, "user", text, None)
        for one in stays:
            self.plain.put_back(chat, one.id, one.text)

    @rule(pick=PICK, which=PICK, text=TEXTS)
    def edit(self, pick: int, which: int, text: str) -> None:
        if (chat := self.chat(pick)) is not None:
            target = self.said(chat, which)
            known = chat.find(target)
            try:
                self.tell(chat, MessageEdited(message_id=target, content=text))
            except InvalidInput:
                assert target in chat.erased or (known is not None and known.redacted)
                return
            assert target not in chat.erased
            self.plain.edit(chat, target, text)

    @rule(pick=PICK, which=PICK)
    def redact(self, pick: int, which: int) -> None:
        if (chat := self.chat(pick)) is not None:
            target = self.said(chat, which)
            self.tell(chat, MessageRedacted(message_id=target))
            self.plain.redact(chat, target)

    @rule(pick=PICK, which=PICK, number=PICK, fails=st.booleans())
    def deliver(self, pick: int, which: int, number: int, fails: bool) -> None:
        if (chat := self.chat(pick)) is None:
            return
        target = self.said(chat, which)
        if fails:
            self.tell(chat, MessageFailed(message_id=target, reason="blocked by the user"))
            self.plain.deliver(chat, target, "failed", {"reason": "blocked by the user"})
        else:
            self.tell(chat, MessageSent(message_id=target, platform_ids={"telegram": number}, file_path="/tmp/x"))  # noqa: S108
            self.plain.deliver(chat, target, "sent", {"platform_ids": {"telegram": number}, "file_path": "/tmp/x"})  # noqa: S108

    @rule(pick=PICK, which=PICK, key=KEYS, actor=ACTORS, value=st.none() | st.integers(1, 5))
    def react(self, pick: int, which: int, key: str, actor: str | None, value: int | None) -> None:
        if (chat := self.chat(pick)) is not None:
            target = self.said(chat, which)
            self.tell(chat, ReactionAdded(message_id=target, key=key, actor=actor, value=value))
            self.plain.react(chat, target, key, actor, value)

    @rule(pick=PICK, which=PICK, key=KEYS, actor=ACTORS)
    def unreact(self, pick: int, which: int, key: str, actor: str | None) -> None:
        if (chat := self.chat(pick)) is not None:
            target = self.said(chat, which)
            self.tell(chat, ReactionRemoved(message_id=target, key=key, actor=actor))
            self.plain.unreact(chat, target, key, actor)

    @rule(pick=PICK, which=PICK, clear=st.booleans())
    def rewind(self, pick: int, which: int, clear: bool) -> None:
        if (chat := self.chat(pick)) is None:
            return
        if clear and which % 3 == 0:
            target = None
        elif chat.inherited and which % 2:
            target = chat.inherited[which % len(chat.inherited)].id
        else:
            target = self.said(chat, which)
            if target == "nowhere" and chat.inherited:
                return  # a fork takes it for an inherited message; see the how-to on forks
        self.tell(chat, ConversationRewound(to_message_id=target))
        self.plain.rewind(chat, target)

    @rule(pick=PICK, text=TEXTS)
    def rename(self, pick: int, text: str) -> None:
        if (chat := self.chat(pick)) is not None:
            self.tell(chat, ConversationRenamed(title=text))
            self.plain.rename(chat, text)

    @rule(pick=PICK, key=st.sampled_from("abc"), value=st.none() | st.integers(0, 3))
    def annotate(self, pick: int, key: str, value: int | None) -> None:
        if (chat := self.chat(pick)) is not None:
            self.tell(chat, ConversationAnnotated(metadata={key: value}))
            self.plain.annotate(chat, {key: value})

    @rule(pick=PICK, what=st.sampled_from(["archive", "restore", "activate", "custom"]))
    def put(self, pick: int, what: str) -> None:
        if (chat := self.chat(pick)) is None:
            return
        body: Body
        match what:
            case "archive":
                body = ConversationArchived()
                self.plain.archive(chat)
            case "restore":
                body = ConversationRestored()
                self.plain.restore(chat)
            case "activate":
                body = ConversationActivated()
                self.plain.activate(chat)
            case _:
                body = CustomEvent(name="paid", data={"cents": 5})
                self.plain.touch(chat)
        self.tell(chat, body)

    @rule(pick=PICK, sure=st.integers(0, 3))
    def delete(self, pick: int, sure: int) -> None:
        if sure == 0 and (chat := self.chat(pick)) is not None:
            self.tell(chat, ConversationDeleted())
            self.plain.delete(chat)

    @rule(pick=PICK)
    def say_to_the_deleted(self, pick: int) -> None:
        gone = [chat for chat in self.plain.chats.values() if chat.deleted]
        if gone:
            chat = gone[pick % len(gone)]
            with pytest.raises(ConversationGone):
                self.tell(chat, Message.user("anybody there?"))

    @rule(pick=PICK, which=PICK, cut=st.booleans())
    def fork(self, pick: int, which: int, cut: bool) -> None:
        if (parent := self.chat(pick)) is None:
            return
        path = parent.path
        at = path[which % len(path)].id if cut and path else None
        name = f"{self._prefix}-{next(self._ids)}"
        self.run(self.history.fork, name, of=parent.id, at=at)
        self.plain.fork(name, parent, at=at)

    # Turns.

    @rule(pick=PICK)
    def look(self, pick: int) -> None:
        if (chat := self.chat(pick)) is not None:
            page = self.run(self.history.messages, chat.id, last=5)
            self.seen[chat.id] = (page.seen, chat.turns)

    @rule(pick=PICK, text=TEXTS)
    def answer(self, pick: int, text: str) -> None:
        known = [chat for chat in self.plain.living() if chat.id in self.seen]
        if not known:
            return
        chat = known[pick % len(known)]
        seen, turns = self.seen.pop(chat.id)
        if turns == chat.turns:
            self.say_in(chat, "assistant", text, 3, after=seen)
            return
        with pytest.raises(VersionConflict):
            self.tell(chat, Message.assistant(text), after=seen)

    # The world.

    @precondition(lambda self: not self.shut)
    @rule()
    def deliver_all(self) -> None:
        self._dispatcher()

    @precondition(lambda self: not self.shut and self.gate is not None)
    @rule()
    def outage(self) -> None:
        assert self.gate is not None
        self.run(self.gate.shut)
        self.shut = True

    @precondition(lambda self: self.shut)
    @rule()
    def back(self) -> None:
        self._let_through()

    @rule()
    def restart(self) -> None:
        assert self._opened is not None
        self._opened.close()
        self._open()

    # What holds, at any time.

    @invariant()
    def holds(self) -> None:
        if self._opened is None:
            return
        for chat in self.plain.chats.values():
            self.run(self._compare, chat)
        for owner in OWNERS:
            self.run(self._compare_owner, f"{self._prefix}-{owner}")

    async def _compare(self, chat: Chat) -> None:
        found = await self.history.conversation(chat.id)
        assert found is not None
        view = (
            found.owner_id,
            found.title,
            found.state,
            tuple(sorted(found.metadata.items())),
            found.message_count,
            found.tokens,
        )
        assert view == chat.view(), chat.id
        if self.shut and any(one.deleted for one in chat.ancestors):
            return  # what the store keeps of it for its forks is out of reach
        every = await self.history.messages(chat.id, every=True, last=None)
        if not chat.inherited:
            assert [_view(one) for one in every] == [one.view() for one in chat.said], chat.id
        async with asyncio.timeout(30):
            # A busy machine takes a slow store for an unavailable one.
            while not (path := await self.history.messages(chat.id, last=None)).complete and not self.shut:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert [_view(one) for one in path] == [one.view() for one in chat.path], chat.id
        count = len(chat.path) // 2 + 1
        last = await self.history.messages(chat.id, last=count)
        assert [one.id for one in last] == [one.id for one in chat.path][-count:], chat.id
        backward: list[str] = []
        before = None
        while True:
            page = await self.history.messages(chat.id, last=2, before=before)
            backward[:0] = [one.id for one in page]
            before = page.next
            if before is None:
                break
        assert backward == [one.id for one in chat.path], chat.id

    async def _compare_owner(self, owner: str) -> None:
        listed: list[str] = []
        after = None
        numbers: list[int] = []
        while True:
            page = await self.history.conversations(owner=owner, limit=3, after=after)
            listed += [one.conversation_id for one in page]
            numbers += [one.number for one in page if one.number is not None]
            after = page.next
            if after is None:
                break
        assert listed in self.plain.listings(owner), owner
        expected = self.plain.active(owner)
        if expected is not None:
            active = await self.history.active(owner)
            assert active is not None, owner
            assert active.conversation_id == expected.id, owner
        assert len(set(numbers)) == len(numbers), owner


def _view(one: RecordedMessage) -> tuple[Any, ...]:
    return (
        one.id,
        one.role,
        one.text,
        one.message.tokens,
        one.on_path,
        one.redacted,
        one.edited,
        one.delivery.value,
        tuple(sorted(one.delivery_data.items(), key=str)),
        tuple((reaction.key, reaction.actor, reaction.value) for reaction in one.reactions),
        one.interrupted,
    )
