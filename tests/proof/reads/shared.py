"""Two outboxes on one store: what is answered with `saved` is shown, and lists hold while others write and deliver.

Each case is drawn from a seed: what the first outbox does to a message that the second one had delivered, how the
second one appends it again, and when anything is delivered.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Final

from letopis.outbox import History, Receipt
from letopis.outbox.relay.relay import Relay
from letopis.store import ConversationGone, ConversationStore, EventIdReused, LetopisError, Message
from tests.proof.reads.client import Reads

CHATS: Final = 5
REMOVALS: Final = ("pop", "undo", "clear", "replace", "redact", "reset", "delete", "nothing")
WRITERS: Final = 8
LISTERS: Final = 2
KEYS: Final = 30
PUTS_PER_WRITER: Final = 10_000  # more than any run needs: the listers end it


async def deliver(*histories: History) -> None:
    for history in histories:
        await Relay(history.outbox, history.store).drain_once()


class Pair:
    """Two histories with an outbox each, on one store; each case has an owner of its own."""

    def __init__(self, one: History, two: History, store: ConversationStore, random: Random, reads: Reads) -> None:
        self._one = one
        self._two = two
        self._store = store
        self._random = random
        self._reads = reads

    async def case(self, number: int) -> None:
        """Run one case, and count what it read."""
        owner, chats = f"o{number}", [f"c{number}-{one}" for one in range(CHATS)]
        for chat in chats:
            await self._one.start(owner, conversation_id=chat, activate=chat == chats[-1])
        await deliver(self._one)
        await self._appended_again(chats[0])
        await self._listed(owner, chats)
        await self._left(owner, chats)

    async def _appended_again(self, chat: str) -> None:
        question, answer = Message.user("what?", id="q"), Message.assistant("the words", id="m")
        await self._two.append(chat, question, answer)
        await deliver(self._two)
        how = self._random.choice(REMOVALS)
        match how:
            case "replace":
                await self._one.chat(chat).replace([question])
            case "redact":
                await self._one.chat(chat).redact("m")
            case "clear":
                await self._one.chat(chat).rewind(to=None)
            case "pop" | "undo" | "reset" | "delete":
                await getattr(self._one.chat(chat), how)()
        if self._random.random() < 0.8:
            await deliver(self._one)
        receipt: Receipt | None = None
        try:
            if self._random.random() < 0.5:
                receipt = await self._two.append(chat, answer)
            else:
                async with self._two.transaction() as transaction:
                    receipt = await transaction.append(chat, answer)
        except (EventIdReused, ConversationGone):
            pass  # refused: nothing was written, and nothing is said to be saved
        await deliver(self._two)
        saved = receipt is not None and await receipt.saved(0)
        shown = any(one.id == "m" and not one.redacted for one in await self._store.messages(chat))
        self._took(saved == shown, f"{how}: saved {saved}, shown {shown}")
        await deliver(self._one)

    async def _listed(self, owner: str, chats: list[str]) -> None:
        """The second outbox does not know the owner of what it appends to."""
        living = [one.conversation_id for one in await self._store.conversations(owner=owner)]
        await self._two.append(self._random.choice(living), Message.user("more"))
        found: list[str] = []
        after = None
        while True:
            page = await self._two.conversations(owner=owner, after=after, limit=2)
            found += [one.conversation_id for one in page]
            if (after := page.next) is None:
                break
            if self._random.random() < 0.5:
                await deliver(self._two)
        self._took(sorted(found) == sorted(living), f"listed {found} of {living}")
        await deliver(self._two)

    async def _left(self, owner: str, chats: list[str]) -> None:
        for _ in range(self._random.randint(1, 4)):
            living = [one.conversation_id for one in await self._one.conversations(owner=owner)]
            if len(living) < 2:
                break
            chat = self._random.choice(living)
            if self._random.random() < 0.5:
                await self._one.append(chat, Message.user("on"))
            else:
                await self._one.chat(living[0]).archive()
            if self._random.random() < 0.2:
                await deliver(self._one)
        before = await self._one.active(owner, create=False)
        await deliver(self._one)
        after = await self._store.active(owner)
        names = [None if one is None else one.conversation_id for one in (before, after)]
        self._took(names[0] == names[1], f"active {names[0]} before the delivery, {names[1]} after it")

    def _took(self, right: bool, problem: str) -> None:
        self._reads.count += 1
        if not right:
            self._reads.problems.append(problem)


async def share(url: str, folder: Path, many: int, seed: int, *, defect: bool = False) -> Reads:
    """Run cases until there were ``many`` reads; with a defect, until one of them is wrong."""
    reads, number = Reads(), 0
    async with ConversationStore.open(url, migrate=True) as store, AsyncExitStack() as stack:
        one, two = [
            await stack.enter_async_context(
                History(folder / f"{name}-{seed}.db", store=store, relay=False, watch=False, read_timeout=30)
            )
            for name in ("one", "two")
        ]
        pair = Pair(one, two, store, Random(seed), reads)
        while reads.count < many and not (defect and reads.problems):
            await pair.case(number)
            number += 1
    return reads


async def list_records(url: str, path: Path, many: int, *, defect: bool = False) -> Reads:
    """List records while others put them and a relay delivers; each key is listed once, with a whole value."""
    reads = Reads()
    async with ConversationStore.open(url, migrate=True):
        pass
    async with History(path, store=url, watch=False, read_timeout=30) as history:
        records = history.records(space="shared")

        async def put(writer: int) -> None:
            random = Random(writer)
            for number in range(PUTS_PER_WRITER):
                if reads.count >= many or (defect and reads.problems):
                    return
                await records.put(("k",), f"{random.randrange(KEYS):02}", {"text": f"{number} " * 50})

        async def lists() -> None:
            while reads.count < many and not (defect and reads.problems):
                try:
                    page = await records.list(("k",), limit=KEYS)
                except LetopisError as error:
                    reads.problems.append(str(error))
                else:
                    keys = [one.key for one in page]
                    if len(set(keys)) < len(keys) or any(not one.value["text"] for one in page):
                        reads.problems.append(f"{len(keys)} records, {len(set(keys))} keys")
                reads.count += 1

        await asyncio.gather(*map(put, range(WRITERS)), *(lists() for _ in range(LISTERS)))
    return reads
