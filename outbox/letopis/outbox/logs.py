"""Logs: how a process of Letopis's own writes its records, as text for a person or as JSON for a machine.

The library itself adds nothing but a ``NullHandler``; only a command calls :func:`set_up`.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from letopis.store.errors import LetopisError

CONTEXT: Final = ("conversation_id", "owner_id", "message_id", "event_id")
"""The keys that say what a record is about, always under these names."""
LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")
FORMATS: Final = ("auto", "text", "json")
_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    """Return what the caller added to the record, context first."""
    values = {key: value for key, value in vars(record).items() if key not in _OWN and value is not None}
    return {key: values[key] for key in sorted(values, key=lambda key: (key not in CONTEXT, key))}


def escaped(value: object) -> str:
    """Return ``value`` as one printable ASCII word, so that a line feed or an escape in an id forges nothing."""
    text = str(value)
    return text if text.isascii() and text.isprintable() and " " not in text and text else ascii(text)


class TextFormatter(logging.Formatter):
    """One line a record: moment, level, message, then the context as ``key=value``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a traceback, where there is one, follows on lines of its own."""
        moment = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
        words = "".join(f" {key}={escaped(value)}" for key, value in _extra(record).items())
        # A message of ours quotes ids escaped; this is for those that are not ours.
        message = "".join(
            one if one.isprintable() else ascii(one)[1:-1] for one in " ".join(record.getMessage().split())
        )
        line = f"{moment}Z {record.levelname:<7} {message}{words}"
        return line if record.exc_info is None else f"{line}\n{places(record.exc_info[1])}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``message``, then the context."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object; a traceback, where there is one, is its ``exception``."""
        value: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info is not None:
            value["exception"] = places(record.exc_info[1])
        # ASCII, so that no direction mark or line separator in an id reaches a terminal or splits a line.
        return json.dumps(value, default=str)


def places(error: BaseException | None) -> str:
    """Return types and places of a failure, and our own messages; a driver's may quote a payload or a secret."""
    lines: list[str] = []
    while error is not None and len(lines) < 64:
        said = f": {error}" if isinstance(error, LetopisError) else ""
        lines.append(f"{type(error).__module__}.{type(error).__qualname__}{said}")
        trace = error.__traceback__
        while trace is not None and len(lines) < 64:
            code = trace.tb_frame.f_code
            lines.append(f"  {code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno} in {code.co_name}")
            trace = trace.tb_next
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(lines)


def set_up(*, level: str = "INFO", style: str = "auto", stream: TextIO | None = None) -> None:
    """Write the records of Letopis to ``stream`` (stderr): text on a terminal, else one-line JSON.

    Called again, it replaces what the last call set: that is how a reload changes the level. Only the ``letopis``
    logger is touched, never the root.

    :raises ValueError: level or style is not known.
    """
    if style not in FORMATS:
        raise ValueError(f"log format must be one of {', '.join(FORMATS)}")
    if level.upper() not in LEVELS:
        raise ValueError(f"log level must be one of {', '.join(LEVELS)}")
    target = sys.stderr if stream is None else stream
    text = target.isatty() if style == "auto" else style == "text"
    handler = logging.StreamHandler(target)
    handler.setFormatter(TextFormatter() if text else JsonFormatter())
    logger = logging.getLogger("letopis")
    for old in logger.handlers[:]:
        logger.removeHandler(old)
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False
