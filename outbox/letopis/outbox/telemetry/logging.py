"""Format the log records of Letopis' own processes, as text or as JSON, and limit those that repeat.

The library itself adds nothing but a ``NullHandler``; only a command calls :func:`configure_logging`.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from letopis.store.errors import LetopisError

CONTEXT_KEYS: Final = ("conversation_id", "owner_id", "message_id", "event_id")
"""The keys of what a record is about, always under these names."""
LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")
FORMATS: Final = ("auto", "text", "json")
MAX_REPEATS: Final = 5  # similar records written within REPEAT_PERIOD_SECONDS; further ones are counted
REPEAT_PERIOD_SECONDS: Final = 60.0
_MAX_KINDS: Final = 1_000  # kinds of records that are remembered
_MAX_TRACE_LINES: Final = 64
_NUMBERS: Final = re.compile(r"\d+(?:[.:]\d+)*")
_RECORD_ATTRIBUTES: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class TextFormatter(logging.Formatter):
    """One line a record: time, level, message, then the context as ``key=value``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a traceback follows on lines of its own."""
        moment = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
        words = "".join(f" {key}={escape(value)}" for key, value in _extra(record).items())
        # Our own messages quote ids escaped; those of other libraries may not.
        message = "".join(
            character if character.isprintable() else ascii(character)[1:-1]
            for character in " ".join(record.getMessage().split())
        )
        line = f"{moment}Z {record.levelname:<7} {message}{words}"
        return line if record.exc_info is None else f"{line}\n{describe_failure(record.exc_info[1])}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``message``, then the context."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object; a traceback is its ``exception``."""
        value: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info is not None:
            value["exception"] = describe_failure(record.exc_info[1])
        # ASCII, so that no direction mark or line separator in an id reaches a terminal or splits a line.
        return json.dumps(value, default=str)


class RepeatFilter(logging.Filter):
    """Passes the first few of similar warnings and errors, and says with the next how many were left out.

    Similar are records of one logger and level that differ only in numbers and are about the same conversation. The
    commands add it to their handler; a bot may add it to its own.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._kinds: dict[tuple[object, ...], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True if the record is to be written; its message then counts what was left out before it."""
        if record.levelno < logging.WARNING:
            return True
        message = record.getMessage()
        about = tuple(getattr(record, name, None) for name in ("conversation_id", "message_id"))
        kind = (record.name, record.levelno, _NUMBERS.sub("#", message[:500]), *about)
        now = self._monotonic()
        with self._lock:
            began, seen = self._kinds.get(kind, (now, 0))
            left_out = 0
            if now - began >= REPEAT_PERIOD_SECONDS:
                left_out = max(seen - MAX_REPEATS, 0)
                began, seen = now, 0
            if kind not in self._kinds and len(self._kinds) >= _MAX_KINDS:
                self._kinds.clear()
            self._kinds[kind] = (began, seen + 1)
        if seen >= MAX_REPEATS:
            return False
        if left_out:
            record.msg, record.args = f"{message} [{left_out} more like this were left out]", ()
        return True


def configure_logging(*, level: str = "INFO", style: str = "auto", stream: TextIO | None = None) -> None:
    """Write the records of Letopis, and of asyncio, to ``stream`` (stderr); a later call replaces an earlier one."""
    if style not in FORMATS:
        raise ValueError(f"log format must be one of {', '.join(FORMATS)}")
    if level.upper() not in LEVELS:
        raise ValueError(f"log level must be one of {', '.join(LEVELS)}")
    target = sys.stderr if stream is None else stream
    text = target.isatty() if style == "auto" else style == "text"
    handler = logging.StreamHandler(target)
    handler.setFormatter(TextFormatter() if text else JsonFormatter())
    handler.addFilter(RepeatFilter())
    logger = logging.getLogger("letopis")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
    # The event loop's records, for example that no file can be opened, would otherwise reach stderr unformatted.
    loops = logging.getLogger("asyncio")
    loops.handlers[:] = [handler]
    loops.propagate = False


def escape(value: object) -> str:
    """Return ``value`` as one printable ASCII word, so that a line feed or an escape in an id forges nothing."""
    text = str(value)
    return text if text.isascii() and text.isprintable() and " " not in text and text else ascii(text)


def describe_failure(error: BaseException | None) -> str:
    """Return the types and places of a failure, and our own messages; a driver's may quote a payload or a secret."""
    lines: list[str] = []
    while error is not None and len(lines) < _MAX_TRACE_LINES:
        message = f": {error}" if isinstance(error, LetopisError) else ""
        lines.append(f"{type(error).__module__}.{type(error).__qualname__}{message}")
        trace = error.__traceback__
        while trace is not None and len(lines) < _MAX_TRACE_LINES:
            code = trace.tb_frame.f_code
            lines.append(f"  {code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno} in {code.co_name}")
            trace = trace.tb_next
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(lines)


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    """Return what the caller added to the record, context first."""
    values = {k: value for k, value in vars(record).items() if k not in _RECORD_ATTRIBUTES and value is not None}
    return {key: values[key] for key in sorted(values, key=lambda key: (key not in CONTEXT_KEYS, key))}
