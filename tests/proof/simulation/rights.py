"""Check numbered erasures, holds and the retention of content against what was said, commit by commit."""

import json
import random
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

from letopis.outbox import Receipt
from letopis.store import ContentRetention, RetentionRule
from letopis.store.model.events import utc_now
from tests.proof.simulation.contents import secrets_in, secrets_of
from tests.support.path_deeds import Broken

PERSONS: Final = ("person-0", "person-1")
"""Each has conversations that all outboxes write, and is an author in groups of others."""
GROUP: Final = "group"
OF_PERSONS: Final = ("own-", GROUP)
KEPT: Final = "kept"  # the owner, and the beginning of the names, of conversations whose old content leaves
KEPT_MESSAGES: Final = 4
POLICY: Final = ContentRetention(rules=(RetentionRule(owner=KEPT, max_messages=KEPT_MESSAGES),))
ROUND_SECONDS: Final = 60.0  # between two rounds of retention
_ERASURES: Final = "SELECT number, kind, subject FROM letopis_erasures WHERE number > ? ORDER BY number"
_HOLDS: Final = "SELECT subject FROM letopis_holds WHERE kind = 'owner'"
_ORIGINS: Final = "SELECT origin_id, erasures FROM letopis_origins"
_NEWEST: Final = "SELECT max(recorded_at) FROM letopis_events"
_EVENTS: Final = "SELECT data FROM letopis_events"


class Said(NamedTuple):
    """What was said: by whom, whether in a conversation of theirs, and in which outbox."""

    person: str
    own: bool
    origin: bytes


class Wish(NamedTuple):
    """An erasure that the operator was asked for, and repeats until it is done."""

    kind: str
    person: str
    how: str


class Rights:
    """What may be in the history store, and what must be, by the erasures, holds and rules that are committed there.

    :ivar texts: all that persons said, as their outboxes have committed it.
    :ivar due: texts that may not arrive readable any more, nor stay.
    :ivar held: by whom a hold protects, the texts that it found in the store.
    :ivar fresh: texts that were said after all erasures were carried out everywhere, by person.
    :ivar kept: the texts of each conversation whose old content leaves, in order.
    :ivar now: the wall clock of the machine.
    :ivar wish: the erasure in progress; ``owed`` what the outbox that was asked has to deliver for the last one.
    """

    def __init__(self, look: sqlite3.Connection) -> None:
        self._look = look
        self._number = 0
        self.now: Callable[[], datetime] = utc_now
        self.texts: dict[str, Said] = {}
        self.due: set[str] = set()
        self.held: dict[str, set[str]] = {}
        self.fresh: dict[str, set[str]] = defaultdict(set)
        self.kept: dict[str, list[str]] = defaultdict(list)
        self.wish: Wish | None = None
        self.owed: dict[tuple[bytes, str], int] = {}
        self.generations: Counter[str] = Counter()

    def conversation(self, person: str, place: int, chance: random.Random, *, in_group: bool = True) -> tuple[str, str]:
        """Return a conversation for something that a person says, and its owner."""
        if in_group and chance.random() < 0.3:
            return f"{GROUP}-{place}", "others"
        name = f"own-{person}-{self.generations[person]}"
        return (name if chance.random() < 0.6 else f"{name}-{place}"), person

    def said(self, origin: bytes, conversation_id: str, data: str) -> None:
        """Keep what an outbox has committed."""
        message = json.loads(data)
        if conversation_id.startswith(KEPT):
            self.kept[conversation_id].append(message["content"])
        elif (person := message.get("author")) is not None:
            text = message["content"]
            self.texts[text] = Said(person, conversation_id.startswith("own-"), origin)
            if self._settled():
                self.fresh[person].add(text)

    def committed(self, heads: Mapping[tuple[bytes, str], int], arrived: Iterable[str]) -> None:
        """Check a commit of the store in which these texts arrived."""
        if late := self.due.intersection(arrived):
            raise Broken(f"{min(late)} was erased before, and has arrived readable")
        self.owed = {key: head for key, head in self.owed.items() if heads.get(key, 0) < head}
        self._registered()
        self._holds()

    def _registered(self) -> None:
        for number, kind, person in self._look.execute(_ERASURES, (self._number,)).fetchall():
            if person in self.held:
                raise Broken(f"erasure {number} of {person} is recorded in spite of a hold")
            origins = {origin for origin, _ in self._look.execute(_ORIGINS).fetchall()}
            self._number = number
            self.reset(person)
            # An outbox that the store does not know begins after all erasures.
            self.due |= {
                text
                for text, said in self.texts.items()
                if said.person == person and (said.own or kind == "person") and said.origin in origins
            }

    def reset(self, person: str) -> None:
        """Expect no text of a person to stay that was said until now."""
        self.fresh.pop(person, None)

    def owe(self, receipt: Receipt, origin: bytes) -> None:
        """Wait for the delivery of what resets a conversation."""
        self.owed[origin, receipt.conversation_id] = receipt.sequence

    def _holds(self) -> None:
        now = {row[0] for row in self._look.execute(_HOLDS).fetchall()}
        stored = self._stored() if now != self.held.keys() else set()
        for person in now - self.held.keys():
            self.held[person] = {
                text for text in stored if text in self.texts and self.texts[text][:2] == (person, True)
            }
            # What was not carried out by now is left as it is.
            self.due = {text for text in self.due if self.texts[text].person != person}
        for person in self.held.keys() - now:
            if lost := self.held.pop(person) - stored:
                raise Broken(f"{min(lost)} of {person} was on hold, and is gone")

    def _stored(self) -> set[str]:
        return secrets_of(row[0] for row in self._look.execute(_EVENTS).fetchall())

    def unfinished(self) -> bool:
        """Return True if an erasure is still to be carried out or delivered, or old content to leave."""
        return not self._settled() or bool(self._old().intersection(self._stored()))

    def _settled(self) -> bool:
        behind = any(number < self._number for _, number in self._look.execute(_ORIGINS).fetchall())
        return self.wish is None and not self.owed and not behind

    def _old(self) -> set[str]:
        # An event that was recorded by a clock that was ahead holds up retention until then.
        newest = self._look.execute(_NEWEST).fetchone()[0] or 0
        if newest > self.now().timestamp() * 1_000_000:
            return set()
        return {text for texts in self.kept.values() for text in texts[:-KEPT_MESSAGES]}

    def check_at_rest(self, *paths: Path) -> None:
        """Check the rows of the outboxes and the store, once all is delivered and carried out."""
        stored = self._stored()
        for path in paths:
            if left := self.due.intersection(secrets_in(path)):
                raise Broken(f"{min(left)} was erased, which is carried out, and is in a row of {path.name}")
        young = {text for texts in self.kept.values() for text in texts[-KEPT_MESSAGES:]}
        for texts, what in ((young, "is young, and was taken by retention"), *self._staying()):
            if lost := texts - stored:
                raise Broken(f"{min(lost)} {what}")
        if old := self._old() & stored:
            raise Broken(f"{min(old)} is old, and retention left it")

    def _staying(self) -> Iterator[tuple[set[str], str]]:
        for person, texts in self.fresh.items():
            yield texts, f"was said after the last erasure of {person}, and is gone"
        for person, texts in self.held.items():
            yield texts, f"of {person} is on hold, and is gone"
