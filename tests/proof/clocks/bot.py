"""Bots under a clock that is set: each does what it is told line by line, and tells what it was promised and heard."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
from datetime import timedelta
from typing import Any

from letopis.outbox import History, Incident, RetryPolicy
from letopis.outbox.clock import SECOND_US, Clock, Deadline, Waits
from letopis.outbox.incidents import Rules
from letopis.outbox.tail import Retention
from letopis.outbox.verbs import Selection, retry
from letopis.outbox.watch import Watch
from letopis.store import ConversationStore, Message
from letopis.store.engines import Timeouts

STUCK = 9.0
"""Seconds after which people are told; of these as many are counted as the bot has watched."""
RULES = Rules(hold=STUCK / 2, stuck_after=STUCK, resolve_after=1.0, longest_step=2.0)
POLICY = RetryPolicy(base=1.0, factor=2.0, jitter="none", attempts=3)


def by_the_wall_alone() -> None:
    """Take the promise away: every wait ends when the wall clock says so."""

    def remaining(self: Deadline, clock: Clock) -> float:
        return max(0.0, (self.wall_us - clock.now_us()) / SECOND_US)

    def of_a_lane(self: Waits, conversation_id: str, due_at_us: int) -> float:
        return max(0.0, (due_at_us - self._clock.now_us()) / SECOND_US)

    Deadline.remaining = remaining  # type: ignore[method-assign]
    Waits.remaining = of_a_lane  # type: ignore[method-assign]


def look_often() -> None:
    """Have the watch look twice a second, not every five, so that an outage of seconds is one."""
    assert Watch.__init__.__kwdefaults__ is not None
    Watch.__init__.__kwdefaults__["interval"] = 0.5


async def main(places: list[tuple[str, str]]) -> None:
    """Be one bot for each outbox and store, all under the one clock of this process."""
    loop = asyncio.get_running_loop()
    lines: list[asyncio.Queue[str]] = [asyncio.Queue() for _ in places]

    def listen() -> None:
        for line in sys.stdin:
            number, _, words = line.partition(" ")
            loop.call_soon_threadsafe(lines[int(number)].put_nowait, words)
        for one in lines:
            loop.call_soon_threadsafe(one.put_nowait, "end")

    threading.Thread(target=listen, daemon=True).start()
    async with asyncio.TaskGroup() as group:
        for number, (outbox, store) in enumerate(places):
            group.create_task(_bot(number, outbox, store, lines[number]))


async def _bot(number: int, outbox: str, store: str, lines: asyncio.Queue[str]) -> None:
    def answer(**what: Any) -> None:
        print(json.dumps({"bot": number, **what}), flush=True)

    stuck: list[str] = []
    recovered: list[str] = []

    async def on_stuck(incident: Incident) -> None:
        stuck.append(str(incident.owner_id))

    async def on_recovered(incident: Incident) -> None:
        recovered.append(str(incident.owner_id))

    keeping = ConversationStore(store, timeouts=Timeouts(connect=1.5, statement=3.0, lock=0.3))
    async with History.open(
        outbox,
        store=keeping,
        policy=POLICY,
        # Whatever is delivered and older than a minute may go at once: what is not delivered may never.
        retention=Retention(keep_last=0, keep_for=timedelta(minutes=1)),
        rules=RULES,
        on_stuck=on_stuck,
        on_recovered=on_recovered,
    ) as history:
        answer(ready=True)
        said = 0
        while (words := (await lines.get()).split())[0] != "end":
            match words[0]:
                case "say":
                    acks = []
                    for turn in range(int(words[1])):
                        name = words[2] if len(words) > 2 else f"chat-{turn % 3}"
                        said += 1
                        receipt = await history.append(name, Message.user(f"{said}"), owner="owner")
                        acks += [(name, str(one)) for one in receipt.event_ids]
                    answer(acks=acks)
                case "drain":
                    answer(drained=await history.drained(float(words[1])))
                case "retry":
                    await retry(history.outbox, Selection(states=("blocked",)))
                    answer(retried=True)
                case "alerts":
                    answer(stuck=stuck, recovered=recovered)
    await keeping.close()


if __name__ == "__main__":
    logging.disable()
    look_often()
    given = [word for word in sys.argv[1:] if word != "--wall"]
    if "--wall" in sys.argv:
        by_the_wall_alone()
    asyncio.run(main(list(zip(given[::2], given[1::2], strict=True))))
