"""The history: it opens without a store, answers without a store, and ends without waiting for one."""

import asyncio
import logging
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest

from letopis import ConfigurationError, ConversationStore, InvalidInput, Message, MessageAppended, RecordedMessage
from letopis.outbox import History, Incident, Relay, Rules
from letopis.outbox.alerting.monitor import AlertMonitor
from letopis.outbox.file.inspection import store_beside
from letopis.store import Saved
from tests.support.fix_outbox import READ_TIMEOUT_SECONDS
from tests.support.peers import refused_port
from tests.support.relays import until


def texts(page: Iterable[RecordedMessage]) -> list[str]:
    return [one.text for one in page]


@pytest.mark.parametrize("outbox", ["bot.outbox.db", "bot.db", "outbox.db", "bot"])
def test_the_store_lies_beside_the_outbox_by_default(tmp_path: Path, outbox: str) -> None:
    assert store_beside(tmp_path / outbox) == tmp_path / ("bot.history.db" if "bot" in outbox else "history.db")


@pytest.mark.parametrize("store", ["same.db", "link.db", "store"])
def test_outbox_and_store_must_be_two_files(tmp_path: Path, store: str) -> None:
    (tmp_path / "same.db").touch()
    (tmp_path / "link.db").symlink_to(tmp_path / "same.db")
    given: Any = tmp_path / store if store != "store" else ConversationStore(tmp_path / "same.db")
    with pytest.raises(ConfigurationError, match="same file"):
        History(tmp_path / "same.db", store=given)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"path": ":memory:"}, "local disk"),
        ({"store": "oracle://x"}, "oracle"),
        ({"on_stuck": "tell_user"}, "on_stuck must be a function"),
        ({"on_recovered": 7}, "on_recovered must be a function"),
        ({"on_unconfirmed": "me"}, "on_unconfirmed must be a function that takes a tuple"),
        ({"sender": "me"}, "sender"),
        ({"send_within": "a day"}, "send_within"),
        ({"send_within": 0}, "send_within"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_created(tmp_path: Path, wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises((ConfigurationError, InvalidInput), match=reason):
        History(**{"path": tmp_path / "bot.outbox.db", **wrong})
    assert list(tmp_path.iterdir()) == []


async def test_a_store_that_comes_back_gets_everything(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Down is a real thing here: the folder of the store's file is not there yet."""
    home = tmp_path / "volume"
    with caplog.at_level(logging.INFO, logger="letopis.outbox.history"):
        async with History(tmp_path / "bot.outbox.db", store=home / "history.db") as history:
            receipt = await history.append("c1", Message.user("hi"))
            assert not (await history.messages("c1")).complete
            assert not await receipt.saved(timeout=0.1)
            home.mkdir()

            async def complete() -> bool:
                return (await history.messages("c1")).complete

            assert await receipt.saved(timeout=60)
            await until(complete)
            assert [one.saved for one in await history.messages("c1")] == [Saved.SAVED]
    said = [record.message for record in caplog.records if record.name == "letopis.outbox.history"]
    assert sum("cannot be read" in line for line in said) <= 1, "said once, not with every read"


async def test_a_refused_port_delays_nothing_and_logs_no_secret(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    store = f"postgresql://u:hunter2@127.0.0.1:{await refused_port()}/x"
    async with History(tmp_path / "bot.outbox.db", store=store) as history:
        await history.append("c1", Message.user("words nobody may log"))
        started = time.monotonic()
        pages = [await history.messages("c1") for _ in range(20)]

        assert time.monotonic() - started < READ_TIMEOUT_SECONDS / 2
        assert all(texts(page) == ["words nobody may log"] for page in pages)
        events = await history.chat("c1").events()
        assert [event.type for event in events] == ["conversation.started", "message.appended"]
        assert not events.complete
        await asyncio.sleep(0.3)
    assert "hunter2" not in caplog.text
    assert "words nobody may log" not in caplog.text


async def test_a_relay_that_fails_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Relay.run
    runs: list[Relay] = []

    async def failing(self: Relay) -> None:
        runs.append(self)
        if len(runs) == 1:
            raise RuntimeError("a bug that quotes what was said")
        await run(self)

    monkeypatch.setattr(Relay, "run", failing)
    async with History(tmp_path / "bot.outbox.db") as history:
        receipt = await history.append("c1", Message.user("hi"))
        assert await receipt.saved(timeout=20)

    assert len(runs) == 2
    assert "the relay failed and is started again" in caplog.text
    assert "RuntimeError" in caplog.text
    assert "what was said" not in caplog.text


async def test_leaving_while_cancelled_still_closes(tmp_path: Path) -> None:
    before, entered = set(threading.enumerate()), asyncio.Event()

    async def bot() -> None:
        async with History(tmp_path / "bot.outbox.db") as history:
            await history.append("c1", Message.user("hi"))
            entered.set()
            await asyncio.sleep(60)

    task = asyncio.ensure_future(bot())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    new = set(threading.enumerate()) - before
    assert not [thread for thread in new if thread.name.startswith("letopis-outbox")]
    async with History(tmp_path / "bot.outbox.db") as history:
        assert texts(await history.messages("c1")) == ["hi"]


async def test_an_owner_is_text_or_a_number(history: History) -> None:
    wrong: Any = True
    await history.append("c1", Message.user("one"), owner=42)
    async with history.transaction() as tx:
        await tx.append("c1", Message.user("two"), owner="42")
    started = await history.start(42)

    assert (await history.active(42)).conversation_id == started.conversation_id
    assert {one.conversation_id for one in await history.conversations(owner=42)} == {"c1", started.conversation_id}
    assert [hit.message.text for hit in await history.search("two", owner=42)] == ["two"]
    assert (await history.statistics(owner=42)).messages == 2
    for refused in (history.append("c1", Message.user("x"), owner=wrong), history.active(wrong)):
        with pytest.raises(InvalidInput, match="owner: must be a string, not bool"):
            await refused


async def test_what_is_wrong_is_refused_by_name_and_nothing_is_written(history: History) -> None:
    message = Message.user("hi", id="m")
    assert await history.append("c1", message) == await history.append("c1", MessageAppended(message=message))
    wrong: Any = "hello"
    for call, reason in (
        (history.append("c1", wrong), r"append\(\) takes a Message: write Message.user\('hello'\)"),
        (history.append("c1", Message.user("hello"), timeout=wrong), "timeout"),
        (history.start(2**20_000), "owner: is a number of 20001 bits, the limit is 255"),
    ):
        with pytest.raises(InvalidInput, match=reason):
            await call
    assert len(await history.messages("c1")) == 1


async def test_messages_have_a_bound_unless_all_are_wanted(history: History) -> None:
    await history.append("c1", *(Message.user(str(number)) for number in range(120)))
    page = await history.messages("c1")
    assert texts(page) == [str(number) for number in range(70, 120)]
    assert texts(await history.messages("c1", before=page.next)) == [str(number) for number in range(20, 70)]
    assert texts(await history.messages("c1", first=2)) == ["0", "1"]
    assert len(await history.messages("c1", last=None)) == 120
    with pytest.raises(InvalidInput, match="first"):
        await history.messages("c1", last=3, first=2)


@pytest.mark.parametrize("watch", [True, False])
async def test_operators_and_users_are_told_unless_it_only_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: bool
) -> None:
    monkeypatch.setitem(AlertMonitor.__init__.__kwdefaults__, "interval", 0.1)
    told: list[Incident] = []
    channel = SimpleNamespace(name="operators", recipient="channel:operators", send=AsyncMock())
    options: dict[str, Any] = {
        "store": f"postgresql://bot@127.0.0.1:{await refused_port()}/h",
        "channels": [channel],
        "on_stuck": told.append,
        "rules": Rules(hold=0.2, stuck_after=0.2, resolve_after=0.2),
        "style": "failed",
        "locale": "ru",
    }
    async with History(tmp_path / "bot.outbox.db", watch=watch, **options) as history:
        await history.append("c1", Message.user("hi"), owner="42")
        await (until(lambda: told and channel.send.await_count) if watch else asyncio.sleep(1))
        assert bool((await history.status()).incidents) is watch
    assert [call.args[0].facts["kind"] for call in channel.send.await_args_list] == ["store_down"] * watch
    assert ["мультичата" in one.text() for one in told] == [True] * watch


async def test_an_address_that_is_no_channel_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="alert address") as caught:
        async with History(tmp_path / "bot.outbox.db", channels=["hunter2"]):
            pytest.fail("it opened")
    assert "hunter2" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
