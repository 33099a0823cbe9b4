"""Take the pictures of the console for the documentation: ``python -m tests.support.console_pictures [folder]``."""

import asyncio
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from letopis.outbox import History, RetryPolicy
from tests.support.console import DESK, PHONE, House, Tab, chromium
from tests.support.console_story import block, chat, eventful, refuse
from tests.support.paths import ROOT
from tests.support.servers import PostgresServer
from tests.support.servers.store_pool import migrate
from tests.support.store_changes import run_there

FOLDER: Final = ROOT / "docs" / "_static" / "console"
MAX_BYTES: Final = 200_000
SHOTS: Final = (
    ("overview", "?live=off"),
    ("stuck", "stuck"),
    ("conversation", "conversation?id=tea&every=1"),
    ("conversations", "conversations"),
    ("statistics", "statistics?days=30"),
    ("integrity", "integrity"),
)
LOOKS: Final[dict[str, dict[str, Any]]] = {
    "light": {"viewport": DESK, "color_scheme": "light"},
    "dark": {"viewport": DESK, "color_scheme": "dark"},
    "phone": {"viewport": PHONE, "color_scheme": "light", "device_scale_factor": 2},
}


async def fill(history: History) -> None:
    """Have a month of conversations, the last one of them an hour ago."""
    now = datetime.now(UTC)
    for day in range(30):
        for number in range(3 + (day * 7) % 5):
            name = f"chat-{day:02}-{number}"
            began = now - timedelta(days=29 - day, hours=number + 1)
            model = ("large", "small")[(day + number) % 2]
            await chat(history, name, owner=str(40 + number), title=None, began=began, turns=1 + number, model=model)
    await eventful(history, owner="42", began=now - timedelta(hours=1))


async def spread(store: str, history: History) -> None:
    """Have what was just written look as if it had come over the last hour, for the chart."""
    earlier = "UPDATE {0} SET {1} = {1} - 3600000000 + position * 3600000000 / (SELECT max(position) FROM {0})"
    await run_there(store, earlier.format("letopis_events", "recorded_at"))
    outbox = earlier.format("letopis_outbox_events", "appended_at")
    await history.outbox.write(lambda connection: connection.exec_driver_sql(outbox) and None)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place, PostgresServer.find() as server, ExitStack() as stack:
        path, store = Path(place) / "bot.outbox.db", server.create_database("history")
        stack.callback(server.drop_database, store)
        asyncio.run(migrate(store))  # before Playwright has its loop run in this thread
        policy = RetryPolicy(base=0.02, cap=0.02, attempts=1)
        with chromium() as browser, House(path, store=store, policy=policy) as house:
            house.run(fill(house.history))
            house.run(house.history.drained(60))
            house.run(spread(store, house.history))
            house.run(refuse(store))
            house.run(block(house.history, ["chat-27-1", "chat-28-1"], owner="41"))
            state = house.application.state.console
            while not house.run(state.figures.look()).done:
                time.sleep(0.1)
            for look, options in LOOKS.items():
                with Tab(browser, house, locale="en-GB", **options) as tab:
                    tab.sign_in()
                    for name, page in SHOTS:
                        tab.go(page)
                        if name == "conversation":
                            tab.page.evaluate("document.querySelector('.travel').scrollIntoView({block: 'end'})")
                        picture = tab.page.screenshot(path=folder / f"{name}-{look}.png", animations="disabled")
                        print(f"{name}-{look}.png: {len(picture):,} bytes")
                        assert len(picture) <= MAX_BYTES


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
