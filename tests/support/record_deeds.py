"""Change records as a bot does: puts, large ones, conditional ones, deletions, and some together with a message."""

import itertools
import random
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from typing import Any, Final

from letopis.outbox import History, Receipt, RecordReceipt
from letopis.store import ABSENT, Message, RecordConflict, StoreUnavailable
from tests.campaigns.record_invariants import MESSAGE_TAG, TURNS, RecordAck

KEYS: Final = 4
LARGE_BYTES: Final = 70_000  # of a value that the store keeps in parts


class RecordKeeper:
    """Changes a few records of a space and of a conversation, and keeps each promise."""

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
