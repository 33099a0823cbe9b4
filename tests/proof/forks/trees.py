"""Draw what happens to a tree of forks, and do it to the model and to a history store alike."""

import random
from collections.abc import Iterable
from typing import Any, Final

import orjson
import sqlalchemy as sa

from letopis import ConversationStore, Message, RecordedMessage
from letopis.store import ConversationDeleted, ConversationRewound, ConversationStarted, MessageEdited, MessageRedacted
from letopis.store.database.schema import conversations, events, messages
from letopis.store.ops.rebuild import rebuild
from letopis.store.testing.outbox import Outbox
from tests.model.plain import Chat, Plain, Said

STEPS: Final = 18
FORKS_MAX: Final = 6
KINDS: Final = {"say": 5, "edit": 2, "fork": 5, "rewind": 2, "clear": 2, "redact": 1, "delete": 1, "late": 1}


class Growing:
    """One tree that grows, in a store that it shares with others; appended events are delivered on request."""

    def __init__(self, number: int, seed: int, outbox: Outbox) -> None:
        self.chance = random.Random(f"{seed}-{number}")
        self.outbox = outbox
        self.root = f"{number}"
        self.plain = Plain()
        self.plain.begin(self.root)
        self.did: list[tuple[str, Any]] = []
        self._said = 0

    def step(self) -> None:
        kind = self.chance.choices(list(KINDS), list(KINDS.values()))[0]
        if living := self.plain.living():
            getattr(self, f"_{kind}")(self.chance.choice(living))

    def end(self) -> None:
        """Delete or clear all but one or two, in any order."""
        living = self.plain.living()
        self.chance.shuffle(living)
        for chat in living[self.chance.choice((1, 1, 2, 3)) :]:
            (self._clear if self.chance.random() < 0.4 else self._delete)(chat)

    def _append(self, name: str, what: Any) -> None:
        self.did.append((name, what))
        self.outbox.append(name, what)

    def _say(self, chat: Chat) -> None:
        self._said += 1
        message_id, text = f"{chat.id}.{self._said}", f"words {self.root}.{self._said}."
        self.plain.say(chat, message_id, "user", text)
        self._append(chat.id, Message.user(text, id=message_id))

    def _late(self, _: Chat) -> None:
        gone = [chat for chat in self.plain.chats.values() if chat.deleted]
        if gone:
            self._say(self.chance.choice(gone))

    def _edit(self, chat: Chat) -> None:
        if chat.own:
            self._said += 1
            message_id, text = self.chance.choice(chat.own).id, f"words {self.root}.{self._said}."
            self.plain.edit(chat, message_id, text)
            self._append(chat.id, MessageEdited(message_id=message_id, content=text))

    def _fork(self, parent: Chat) -> None:
        if len(self.plain.chats) > FORKS_MAX or parent.version == 0:
            return
        name = f"{parent.id}-{len(self.plain.chats)}"
        version = self.chance.choice((parent.version, self.chance.randint(1, parent.version)))
        if parent.moments[version].inherits and not parent.inherits and any(one.deleted for one in parent.ancestors):
            return  # of a time from which nothing is kept any more
        place: dict[str, object] = {"version": version}
        if self.chance.random() < 0.5:
            place = {"event_id": str(self.outbox.lanes[parent.id][version - 1].event_id)}
        self.plain.fork(name, parent, version=version)
        self._append(name, ConversationStarted(forked_from={"conversation_id": parent.id} | place))

    def _rewind(self, chat: Chat) -> None:
        if chat.path:
            target = self.chance.choice(chat.path).id
            self.plain.rewind(chat, target)
            self._append(chat.id, ConversationRewound(to_message_id=target))

    def _clear(self, chat: Chat) -> None:
        self.plain.rewind(chat, None)
        self._append(chat.id, ConversationRewound())

    def _redact(self, chat: Chat) -> None:
        if chat.own:
            message_id = self.chance.choice(chat.own).id
            self.plain.redact(chat, message_id)
            self._append(chat.id, MessageRedacted(message_id=message_id, reason="asked"))

    def _delete(self, chat: Chat) -> None:
        self.plain.delete(chat)
        self._append(chat.id, ConversationDeleted())

    async def differences(self, store: ConversationStore, *, kept: bool = True) -> list[str]:
        """Return where what is read, or what is kept, is not what the model says."""
        wrong = []
        needed = self.plain.needed()
        content = await (_content if kept else _readable)(store, list(self.plain.chats))
        for name, chat in self.plain.chats.items():
            page = await store.messages(name)
            if _read(page) != (expected := _shown(chat.path)) or not page.complete:
                wrong.append(f"{name} reads {_read(page)}, not {expected}")
            version = self.chance.randint(0, chat.version)
            # What a fork read before it was cleared is not kept.
            if not chat.deleted and (chat.inherits or chat.parent is None):
                then = _read(await store.messages(name, as_of=version))
                if then != (expected := _shown(chat.moments[version].path)):
                    wrong.append(f"{name} reads {then} as of {version}, not {expected}")
            for at, data in content.get(name, []):
                if chat.deleted and at > needed.get(name, 0):
                    wrong.append(f"{name}[{at}] is kept, and nobody reads it: {data}")
                elif any(f'"{message_id}"' in data for message_id in chat.erased):
                    wrong.append(f"{name}[{at}] holds what was redacted: {data}")
        return [f"tree {self.root}: {one}; {self.did}" for one in wrong]


def _read(page: Iterable[RecordedMessage]) -> list[tuple[str, str, str]]:
    return [(one.conversation_id, one.id, one.text) for one in page]


def _shown(path: Iterable[Said]) -> list[tuple[str, str, str]]:
    return [(one.chat.id, one.id, one.shown) for one in path]


async def lose_rows(store: ConversationStore, names: list[str]) -> None:
    async with store.runtime.callers_engine.begin() as connection:
        for table in (messages, conversations):
            await connection.execute(sa.delete(table).where(table.c.conversation_id.in_(names)))
    async for _ in rebuild(store):
        pass


async def _readable(store: ConversationStore, names: list[str]) -> dict[str, list[tuple[int, str]]]:
    held: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        for event in await store.events(name):
            if "words " in (data := encoded(event.data)):
                held.setdefault(name, []).append((event.version or 0, data))
    return held


def encoded(data: object) -> str:
    return orjson.dumps(data).decode()


async def _content(store: ConversationStore, names: list[str]) -> dict[str, list[tuple[int, str]]]:
    held: dict[str, list[tuple[int, str]]] = {}
    async with store.runtime.callers_engine.connect() as connection:
        rows = await connection.execute(
            sa.select(events.c.conversation_id, events.c.version, events.c.data).where(
                events.c.partition == 0, events.c.conversation_id.in_(names), events.c.data.like("%words %")
            )
        )
        for name, version, data in rows:
            held.setdefault(name, []).append((version, data))
    return held
