"""Obey lines of standard input with a history, and answer each with a line of JSON.

    python -P obeying.py OUTBOX STORE migrate|- relay|-

It imports nothing of the tests, so that the code of any release can run it.
"""

import asyncio
import json
import sys
from collections.abc import Mapping
from typing import Any


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


async def obey(history: Any, verbs: Mapping[str, Any] = {}) -> None:
    """Obey until no more lines come: ``say COUNT WORDS [CHAT]``, ``drain SECONDS``, and what ``verbs`` answer."""
    from letopis.store import Message

    while line := await asyncio.to_thread(sys.stdin.readline):
        what, *rest = line.split()
        try:
            if what == "say":
                acks = []
                for number in range(int(rest[0])):
                    name = rest[2] if rest[2:] else f"chat-{number % 5}"
                    receipt = await history.append(name, Message.user(f"{rest[1]} {number}"), owner="owner")
                    acks += [(name, str(one)) for one in receipt.event_ids]
                tell(acks=acks)
            elif what == "drain":
                tell(drained=await history.drained(float(rest[0])))
            else:
                tell(**await verbs[what]())
        except Exception as error:  # whoever asked judges it
            tell(error=f"{type(error).__name__}: {error}")


async def main(outbox: str, store: str, migrate: str, relay: str) -> None:
    import letopis.store
    from letopis.outbox import History

    if migrate == "migrate":
        async with letopis.store.ConversationStore.open(store, migrate=True):
            pass
    async with History(outbox, store=store, relay=relay == "relay") as history:
        tell(ready=letopis.store.__file__)
        await obey(history)


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:]))
    except Exception as error:  # whoever asked judges it
        tell(error=f"{type(error).__name__}: {error}")
        sys.exit(9)
