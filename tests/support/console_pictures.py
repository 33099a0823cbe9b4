"""Take the pictures of the console for the documentation: ``python -m tests.support.console_pictures [folder]``."""

import asyncio
import math
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from letopis.outbox import History, RetryPolicy
from letopis.store.database.engines import create_store_engine
from tests.support.console import DESK, PHONE, House, Tab, chromium
from tests.support.console_story import block, chat, eventful, refuse, until
from tests.support.paths import ROOT
from tests.support.servers import PostgresServer
from tests.support.servers.store_pool import migrate

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
    now_us = round(datetime.now(UTC).timestamp() * 1_000_000)
    engine = create_store_engine(store, pool_size=1)
    async with engine.begin() as connection:
        positions = (
            await connection.execute(sa.text("SELECT position FROM letopis_events ORDER BY position"))
        ).scalars()
        moments = over_the_hour(list(positions), now_us)
        await connection.execute(
            sa.text("UPDATE letopis_events SET recorded_at = :moment WHERE position = :at"), moments
        )
    await engine.dispose()

    def update(connection: sa.Connection) -> None:
        found = connection.exec_driver_sql("SELECT position FROM letopis_outbox_events ORDER BY position").scalars()
        connection.exec_driver_sql(
            "UPDATE letopis_outbox_events SET appended_at = :moment WHERE position = :at",
            over_the_hour(list(found), now_us),
        )

    await history.outbox.write(update)


def over_the_hour(positions: list[int], now_us: int) -> list[dict[str, int]]:
    """Return a moment for each position: in waves, as people write."""
    shares = [position / max(positions) for position in positions]
    past = [1 - share + (1 - math.sin(40 * share)) / 60 for share in shares]
    return [{"at": at, "moment": now_us - round(3_600e6 * hours)} for at, hours in zip(positions, past, strict=True)]


def main(folder: Path) -> None:
    """Take the pictures."""
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
            house.run(until(lambda: _counted(state)))
            for look, options in LOOKS.items():
                with Tab(browser, house, locale="en-GB", **options) as tab:
                    tab.sign_in()
                    for name, page in SHOTS:
                        tab.go(page)
                        if name == "conversation":
                            tab.page.evaluate("document.querySelector('.travel').scrollIntoView({block: 'end'})")
                        _take(tab, folder / f"{name}-{look}.png")


async def _counted(state: Any) -> bool:
    return bool((await state.figures.look()).done)


def _take(tab: Tab, path: Path) -> None:
    tab.page.screenshot(path=str(path), animations="disabled")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise SystemExit(f"{path.name} has {size} bytes, and {MAX_BYTES} are the limit")
    print(f"{path.name}: {size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
