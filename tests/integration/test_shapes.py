"""What speed rests on and no machine changes: statements per delivery, rows per read, threads and descriptors per file.

Pages per commit are counted in `tests/unit/outbox/event_log/test_event_ids.py`, how each statement of a read runs in
`tests/integration/test_store_reads.py`.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from benchmarks.backlogs import Backlog
from letopis.outbox import History
from letopis.store import Message
from letopis.store.read.lineage import Lineage
from letopis.store.read.paging import Window
from tests.support.resources import open_descriptors, own_threads
from tests.support.statements import statements_of

CONVERSATIONS = 8


ROWS_READ: Final = {
    "postgresql": "SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables",
    "mariadb": "SELECT sum(variable_value) FROM information_schema.session_status WHERE variable_name IN"
    " ('HANDLER_READ_KEY', 'HANDLER_READ_NEXT', 'HANDLER_READ_PREV', 'HANDLER_READ_RND_NEXT')",
}
"""How many rows this session has looked at, as its server counts them."""


async def test_a_delivery_takes_as_many_statements_for_many_events_as_for_few(store_url: str, tmp_path: Path) -> None:
    backlog = await Backlog.open(tmp_path / "bot.outbox.db", store_url)
    statements = []
    try:
        await backlog.owe(conversations=CONVERSATIONS, each=1, text="hello")  # registers the outbox
        await backlog.drain()
        for each in (1, 12):
            await backlog.owe(conversations=CONVERSATIONS, each=each, text="hello")
            with statements_of(backlog.store) as ran:
                assert (await backlog.drain())[0] == CONVERSATIONS * each
            statements.append(ran)
    finally:
        await backlog.close()

    few, many = statements
    assert len(many) <= len(few), "\n".join(
        text for text, _ in many
    )  # fewer where many rows are copied rather than inserted
    assert len(few) <= 30, "\n".join(text for text, _ in few)


@pytest.mark.parametrize("store_url", ["postgresql", "mariadb"], indirect=True)
async def test_read_of_a_long_conversation_looks_at_as_many_rows_as_of_a_short_one(
    store_url: str, tmp_path: Path
) -> None:
    backlog = await Backlog.open(tmp_path / "bot.outbox.db", store_url)
    asked = sa.text(ROWS_READ[backlog.store.url.get_backend_name()])

    async def rows_read(lineage: Lineage, connection: AsyncConnection) -> int:
        before = (await connection.execute(asked)).scalar_one()
        between = (await connection.execute(asked)).scalar_one()
        page = await lineage.reader.messages(connection, "chat-0", Window(last=50))
        after = (await connection.execute(asked)).scalar_one()
        assert len(page) == 50
        return int((after - between) - (between - before))  # without what the question itself costs

    found = []
    try:
        for more in (60, 600):
            await backlog.owe(conversations=1, each=more, text="hello")
            await backlog.drain()
            found.append(await backlog.store.outbox_access.snapshot(rows_read))
    finally:
        await backlog.close()
    short, long = found
    assert 50 <= short <= 51 * 4, found
    assert long == short, found


async def test_a_file_costs_few_threads_and_descriptors(tmp_path: Path) -> None:
    files = 6
    async with AsyncExitStack() as stack:
        for number in range(files + 1):
            history = await stack.enter_async_context(
                History(tmp_path / f"{number}.outbox.db", store=f"sqlite:///{tmp_path}/{number}.db", relay=False)
            )
            await history.append("chat", Message.user("hello"))
            if number == 0:  # what the process opens once
                threads, descriptors = own_threads(), open_descriptors()
        each_threads = (own_threads() - threads) / files
        each_descriptors = (open_descriptors() - descriptors) / files
    assert each_threads <= 3, each_threads
    assert each_descriptors <= 12, each_descriptors
