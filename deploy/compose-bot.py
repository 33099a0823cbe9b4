"""Say something every five seconds, as a bot would; the relay delivers it. Argument: the outbox file."""

import asyncio
import sys
from datetime import UTC, datetime

from letopis import History, Message


async def main(path: str) -> None:
    async with History(path, relay=False) as history:
        while True:
            receipt = await history.append("clock", Message.assistant(f"It is {datetime.now(UTC):%H:%M:%S}."))
            print("appended", receipt.sequence, flush=True)  # noqa: T201
            await asyncio.sleep(5)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
