"""Use a history as one client: append, rewind, fork and delete in turn, and read in between.

No other client writes its conversations, so each read has one right answer: everything acknowledged before it began.
Meanwhile the relay and other clients run, the file is pruned and the store is restored.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from random import Random
from typing import Any, Final
from uuid import UUID

from letopis.outbox import Chat as Handle
from letopis.outbox import History, Receipt
from letopis.store import Message, StoreFault, StoreUnavailable
from letopis.store.model.messages import Role
from tests.model.plain import Chat, Plain, Said
from tests.proof.harness import Tally

CHATS: Final = 4  # conversations that a client keeps at a time
SPEAKS: Final = {"append": 45, "take_back": 14, "rewind": 10, "clear": 2, "edit": 8, "redact": 3, "mark": 6} | {
    "activate": 3,
    "delete": 2,
    "begin": 4,
}
READS: Final = {"newest": 48, "pages": 12, "context": 20, "conversation": 8, "events": 8}
"""How often each is done, of their sum."""


class Client:
    """Speaks and reads by chance.

    :param restored: whether the store is put back beside it: then it neither forks nor asks for its conversations.
    """

    def __init__(self, history: History, owner: str, random: Random, reads: Tally, *, restored: bool) -> None:
        self._history = history
        self._owner = owner
        self._random = random
        self._reads = reads
        self._speaks = SPEAKS if restored else {**SPEAKS, "fork": 5}
        self._asks = READS if restored else {**READS, "listed": 3, "active": 4}
        self._made = 0
        self._plain = Plain()
        self._event_ids: dict[str, list[UUID]] = defaultdict(list)

    async def live(self, until: Callable[[], bool]) -> None:
        """Continue until it is enough."""
        await self._begin()
        while not until():
            await self._do(self._speaks)
            for _ in range(self._random.randint(1, 6)):
                await self._do(self._asks)

    async def _do(self, weighted: Mapping[str, int]) -> None:
        chat = self._random.choice(self._plain.living())
        [verb] = self._random.choices(list(weighted), list(weighted.values()))
        await getattr(self, f"_{verb}")(chat)

    # What it says.

    async def _begin(self, _: Chat | None = None) -> None:
        if len(self._plain.living()) < CHATS:
            name = self._new("chat")
            self._took_place(await self._history.start(self._owner, conversation_id=name))
            self._plain.activate(self._plain.begin(name, self._owner))

    async def _append(self, chat: Chat) -> None:
        said = []
        for _ in range(self._random.choice((1, 1, 1, 2, 5))):
            role: Role = self._random.choice(("user", "assistant"))
            said.append(Message(role=role, content=f"text {self._made}", id=self._new("m")))
        self._took_place(await self._history.append(chat.id, *said, owner=self._owner))
        for one in said:
            assert one.id is not None
            self._plain.say(chat, one.id, one.role, one.text)

    async def _take_back(self, chat: Chat) -> None:
        """Take back the last message, or all that came after the last question."""
        path = [one.id for one in chat.path]
        asked = [place for place, one in enumerate(chat.path) if one.role == "user"]
        regenerate = self._random.random() < 0.6
        try:
            if regenerate:
                given = await self._handle(chat).regenerate()
                last, wanted = given[-1] if given else None, path[asked[-1]] if asked else None
                moved, target = bool(asked) and asked[-1] + 1 < len(path), wanted
            else:
                last, wanted = await self._handle(chat).pop(), path[-1] if path else None
                moved, target = bool(path), path[-2] if len(path) > 1 else None
        except (StoreFault, StoreUnavailable):
            return  # for a moment, while it is put back or the machine is busy: nothing was written
        self._check(chat, "regenerate" if regenerate else "pop", None if last is None else last.id, wanted)
        if moved:
            self._plain.rewind(chat, target, undone=target is None)
            # The history made this event on its own.
            page = await self._handle(chat).events(after=0, first=10_000)
            found, known = [one.event_id for one in page], self._event_ids[chat.id]
            self._check(chat, "events", found[:-1], known)
            known[:] = found

    async def _rewind(self, chat: Chat) -> None:
        if chat.path:
            target = chat.path[max(0, len(chat.path) - self._random.randint(1, 6))].id
            self._took_place(await self._handle(chat).rewind(to=target))
            self._plain.rewind(chat, target)

    async def _clear(self, chat: Chat) -> None:
        self._took_place(await self._handle(chat).rewind(to=None))
        self._plain.rewind(chat, None)

    async def _edit(self, chat: Chat) -> None:
        if (one := self._own(chat)) is not None:
            text = self._new("edited")
            self._took_place(await self._handle(chat).edit(one.id, text))
            self._plain.edit(chat, one.id, text)

    async def _redact(self, chat: Chat) -> None:
        if (one := self._own(chat)) is not None:
            self._took_place(await self._handle(chat).redact(one.id))
            self._plain.redact(chat, one.id)

    async def _mark(self, chat: Chat) -> None:
        if (one := self._own(chat)) is not None:
            if self._random.random() < 0.5:
                actor = f"a{self._made}"
                self._took_place(await self._handle(chat).react(one.id, "+1", actor=actor))
                self._plain.react(chat, one.id, "+1", actor, None)
            else:
                platform_ids = {"telegram": self._made}
                self._took_place(await self._handle(chat).sent(one.id, platform_ids=platform_ids))
                self._plain.deliver(chat, one.id, "sent", {"platform_ids": platform_ids})

    async def _activate(self, chat: Chat) -> None:
        self._took_place(await self._handle(chat).activate(owner=self._owner))
        self._plain.activate(chat)

    async def _fork(self, chat: Chat) -> None:
        if self._event_ids[chat.id] and len(self._plain.living()) <= CHATS + 2:
            name = self._new("fork")
            self._took_place(await self._handle(chat).fork(name))
            self._plain.fork(name, chat)

    async def _delete(self, chat: Chat) -> None:
        forked = any(one.parent is chat for one in self._plain.chats.values())
        if forked or chat is self._plain.active(self._owner) or len(self._plain.living()) < 2:
            return
        await self._handle(chat).delete()
        self._plain.delete(chat)
        page = await self._history.messages(chat.id, last=5)
        found = await self._handle(chat).conversation()
        self._check(chat, "deleted", (len(page), found and found.state), (0, "deleted"), complete=page.complete)

    def _handle(self, chat: Chat) -> Handle:
        return self._history.chat(chat.id)

    def _took_place(self, receipt: Receipt) -> None:
        self._event_ids[receipt.conversation_id] += receipt.event_ids

    def _own(self, chat: Chat) -> Said | None:
        own = [one for one in chat.path[-12:] if one.chat is chat and not one.redacted]
        return self._random.choice(own) if own else None

    def _new(self, what: str) -> str:
        self._made += 1
        return f"{self._owner}-{what}-{self._made}"

    # What it reads.

    async def _newest(self, chat: Chat) -> None:
        last = self._random.choice((1, 3, 10, 50, None))
        page = await self._history.messages(chat.id, last=last)
        self._compare(chat, f"messages(last={last})", page, page.complete, chat.path[-(last or 0) :])

    async def _pages(self, chat: Chat) -> None:
        side, by = self._random.choice((("last", "before"), ("first", "after")))
        size = self._random.choice((2, 5, 8))
        read = partial(self._history.messages, chat.id, **{side: size})
        found, complete, more = await _paged(read, by=by, most=5)
        seen = slice(-len(found), None) if by == "before" else slice(len(found))
        self._compare(chat, f"pages of {size} {by}", found, complete, chat.path[seen] if more else chat.path)

    async def _context(self, chat: Chat) -> None:
        context = await self._history.context(chat.id, last=self._random.choice((4, 20)))
        ids = [one.id for one in context.messages]
        known = [one.id for one in chat.path if not one.redacted]
        self._check(chat, "context", ids, known[-len(ids) :], complete=context.reached)

    async def _conversation(self, chat: Chat) -> None:
        found = await self._handle(chat).conversation()
        self._check(chat, "conversation", found and found.message_count, len(chat.own))

    async def _events(self, chat: Chat) -> None:
        page, complete, _ = await _paged(partial(self._handle(chat).events, first=40))
        self._check(chat, "events", [one.event_id for one in page], self._event_ids[chat.id], complete=complete)

    async def _listed(self, chat: Chat) -> None:
        page, complete, _ = await _paged(partial(self._history.conversations, owner=self._owner, limit=2))
        wanted = {one.id for one in self._plain.living()}
        self._check(chat, "chats", sorted(one.conversation_id for one in page), sorted(wanted), complete=complete)

    async def _active(self, chat: Chat) -> None:
        found = await self._history.active(self._owner, create=False)
        wanted = self._plain.active(self._owner)
        self._check(chat, "active", found and found.conversation_id, wanted and wanted.id)

    def _compare(self, chat: Chat, what: str, found: Any, complete: bool, wanted: tuple[Said, ...]) -> None:
        shown = [(one.id, "" if one.redacted else one.text) for one in found]
        self._check(chat, what, shown, [(one.id, one.shown) for one in wanted], complete=complete)

    def _check(self, chat: Chat, what: str, found: object, wanted: object, *, complete: bool = True) -> None:
        self._reads.count += 1
        self._reads.figures["not complete"] += not complete
        differ = f"{what} of {chat.id}: {str(found)[-200:]}, not {str(wanted)[-200:]}"
        self._reads.require(not complete or found == wanted, differ)


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
