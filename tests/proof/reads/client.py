"""Use a history as one client: append, rewind, fork and delete in turn, and read in between.

No other client writes its conversations, so each read has one right answer: everything acknowledged before it began.
Meanwhile the relay and other clients run, the file is pruned and the store is restored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from random import Random
from typing import Any, Final
from uuid import UUID

from letopis.outbox import History, Receipt
from letopis.store import Message, StoreFault, StoreUnavailable
from letopis.store.model.messages import Role
from tests.model.plain import Chat, Plain, Said
from tests.proof.harness import Tally

CHATS: Final = 4  # conversations that a client keeps at a time
Weighted = list[tuple[int, Callable[[Chat], Awaitable[None]]]]
_AWAY: Final = (StoreFault, StoreUnavailable)


class Client:
    """Speaks and reads by chance."""

    def __init__(
        self, history: History, owner: str, random: Random, reads: Tally, *, listed: bool, forks: bool
    ) -> None:
        self._history = history
        self._owner = owner
        self._random = random
        self._reads = reads
        self._listed = listed
        self._forks = forks
        self._made = 0
        self._plain = Plain()
        self._event_ids: dict[str, list[UUID]] = defaultdict(list)

    async def live(self, until: Callable[[], bool]) -> None:
        """Continue until it is enough."""
        await self._begin()
        while not until():
            await self._speak()
            for _ in range(self._random.randint(1, 6)):
                await self._read()

    # What it says.

    async def _begin(self) -> None:
        name = self._new("chat")
        self._took_place(await self._history.start(self._owner, conversation_id=name))
        self._plain.activate(self._plain.begin(name, self._owner))

    async def _speak(self) -> None:
        chat = self._random.choice(self._plain.living())
        actions: Weighted = [
            (45, self._append),
            (8, self._regenerate),
            (6, self._pop),
            (10, self._rewind),
            (2, self._clear),
            (8, self._edit),
            (3, self._redact),
            (6, self._mark),
            (3, self._activate),
            (2, self._delete),
        ]
        if self._forks:
            actions.append((5, self._fork))
        if len(self._plain.living()) < CHATS:
            actions.append((4, self._new_chat))
        await self._drawn(actions)(chat)

    async def _append(self, chat: Chat) -> None:
        said = []
        for _ in range(self._random.choice((1, 1, 1, 2, 5))):
            role: Role = self._random.choice(("user", "assistant"))
            said.append(Message(role=role, content=f"text {self._made}", id=self._new("m")))
        self._took_place(await self._history.append(chat.id, *said, owner=self._owner))
        for one in said:
            assert one.id is not None
            self._plain.say(chat, one.id, one.role, one.text)

    async def _regenerate(self, chat: Chat) -> None:
        try:
            asked = await self._history.chat(chat.id).regenerate()
        except _AWAY:  # for a moment, while it is put back or the machine is busy: nothing was written
            return
        users = [place for place, one in enumerate(chat.path) if one.role == "user"]
        wanted = chat.path[users[-1]].id if users else None
        if (asked[-1].id if asked else None) != wanted:
            self._wrong(chat, "regenerate", [one.id for one in asked], [wanted])
        if users and users[-1] + 1 < len(chat.path):
            self._plain.rewind(chat, wanted)
            await self._unseen(chat)

    async def _pop(self, chat: Chat) -> None:
        try:
            popped = await self._history.chat(chat.id).pop()
        except _AWAY:
            return
        wanted = chat.path[-1].id if chat.path else None
        if (popped.id if popped else None) != wanted:
            self._wrong(chat, "pop", popped, wanted)
        if chat.path:
            self._plain.rewind(chat, chat.path[-2].id if len(chat.path) > 1 else None)
            await self._unseen(chat)

    async def _rewind(self, chat: Chat) -> None:
        if not chat.path:
            return
        place = max(0, len(chat.path) - self._random.randint(1, 6))
        target = chat.path[place].id
        self._took_place(await self._history.chat(chat.id).rewind(to=target))
        self._plain.rewind(chat, target)

    async def _clear(self, chat: Chat) -> None:
        self._took_place(await self._history.chat(chat.id).rewind(to=None))
        self._plain.rewind(chat, None)

    async def _edit(self, chat: Chat) -> None:
        if (one := self._own(chat)) is not None:
            self._made += 1
            text = f"edited {self._made}"
            self._took_place(await self._history.chat(chat.id).edit(one.id, text))
            self._plain.edit(chat, one.id, text)

    async def _redact(self, chat: Chat) -> None:
        if (one := self._own(chat)) is not None:
            self._took_place(await self._history.chat(chat.id).redact(one.id))
            self._plain.redact(chat, one.id)

    async def _mark(self, chat: Chat) -> None:
        if (one := self._own(chat)) is not None:
            if self._random.random() < 0.5:
                actor = f"a{self._made}"
                self._took_place(await self._history.chat(chat.id).react(one.id, "+1", actor=actor))
                self._plain.react(chat, one.id, "+1", actor, None)
            else:
                platform_ids = {"telegram": self._made}
                self._took_place(await self._history.chat(chat.id).sent(one.id, platform_ids=platform_ids))
                self._plain.deliver(chat, one.id, "sent", {"platform_ids": platform_ids})

    async def _activate(self, chat: Chat) -> None:
        self._took_place(await self._history.chat(chat.id).activate(owner=self._owner))
        self._plain.activate(chat)

    async def _fork(self, chat: Chat) -> None:
        if self._event_ids[chat.id] and len(self._plain.living()) <= CHATS + 2:
            name = self._new("fork")
            self._took_place(await self._history.chat(chat.id).fork(name))
            self._plain.fork(name, chat)

    async def _delete(self, chat: Chat) -> None:
        forked = any(one.parent is chat for one in self._plain.chats.values())
        if forked or chat is self._plain.active(self._owner) or len(self._plain.living()) < 2:
            return
        await self._history.chat(chat.id).delete()
        self._plain.delete(chat)
        page = await self._history.messages(chat.id, last=5)
        found = await self._history.chat(chat.id).conversation()
        self._took(page.complete)
        if page.complete and (len(page) or found is None or found.state != "deleted"):
            self._wrong(chat, "deleted", (len(page), found and found.state), (0, "deleted"))

    async def _new_chat(self, _: Chat) -> None:
        await self._begin()

    def _took_place(self, receipt: Receipt) -> None:
        self._event_ids[receipt.conversation_id] += receipt.event_ids

    async def _unseen(self, chat: Chat) -> None:
        """Record the event that the history made on its own."""
        page = await self._history.chat(chat.id).events(after=0, limit=10_000)
        found, known = [one.event_id for one in page], self._event_ids[chat.id]
        self._took(page.complete)
        if found[:-1] != known:
            self._wrong(chat, "events", len(found), len(known) + 1)
        known[:] = found

    def _own(self, chat: Chat) -> Said | None:
        own = [one for one in chat.path[-12:] if one.chat is chat and not one.redacted]
        return self._random.choice(own) if own else None

    def _drawn(self, weighted: Weighted) -> Callable[[Chat], Awaitable[None]]:
        [(_, chosen)] = self._random.choices(weighted, [weight for weight, _ in weighted])
        return chosen

    def _new(self, what: str) -> str:
        self._made += 1
        return f"{self._owner}-{what}-{self._made}"

    # What it reads.

    async def _read(self) -> None:
        chat = self._random.choice(self._plain.living())
        reads: Weighted = [
            (40, self._newest),
            (8, self._all),
            (6, self._pages_back),
            (6, self._pages_forth),
            (20, self._context),
            (8, self._conversation),
            (8, self._events),
        ]
        if self._listed:
            reads += [(3, self._chats_listed), (4, self._active_one)]
        await self._drawn(reads)(chat)

    async def _newest(self, chat: Chat) -> None:
        last = self._random.choice((1, 3, 10, 50))
        page = await self._history.messages(chat.id, last=last)
        self._compare(chat, f"messages(last={last})", page, page.complete, chat.path[-last:])

    async def _all(self, chat: Chat) -> None:
        page = await self._history.messages(chat.id, last=None)
        self._compare(chat, "messages()", page, page.complete, chat.path)

    async def _pages_back(self, chat: Chat) -> None:
        size = self._random.choice((2, 5))
        read = partial(self._history.messages, chat.id, last=size)
        found, complete, more = await _paged(read, by="before", most=6)
        wanted = chat.path[-len(found) :] if more else chat.path
        self._compare(chat, f"pages of {size} back", found, complete, wanted)

    async def _pages_forth(self, chat: Chat) -> None:
        size = self._random.choice((3, 8))
        found, complete, more = await _paged(partial(self._history.messages, chat.id, first=size), most=5)
        wanted = chat.path[: len(found)] if more else chat.path
        self._compare(chat, f"pages of {size} forth", found, complete, wanted)

    async def _context(self, chat: Chat) -> None:
        context = await self._history.context(chat.id, last=self._random.choice((4, 20)))
        ids = [one.id for one in context.messages]
        self._took(context.reached)
        known = [one.id for one in chat.path if not one.redacted]
        if context.reached and (ids != known[-len(ids) :] if ids else bool(known)):
            self._wrong(chat, "context", ids, known[-len(ids) - 1 :])

    async def _conversation(self, chat: Chat) -> None:
        found = await self._history.chat(chat.id).conversation()
        self._took(True)
        if found is None or found.message_count != len(chat.own):
            self._wrong(chat, "conversation", found and found.message_count, len(chat.own))

    async def _events(self, chat: Chat) -> None:
        page, complete, _ = await _paged(partial(self._history.chat(chat.id).events, limit=40))
        found, wanted = [one.event_id for one in page], self._event_ids[chat.id]
        self._took(complete)
        if complete and found != wanted:
            self._wrong(chat, "events", len(found), len(wanted))

    async def _chats_listed(self, chat: Chat) -> None:
        page, complete, _ = await _paged(partial(self._history.conversations, owner=self._owner, limit=2))
        found, wanted = sorted(one.conversation_id for one in page), sorted(one.id for one in self._plain.living())
        self._took(complete)
        if complete and found != wanted:
            self._wrong(chat, "chats", found, wanted)

    async def _active_one(self, chat: Chat) -> None:
        found = await self._history.active(self._owner, create=False)
        self._took(True)
        wanted = self._plain.active(self._owner)
        if (found and found.conversation_id) != (wanted and wanted.id):
            self._wrong(chat, "active", found and found.conversation_id, wanted and wanted.id)

    def _compare(self, chat: Chat, what: str, found: Any, complete: bool, wanted: Sequence[Said]) -> None:
        self._took(complete)
        there = [(one.id, "" if one.redacted else one.text) for one in found]
        expected = [(one.id, one.shown) for one in wanted]
        if complete and there != expected:
            self._wrong(chat, what, there[-4:], expected[-4:])

    def _took(self, complete: bool) -> None:
        self._reads.count += 1
        self._reads.figures["not complete"] += not complete

    def _wrong(self, chat: Chat, what: str, found: object, wanted: object) -> None:
        self._reads.problems.append(f"{what} of {chat.id}: {found}, not {wanted}")


async def _paged(
    read: Callable[..., Awaitable[Any]], *, by: str = "after", most: int = 10_000
) -> tuple[list[Any], bool, bool]:
    """Return what some pages hold, whether all were complete, and whether there are more."""
    found: list[Any] = []
    complete, place = True, dict[str, Any]()
    for _ in range(most):
        page = await read(**place)
        found = [*page, *found] if by == "before" else [*found, *page]
        complete, place = complete and page.complete, {by: page.next}
        if page.next is None:
            break
    return found, complete, page.next is not None
