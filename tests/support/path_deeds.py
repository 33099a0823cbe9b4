"""Change the path of a conversation and its records as frameworks do, and hold reads to what was written."""

import asyncio
import itertools
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from typing import Any, Final

from letopis.outbox import History, Receipt, RecordReceipt
from letopis.store import (
    ABSENT,
    ConversationGone,
    IdReused,
    InvalidInput,
    Message,
    RecordConflict,
    Saved,
    StoreUnavailable,
)
from tests.campaigns.record_invariants import MESSAGE_TAG, TURNS, RecordAck

MOST: Final = 8  # messages of a path after a replacement


class Broken(Exception):
    """A promise is broken; the text says which, and how."""


class Keeper:
    """Changes conversations that nobody else writes to, and compares each complete read with what was written."""

    def __init__(self, history: History, name: str, *, chance: random.Random, keep: Callable[[Receipt], None]) -> None:
        self._history = history
        self._name = name
        self._chance = chance
        self._keep = keep
        self._numbers = itertools.count()
        self._turn = asyncio.Lock()
        self._known = True
        """Whether it is known what has become of the last change."""
        self._undecided: Any = None
        """What has become of it as far as it is known, to learn the rest."""

    async def change(self) -> str:
        """Do one thing, and read what has become of it. Return the verb, or ``""`` if nothing could be done.

        :raises Broken: what is read is not what was written, or what must be accepted is refused.
        :raises LetopisError: as an append does. What has become of it is read before the next change.
        """
        async with self._turn:
            if not self._known and not await self._learn():
                return ""
            verb = self._verb()
            self._known = False
            try:
                done = await getattr(self, f"_{verb}")()
            except StoreUnavailable:  # it had to be read, and nothing was written
                self._known, self._undecided = True, None
                return ""
            except (InvalidInput, IdReused, ConversationGone) as error:
                raise Broken(f"{self._name!r}: {verb} is refused: {error}") from error
            self._known = self._undecided is None
            if self._known:
                await self._compare()
            return "" if done is False else verb

    def _verb(self) -> str:
        """Return the name of the method that is next; it returns ``False`` where there is nothing to do it with."""
        raise NotImplementedError

    async def _learn(self) -> bool:
        """Read what has become of a change whose outcome is not known. Return True if that is known then."""
        raise NotImplementedError

    async def _compare(self) -> None:
        raise NotImplementedError


