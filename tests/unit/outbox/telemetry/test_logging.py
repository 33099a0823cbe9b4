"""Log lines: one line per record, context under fixed names, nothing forged, nothing personal."""

import io
import json
import logging
from typing import Any

import pytest

from letopis.outbox.telemetry.logging import (
    MAX_REPEATS,
    REPEAT_PERIOD_SECONDS,
    JsonFormatter,
    RepeatFilter,
    TextFormatter,
    configure_logging,
)
from letopis.store.errors import OutboxUnavailable

HOSTILE = "chat\n2026-01-01 ERROR forged \x1b[31m‮"


def record(message: str = "said", **extra: object) -> logging.LogRecord:
    return logging.makeLogRecord(
        {"name": "letopis.outbox.relay", "levelno": 30, "levelname": "WARNING", "msg": message, **extra}
    )


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_a_hostile_id_stays_one_line_of_harmless_characters(formatter: logging.Formatter) -> None:
    line = formatter.format(record(conversation_id=HOSTILE))
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line
    if isinstance(formatter, JsonFormatter):
        value = json.loads(line)
        assert (value["conversation_id"], value["level"], value["message"]) == (HOSTILE, "WARNING", "said")


def test_context_comes_first_and_under_fixed_names() -> None:
    line = TextFormatter().format(record(attempts=2, event_id="e", conversation_id="c"))
    assert line.endswith("WARNING said conversation_id=c event_id=e attempts=2")


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_a_failure_shows_types_and_places_but_no_foreign_words(formatter: logging.Formatter) -> None:
    try:
        try:
            raise ValueError("DETAIL: Key (id)=(alice@example.org) postgresql://bot:hunter2@db/x")
        except ValueError as cause:
            raise OutboxUnavailable("the file is busy") from cause
    except OutboxUnavailable as error:
        line = formatter.format(record(exc_info=(type(error), error, error.__traceback__)))

    assert "the file is busy" in line and "builtins.ValueError" in line
    assert "alice" not in line and "hunter2" not in line


def test_setting_up_again_changes_the_level_and_doubles_nothing() -> None:
    stream = io.StringIO()
    configure_logging(level="ERROR", stream=stream)
    logging.getLogger("letopis.outbox.relay").info("quiet")
    configure_logging(level="INFO", stream=stream)
    logging.getLogger("letopis.outbox.relay").info("heard")

    lines = stream.getvalue().splitlines()
    assert [json.loads(line)["message"] for line in lines] == ["heard"]
    assert logging.getLogger("letopis").propagate is False


@pytest.mark.parametrize(("option", "says"), [({"level": "LOUD"}, "log level"), ({"style": "xml"}, "log format")])
def test_unknown_levels_and_formats_are_refused(option: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        configure_logging(**option)


def test_a_fault_that_repeats_is_told_now_and_then() -> None:
    now = 0.0
    repeats = RepeatFilter(monotonic=lambda: now)
    lines = 0
    for number in range(100_000):
        now = number / 1000
        lines += repeats.filter(record(f"cannot do it, next try in {number / 7:.1f} s"))
    assert lines == 2 * MAX_REPEATS  # 100 seconds

    after = record("cannot do it, next try in 1.0 s")
    now += REPEAT_PERIOD_SECONDS
    assert repeats.filter(after)
    assert after.getMessage().endswith("more like this were left out]")
    # A record about another conversation, or without a fault, is not part of it.
    assert all(repeats.filter(record("refused", conversation_id=f"c-{number}")) for number in range(100))
    assert all(repeats.filter(record("said", levelno=20)) for _ in range(100))


def test_the_command_writes_no_flood() -> None:
    target = io.StringIO()
    configure_logging(style="text", stream=target)
    for _ in range(10_000):
        logging.getLogger("letopis.outbox.relay").error("the relay met an error it does not know")
        logging.getLogger("asyncio").error("socket.accept() out of system resource")
    assert len(target.getvalue().splitlines()) == 2 * MAX_REPEATS
