"""Draw one seed's plan: how many bots, outboxes and relays, for how long, and what breaks."""

import random
from dataclasses import dataclass
from typing import Final, Literal

Profile = Literal["storm", "outage", "quiet", "stuck", "stopped"]

PROFILES: Final[tuple[Profile, ...]] = (
    "storm",
    "outage",
    "storm",
    "quiet",
    "storm",
    "outage",
    "storm",
    "stuck",
    "storm",
    "stopped",
)
"""In turn, by the number of the seed.

``storm``: everything at once. ``outage``: the store is unavailable for hours, the clock is set meanwhile. ``quiet``:
many outages of the store, each too short for an alert. ``stuck``: one event is refused until an operator sees to it.
``stopped``: the relay at work is stopped in the middle for longer than the others wait for its heartbeat.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One seed.

    :ivar span: virtual seconds until the faults stop.
    :ivar outboxes: files; ``bots`` write each of them; ``relays`` deliver each of them beside those of the bots.
    :ivar embedded: whether the bots have relays of their own.
    :ivar pause: seconds between two things that one talker does, on average.
    :ivar floor, standby, fastest, slowest, look: how often relays and watches look without being woken; knobs of the
        library, in seconds.
    """

    seed: int
    profile: Profile
    span: float
    outboxes: int
    bots: int
    relays: int
    embedded: bool
    talkers: int
    conversations: int
    pause: float
    keep_last: int
    keep_for: float
    floor: float
    standby: float
    fastest: float
    slowest: float
    look: float


def plan_of(seed: int, *, profile: Profile | None = None, scale: float = 1.0) -> Plan:
    chance = random.Random(f"plan {seed}")
    profile = PROFILES[seed % len(PROFILES)] if profile is None else profile
    storm, outage = profile == "storm", profile == "outage"
    span = chance.uniform(8_000, 12_000) if outage else chance.uniform(1_500, 1_900)
    if storm:
        span = chance.uniform(120, 260)
    if profile == "stopped":
        span = chance.uniform(1_200, 1_800)
    embedded = chance.random() < 0.6 and profile != "stopped"
    return Plan(
        seed=seed,
        profile=profile,
        span=span * scale,
        outboxes=chance.choice((1, 1, 2)) if storm else 1,
        bots=chance.choice((1, 2)) if storm else 1,
        relays=2 if profile == "stopped" else chance.choice((0, 1, 1)) if embedded else chance.choice((1, 2)),
        embedded=embedded,
        talkers=chance.choice((1, 2)),
        conversations=chance.choice((2, 3, 5)),
        pause=chance.uniform(150, 300)
        if outage
        else chance.uniform(6, 20)
        if profile == "stopped"
        else chance.uniform(2, 5)
        if storm
        else chance.uniform(20, 60),
        keep_last=chance.choice((8, 20)),
        keep_for=chance.choice((0.0, 60.0)),
        floor=chance.choice((2.0, 5.0)) if storm else chance.choice((10.0, 20.0)),
        standby=chance.choice((1.0, 3.0)) if storm else 5.0 if profile == "stopped" else 10.0,
        fastest=chance.choice((0.1, 0.5)) if storm else 4.0,
        slowest=0.5 if storm else 5.0,
        look=20.0 if outage else 5.0,
    )
