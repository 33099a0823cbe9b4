"""Speak as persons who are erased and held, and be the operator who does that."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from letopis.outbox import History, Receipt
from letopis.store import Message
from letopis.store.database.faults import StoreFault
from letopis.store.errors import ConversationGone, Held, InvalidInput, StoreUnavailable
from tests.proof.simulation.rights import KEPT, KEPT_MESSAGES, OF_PERSONS, PERSONS, Wish
from tests.support.content_deeds import secret_of
from tests.support.path_deeds import Broken

if TYPE_CHECKING:
    from tests.proof.simulation.people import Place

RETRY_SECONDS: Final = 5.0


@dataclass
class Speaker:
    """Says what persons say, and what retention takes away, for a bot."""

    _place: Place
    _chance: random.Random
    _keep: Callable[[Receipt], None]

    async def say(self, history: History) -> None:
        """Say something of a person, in a conversation of theirs or in a group."""
        rights, person = self._place.rights, self._chance.choice(PERSONS)
        name, owner = rights.conversation(person, self._place.number, self._chance)
        with suppress(ConversationGone):
            self._keep(await history.append(name, Message.user(secret_of(self._chance), author=person), owner=owner))

    async def say_kept(self, history: History) -> None:
        """Say something in a conversation whose old content leaves."""
        message = Message.user(secret_of(self._chance))
        self._keep(await history.append(f"{KEPT}-{self._place.number}", message, owner=KEPT))

    async def read_kept(self, history: History) -> None:
        """Read that conversation: its newest messages must have their content."""
        name = f"{KEPT}-{self._place.number}"
        texts = self._place.rights.kept[name]
        known = len(texts)
        page = await history.messages(name, last=None)
        newest = set(texts[-KEPT_MESSAGES:]).intersection(texts[:known])
        if page.complete and (lost := newest - {message.text for message in page}):
            raise Broken(f"{name!r}: retention took {min(lost)}, one of the last {KEPT_MESSAGES} messages")


async def operate(places: Sequence[Place], chance: random.Random, closing: asyncio.Event) -> None:
    """Erase persons, hold them and release them, until told to close; an erasure that failed is repeated."""
    while not closing.is_set():
        with suppress(TimeoutError):
            pause = RETRY_SECONDS if places[0].rights.wish else chance.expovariate(0.25 / places[0].plan.pause)
            async with asyncio.timeout(pause):
                await closing.wait()
        place = places[0] if places[0].rights.wish else chance.choice(places)
        if place.rights.wish is None and place.silent:
            continue
        with suppress(StoreFault, StoreUnavailable, *place.refused):
            async with History(place.path, store=place.store, relay=False, watch=False, now=place.now) as history:
                await _act(place, history, chance)


async def _act(place: Place, history: History, chance: random.Random) -> None:
    rights, register = place.rights, history.store.erasures
    if rights.wish is not None or chance.random() < 0.5:
        await _erase(place, history, chance)
    elif rights.held:
        await register.release("owner", chance.choice(sorted(rights.held)))
    else:
        person = chance.choice(PERSONS)
        if chance.random() < 0.5:  # it may arrive before the hold or after it
            name, _ = rights.conversation(person, place.number, chance, in_group=False)
            rights.reset(person)
            rights.owe(await history.chat(name).reset(), place.ledger.origin)
        await register.hold("owner", person, reason="a court asks")
        place.counts["holds"] += 1


async def _erase(place: Place, history: History, chance: random.Random) -> None:
    rights = place.rights
    if rights.wish is None:
        rights.wish = Wish(
            chance.choice(("owner", "person")), chance.choice(PERSONS), chance.choice(("reset", "delete"))
        )
    wish = rights.wish
    if wish.how == "delete":
        rights.generations[wish.person] += 1
    held = wish.person in rights.held
    try:
        how: Any = wish.how
        await history.erase(**{wish.kind: wish.person}, how=how, reason="asked")
    except Held:
        if not held:
            raise Broken(f"{wish.person} is not on hold, and an erasure was refused") from None
        place.counts["erasures refused for a hold"] += 1
    except InvalidInput as error:
        raise Broken(f"an erasure is refused: {error}") from error
    else:
        lanes = place.ledger.lanes.items()
        rights.owed |= {(place.ledger.origin, name): lane.head for name, lane in lanes if name.startswith(OF_PERSONS)}
        place.counts[f"erasures of {wish.kind}s"] += 1
    rights.wish = None
