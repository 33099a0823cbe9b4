"""Log lines: one line a record, context under fixed names, nothing forged, nothing personal."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from letopis.outbox.logs import JsonFormatter, TextFormatter, set_up
from letopis.store.errors import OutboxUnavailable

HOSTILE = "chat\n2026-01-01 ERROR forged \x1b[31m‮"


def record(message: str = "said", **extra: object) -> logging.LogRecord:
    return logging.makeLogRecord(
        {"name": "letopis.outbox.relay", "levelno": 30, "levelname": "WARNING", "msg": message, **extra}
    )


@pytest.fixture
def untouched() -> Iterator[None]:
    logger = logging.getLogger("letopis")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_a_hostile_id_stays_one_line_of_harmless_characters(formatter: logging.Formatter) -> None:
    line = formatter.format(record(conversation_id=HOSTILE))

    assert len(line.splitlines()) == 1
    assert "\x1b" not in line


def test_json_gives_the_id_back_as_it_was() -> None:
    value = json.loads(JsonFormatter().format(record(conversation_id=HOSTILE, attempts=3)))

    assert value["conversation_id"] == HOSTILE
    assert value["attempts"] == 3
    assert value["level"] == "WARNING"
    assert value["message"] == "said"


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

    assert "the file is busy" in line
    assert "builtins.ValueError" in line
    assert "alice" not in line
    assert "hunter2" not in line


@pytest.mark.usefixtures("untouched")
def test_setting_up_again_changes_the_level_and_doubles_nothing() -> None:
    stream = io.StringIO()
    set_up(level="ERROR", stream=stream)
    logging.getLogger("letopis.outbox.relay").info("quiet")
    set_up(level="INFO", stream=stream)
    logging.getLogger("letopis.outbox.relay").info("heard")

    lines = stream.getvalue().splitlines()
    assert [json.loads(line)["message"] for line in lines] == ["heard"]
    assert logging.getLogger("letopis").propagate is False


def test_unknown_levels_and_formats_are_refused() -> None:
    with pytest.raises(ValueError, match="log level"):
        set_up(level="LOUD")
    with pytest.raises(ValueError, match="log format"):
        set_up(style="xml")
