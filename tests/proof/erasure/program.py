"""Draw programs: lists of steps, each of which chooses by its numbers among what there is."""

from __future__ import annotations

import random
from typing import Final, NamedTuple

_OFTEN: Final = {
    0.3: "copy replace twin backup restore move",
    0.5: "rewind clear undo pop clear_records",
    1: "sent custom title note tag begin draft delete everywhere owner person hold release trim restart",
    2: "end edit react reply record redact reset",
    3: "fork",
    7: "drain",
    10: "say",
}
VERBS: Final = {verb: often for often, verbs in _OFTEN.items() for verb in verbs.split()}
KILLED_SHARE: Final = 0.04
LENGTH: Final = (12, 30)


class Step(NamedTuple):
    """What to do, numbers to choose by, and whether the process is killed meanwhile."""

    verb: str
    a: int
    b: int
    c: int
    killed: bool


PENDING: Final = 8  # chooses the first outbox, another author, and what is not large
FIRST_STEP: Final = Step("", 0, 0, 0, killed=False)


PLANTED: Final = "say edit react sent custom title note tag record reply"
"""A word in each kind of holder."""
CHOSEN: Final = {
    "redact": "redact",
    "reset": "reset",
    "delivered": "drain drain:1 reset drain",
    "delete": "delete",
    "everywhere": "everywhere",
    "owner": "owner",
    "person": "person",
    "records": "clear_records",
    "trim": "trim",
    "draft": "begin reset",
    "live": "begin everywhere:1 drain",
    "fork": "drain fork reset",
    "held": "reset hold drain",
    "spared": "owner drain hold drain:1",
    "refused": "hold everywhere",
    "restored": "drain backup owner drain restore",
}
"""Programs that plant words everywhere, and erase them in one way. The number after a verb is that of the outbox."""
NAMING: Final = ("say", "reply", "begin", "hold", "owner", "person", "record", "clear_records")
"""Verbs whose last number chooses an owner, a conversation to hold or to keep a record of, or a reset."""


def chosen(name: str) -> list[Step]:
    """Return a program that plants words of two outboxes in each kind of holder, delivered and pending, and erases."""
    delivered, pending = _steps(f"drain drain:1 {PLANTED} drain"), _steps(f"{PLANTED} say", a=PENDING)
    return [*delivered, *_steps(PLANTED, a=PENDING + 1), *pending, *_steps(CHOSEN[name]), *_steps("say say:1")]


def _steps(verbs: str, *, a: int = 0) -> list[Step]:
    """Return steps in the first conversation, about its first message."""
    pairs = [(verb, int(box or a)) for verb, _, box in (word.partition(":") for word in verbs.split())]
    return [Step(verb, box, 0, 1 if verb in NAMING else 0, killed=False) for verb, box in pairs]


def program(seed: int) -> list[Step]:
    chance, steps = random.Random(seed), list[Step]()
    for verb in chance.choices(list(VERBS), list(VERBS.values()), k=chance.randint(*LENGTH)):
        a, b, c = (chance.randrange(10_000) for _ in range(3))
        steps.append(Step(verb, a, b, c, killed=chance.random() < KILLED_SHARE))
    return steps