class PathKeeper(Keeper):
    def __init__(self, history: History, name: str, *, chance: random.Random, keep: Callable[[Receipt], None]) -> None:
        super().__init__(history, name, chance=chance, keep=keep)
        self._path: list[Message] = []
        self._off: list[Message] = []
        self._begun = False

    def _verb(self) -> str:
        verbs = ("say", "say", "take_back", "say_again", "replace", "replace")
        return self._chance.choice((*verbs, "reset") if self._chance.random() < 0.3 else verbs)

    async def _say(self) -> None:
        await self._append(self._new(self._chance.choice((1, 1, 3))))

    async def _say_again(self) -> None:
        """Append a message that is there: on the path or off it, it stays where it is."""
        if not (there := [*self._path, *self._off, *self._off]):
            return
        message = self._chance.choice(there)
        receipt = await self._history.append(self._name, message)
        self._keep(receipt)
        if message in self._path:
            wrong = await receipt.superseded(0)
        else:
            wrong = await receipt.saved(0) and not await receipt.superseded(0)
        if wrong:
            raise Broken(f"{self._name!r}: {message.id!r} is on the path, or not, and its receipt says the contrary")

    async def _append(self, messages: list[Message]) -> None:
        self._keep(await self._history.append(self._name, *messages))
        self._begun = True
        self._set([*self._path, *messages])

    async def _take_back(self) -> None:
        match self._chance.choice(("pop", "rewind", "clear")):
            case "pop":
                popped = await self._history.chat(self._name).pop()
                if (None if popped is None else popped.id) != (self._path[-1].id if self._path else None):
                    raise Broken(f"{self._name!r}: another message was popped than the last")
                self._set(self._path[:-1])
            case "rewind" if self._path:
                stays = self._chance.randrange(len(self._path))
                self._keep(await self._history.chat(self._name).rewind(to=self._path[stays].id))
                self._set(self._path[: stays + 1])
            case _:
                self._keep(await self._history.chat(self._name).rewind(to=None))
                self._set([])

    async def _replace(self) -> None:
        chance = self._chance
        stays = self._path[: chance.randrange(len(self._path) + 1)]
        rest = [one for one in (*self._path, *self._off) if one not in stays]
        moved = chance.sample(rest, k=chance.randrange(min(len(rest), 4) + 1))
        wanted = [*stays, *moved, *self._new(chance.randrange(3))][:MOST]
        receipt = await self._history.chat(self._name).replace(wanted)
        if receipt is None:
            return self._set(self._path[: len(wanted)])
        self._keep(receipt)
        self._begun = True
        count = len(receipt.message_ids)
        tail = zip(wanted[len(wanted) - count :], receipt.message_ids, strict=True)
        # While the history store is unavailable, a message that the outbox has forgotten keeps its id: it is set aside.
        there = {one.id for one in (*self._path, *self._off)}
        if there.intersection(receipt.message_ids):
            self._undecided = receipt
        return self._set([*self._path[: len(wanted) - count], *(replace(one, id=name) for one, name in tail)])

    async def _reset(self) -> None:
        if not self._begun:
            return
        self._path, self._off = [], []  # whatever comes of it, none of them is said again
        self._keep(await self._history.chat(self._name).reset())

    def _new(self, count: int) -> list[Message]:
        chance = self._chance
        return [
            Message.user(f"{chance.randrange(10**6)} {'ж' * chance.randrange(40)}", id=f"p-{next(self._numbers)}")
            for _ in range(count)
        ]

    def _set(self, path: list[Message]) -> None:
        there = {one.id for one in path}
        self._off = [one for one in (*self._off, *self._path) if one.id not in there][-2 * MOST :]
        self._path = path

    async def _learn(self) -> bool:
        if self._undecided is not None and await self._undecided.state() is not Saved.SAVED:
            return False
        page = await self._history.messages(self._name, last=None)
        if page.complete:
            if self._undecided is not None:
                said, there = set(self._undecided.message_ids), {one.id for one in page}
                aside = [one for one in self._path if one.id in said and one.id not in there]
                if aside and await self._undecided.saved(0):
                    raise Broken(f"{self._name!r}: {aside[0].id!r} is said to be saved, and is not on the path")
                self._undecided = None
            self._set([one.message for one in page])
        return page.complete

    async def _compare(self) -> None:
        page = await self._history.messages(self._name, last=None)
        if not page.complete:
            return  # without the store there is only what the outbox still keeps
        found, wanted = [one.id for one in page], [one.id for one in self._path]
        if found != wanted:
            raise Broken(f"{self._name!r}: its path is read as {found[-6:]}, and was written as {wanted[-6:]}")


KEYS: Final = 4
LARGE_BYTES: Final = 70_000  # of a value that the store keeps in parts


class RecordKeeper:
    def __init__(
        self,
        history: History,
        *,
        seed: int | str,
        chance: random.Random,
        keep: Callable[[RecordAck], None],
        keep_message: Callable[[Receipt], None],
    ) -> None:
        self._history = history
        self._seed, self._chance = seed, chance
        self._keep, self._keep_message = keep, keep_message
        self._numbers = itertools.count()

    async def change(self) -> None:
        chance = self._chance
        in_space, conversation = chance.random() < 0.6, f"{TURNS}-{chance.randrange(2)}"
        history = self._history
        records = history.records(space="bots") if in_space else history.records(conversation=conversation)
        namespace, key = (chance.choice(("state", "memory")),), f"key-{chance.randrange(KEYS)}"
        value = f"{self._seed} {next(self._numbers)} {'ж' * chance.randrange(80)}".encode()
        draw = chance.random()
        if draw < 0.1:
            self._promised(await records.delete(namespace, key), None)
        elif draw < 0.3:
            # Where the record cannot be read, or another was first, nothing is written.
            with suppress(RecordConflict, StoreUnavailable):
                found = await records.get(namespace, key)
                expected = ABSENT if found is None else found.revision
                self._promised(await records.put(namespace, key, value, expected=expected), value)
        elif draw < 0.5:
            async with self._history.transaction() as own:
                said = await own.append(f"{TURNS}-{chance.randrange(2)}", Message.assistant(value.decode()))
                receipt = await own.put(records, (TURNS,), key, value, tags={MESSAGE_TAG: said.event_ids[-1].hex})
            self._keep_message(said)
            self._promised(receipt, value)
        else:
            value += bytes(LARGE_BYTES) if draw > 0.97 else b""
            self._promised(await records.put(namespace, key, value), value)

    def _promised(self, receipt: RecordReceipt, value: bytes | None) -> None:
        self._keep(record_ack(receipt, value))


def record_ack(receipt: RecordReceipt, value: bytes | None) -> RecordAck:
    done: Any = receipt._receipt
    digest = None if value is None else sha256(value).hexdigest()
    return RecordAck(done.conversation_id, done.event_ids[-1], done.sequence, digest)
