"""Say, fork, redact, reset and delete as a bot does, and hold every read to a plain model of it."""

import random
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

from letopis.outbox import History, Receipt
from letopis.store import Message
from tests.model.plain import Chat, Plain
from tests.support.path_deeds import Broken, Keeper

VERBS: Final[dict[str, int]] = {"say": 6, "fork": 3, "redact": 3, "reset": 1, "delete": 1}
"""How often each is done, of their sum."""
SECRET_LENGTH: Final = 21  # characters of a text by which it is found in a row
LARGE_REST: Final = " and so on" * 80  # what makes a text large where the limit is low
LARGE_SHARE: Final = 0.3
MOST: Final = 12  # messages of a path that may be forked, so that forks of forks stay small


def secret_of(chance: random.Random) -> str:
    """Return a text that is found wherever it is."""
    return f"secret{chance.randrange(10**15):015}"


class Gone(NamedTuple):
    """A text that was erased wherever it was said.

    :ivar delivered: the sequence up to which each conversation has to be delivered before no row may hold the text;
        ``None`` where the outcome of a change was learnt by reading, which names no sequence.
    :ivar at_once: whether the outbox may not hold it from now on.
    """

    text: str
    delivered: dict[str, int | None]
    at_once: bool


class ContentKeeper(Keeper):
    """Changes a family of conversations, and keeps which texts were erased."""

    def __init__(
        self,
        history: History,
        prefix: str,
        *,
        chance: random.Random,
        keep: Callable[[Receipt], None],
        gone: Callable[[Gone], None],
    ) -> None:
        super().__init__(history, prefix, chance=chance, keep=keep)
        self._gone = gone
        self._plain = Plain()
        self._delivered: dict[str, int | None] = {}
        self._forks: list[tuple[str, Receipt | None]] = []
        self._readable: set[str] = set()
        self._erased: set[str] = set()

    def _verb(self) -> str:
        return self._chance.choices(list(VERBS), list(VERBS.values()))[0]

    # The verbs.

    async def _say(self) -> bool:
        living = self._plain.living()
        if not living or self._chance.random() < 0.1:
            chat = self._plain.begin(f"{self._name}-{next(self._numbers)}", "owner")
        else:
            chat = self._chance.choice(living)
        number = f"{self._name}-m{next(self._numbers)}"
        text = secret_of(self._chance)
        if self._chance.random() < LARGE_SHARE:
            text += LARGE_REST
        return await self._do(
            "say",
            chat.id,
            self._history.append(chat.id, Message.user(text, id=number), owner="owner"),
            lambda: self._plain.say(chat, number, "user", text),
        )

    async def _fork(self) -> bool:
        parent = self._choose(lambda chat: 0 < len(chat.path) <= MOST)
        if parent is None:
            return False
        at = self._chance.choice(parent.path).id if self._chance.random() < 0.6 else None
        name = f"{self._name}-{next(self._numbers)}"
        return await self._do(
            "fork",
            name,
            self._history.chat(parent.id).fork(name, at=at),
            lambda: self._plain.fork(name, parent, at=at),
            parent=parent.id,
        )

    async def _redact(self) -> bool:
        chat = self._choose(lambda chat: any(not one.redacted for one in chat.own))
        if chat is None:
            return False
        target = self._chance.choice([one.id for one in chat.own if not one.redacted])
        work = self._history.chat(chat.id).redact(target)
        return await self._do("redact", chat.id, work, lambda: self._plain.redact(chat, target))

    async def _reset(self) -> bool:
        return await self._erase("reset", self._plain.reset)

    async def _delete(self) -> bool:
        return await self._erase("delete", self._plain.delete)

    async def _erase(self, verb: str, effect: Callable[[Chat], None]) -> bool:
        chat = await self._choose_unneeded()
        if chat is None:
            return False
        return await self._do(verb, chat.id, getattr(self._history.chat(chat.id), verb)(), lambda: effect(chat))

    def _choose(self, fit: Callable[[Chat], bool]) -> Chat | None:
        fitting = [chat for chat in self._plain.living() if fit(chat)]
        return self._chance.choice(fitting) if fitting else None

    async def _choose_unneeded(self) -> Chat | None:
        """Choose a conversation whose forks the store has: a fork on its way to the store protects nothing yet."""
        chat = self._choose(lambda chat: bool(chat.path))
        if chat is None:
            return None
        for parent, receipt in self._forks:
            if parent == chat.id and (receipt is None or not await receipt.saved(0)):
                return None
        return chat

    # What is known.

    async def _do(
        self, verb: str, name: str, work: Awaitable[Receipt], effect: Callable[[], object], *, parent: str | None = None
    ) -> bool:
        def happened(receipt: Receipt | None) -> None:
            self._undecided = None
            effect()
            self._delivered[name] = None if receipt is None else receipt.sequence
            if parent is not None:
                self._forks.append((parent, receipt))
            readable = _readable(self._plain)
            for text in sorted(self._readable - readable):
                self._erased.add(text)
                self._gone(Gone(text[:SECRET_LENGTH], dict(self._delivered), verb == "redact" and receipt is not None))
            self._readable = readable

        self._undecided = name, lambda: happened(None)
        receipt = await work
        self._keep(receipt)
        happened(receipt)
        return True

    async def _learn(self) -> bool:
        if self._undecided is None:
            return True
        name, happened = self._undecided
        page = await self._history.messages(name, last=None)
        if page.complete:
            self._undecided = None
            if _shown(page) != self._expected(name):
                happened()
        return page.complete

    def _expected(self, name: str) -> list[tuple[str, str]]:
        chat = self._plain.chats.get(name)
        return [] if chat is None else [(one.id, one.shown) for one in chat.path]

    async def _compare(self) -> None:
        for name in self._chance.sample(list(self._plain.chats), k=min(2, len(self._plain.chats))):
            page = await self._history.messages(name, last=None)
            shown, expected = _shown(page), self._expected(name)
            if leaked := self._erased & {text for _, text in shown}:
                raise Broken(f"{name!r}: what was erased is read: {min(leaked)}")
            if page.complete and shown != expected:  # without the store there is only what the outbox still keeps
                raise Broken(f"{name!r}: is read as {shown[-4:]}, and must be {expected[-4:]}")


def _shown(page: Any) -> list[tuple[str, str]]:
    return [(one.id, one.text) for one in page]


def _readable(plain: Plain) -> set[str]:
    """Return the texts that some conversation shows, or may show again: a fork keeps all up to its fork point."""
    texts = set[str]()
    for chat in plain.chats.values():
        texts |= {one.text for one in chat.said if not one.redacted}
        at, inherits = chat, chat.inherits
        while inherits and (parent := at.parent) is not None:
            texts |= {one.text for one in at.whole if not one.redacted}
            at, inherits = parent, parent.moments[at.forked_at].inherits
    return texts
