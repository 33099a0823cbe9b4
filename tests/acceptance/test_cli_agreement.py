"""status and outbox list tell one story, whatever state an outbox is in."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

import pytest

from letopis.outbox.cli.interface.render import code_first
from letopis.outbox.event_log.append_encoding import prepare
from letopis.outbox.file.outbox_file import OutboxFile
from letopis.store.model.messages import Message
from tests.support.sqlite_rows import change

pytestmark = pytest.mark.usefixtures("elsewhere")

FAULT: Final = "the event breaks a constraint of the history store (constraint letopis_events.approved) [poison 23514]"
RELAY: Final = (
    "INSERT INTO letopis_outbox_relay (only, incarnation, holder, pid, host, boot_id, started_at, heartbeat_at,"
    " progress_at, breaker, breaker_since, breaker_reason, delivered_total)"
    " VALUES (1, 1, 'bot', 1, 'elsewhere', '', 0, 9e15, 0, '{0}', 1, {1}, 0)"
)
RUNS: Final = RELAY.format("closed", "NULL")
STATES: Final = {
    "nothing": ["UPDATE letopis_outbox_lanes SET delivered = head, pending_since = NULL", RUNS],
    "pending": [RUNS],
    "no relay": [],
    "outage": [RELAY.format("open", "'unavailable disconnected'")],
    "misconfigured": [RELAY.format("open", "'misconfigured 42P01'")],
    "blocked": [RUNS, f"UPDATE letopis_outbox_lanes SET state = 'blocked', fault_class = 'poison', fault = '{FAULT}'"],
    "blocked in an outage": [
        RELAY.format("open", "'unavailable disconnected'"),
        "UPDATE letopis_outbox_lanes SET state = 'blocked', fault_class = 'poison' WHERE conversation_id = 'c0'",
    ],
    "retrying": [RUNS, "UPDATE letopis_outbox_lanes SET state = 'retrying', attempts = 1"],
    "paused": [RUNS, "UPDATE letopis_outbox_lanes SET state = 'paused'"],
    "lost": [
        RUNS,
        "DELETE FROM letopis_outbox_events",
        (
            "UPDATE letopis_outbox_lanes SET delivered = head, pruned = head, pending_since = NULL, state = 'blocked',"
            " fault_class = 'lost', fault = 'gone [lost]'"
        ),
    ],
}


@pytest.fixture
def outbox(elsewhere: None) -> None:
    """Two conversations with three events each, that wait."""

    async def fill() -> None:
        file = await OutboxFile.open("bot.outbox.db")
        for number in range(2):
            for text in ("one", "two"):
                await file.append(prepare(f"c{number}", [Message.user(text)]))
        await file.close()

    asyncio.run(fill())


@pytest.mark.usefixtures("outbox")
@pytest.mark.parametrize("state", STATES)
def test_they_never_contradict_each_other(state: str, letopis: Any) -> None:
    change("bot.outbox.db", *STATES[state])

    status = json.loads(letopis("status", "--json")[1])
    code, out, error = letopis("outbox", "list", "--json")
    text_code, table, text_error = letopis("outbox", "list")
    listed = json.loads(out)

    assert (code, text_code) == (0, 0)
    verdict = status["verdict"]
    stuck = {one["conversation_id"] for one in (*listed["events"], *listed["missing"])}
    of_lanes = sum(status["lanes"][name] for name in ("blocked", "retrying", "paused"))
    assert len(stuck) == of_lanes
    if stuck:
        assert "see `letopis outbox list`" in verdict
        assert "Everything is" not in verdict
        assert "being delivered" not in verdict
        assert all(name in table for name in stuck)
        assert (error, text_error) == ("", "")
    else:
        assert "outbox list`" not in verdict
        assert (table, text_error) == ("", f"no conversation is blocked, retrying or paused. {verdict}\n")
    assert status["healthy"] is (letopis("status", "--check")[0] == 0)
    assert letopis("status")[1].startswith(f"{verdict}\n")


@pytest.mark.usefixtures("outbox")
def test_what_is_lost_is_listed_although_its_event_is_nowhere(letopis: Any) -> None:
    change("bot.outbox.db", *STATES["lost"])

    listed = json.loads(letopis("outbox", "list", "--json")[1])
    table = letopis("outbox", "list")[1]

    assert listed["events"] == []
    assert [(one["conversation_id"], one["fault_class"]) for one in listed["missing"]] == [
        ("c0", "lost"),
        ("c1", "lost"),
    ]
    assert [line.split() for line in table.splitlines()[1:]] == [
        ["missing", name, "-", "-", "-", "blocked", "0", "-", "-", "lost:", "gone"] for name in ("c0", "c1")
    ]


@pytest.mark.usefixtures("outbox")
def test_the_code_of_a_fault_comes_first_and_nothing_is_cut_in_a_pipe(letopis: Any) -> None:
    change("bot.outbox.db", *STATES["blocked"])

    lines = letopis("outbox", "list")[1].splitlines()

    assert lines[0].endswith("FAULT")
    assert all(line.endswith(FAULT.removesuffix(" [poison 23514]")) for line in lines[1:])
    assert lines[1][lines[0].index("FAULT") :].startswith("poison 23514: the event breaks a constraint")


def test_a_fault_without_a_code_stays_as_it_is() -> None:
    assert code_first("it is gone") == "it is gone"
    assert code_first("it is gone [lost]") == "lost: it is gone"


@pytest.mark.usefixtures("outbox")
def test_filters_that_match_nothing_are_told_apart(letopis: Any) -> None:
    assert letopis("outbox", "list", "--state", "blocked")[0] == 3
    assert letopis("outbox", "list")[0] == 0
