"""Parse and render times as RFC 3339 text, exact to the microsecond."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from letopis.store.errors import InvalidInput

_RFC3339: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,6})0*)?(?:[Zz]|([+-]\d\d:\d\d))", re.ASCII
)


def parse_timestamp(value: object, field: str) -> datetime:
    """Return the time that RFC 3339 text names, in UTC."""
    if not isinstance(value, str):
        raise InvalidInput(field, f"must be a time as text, like 2026-01-31T12:00:00Z, not {type(value).__name__}")
    match = _RFC3339.fullmatch(value)
    if match is None:
        raise InvalidInput(field, _what_is_wrong(value))
    day, clock, fraction, offset = match.groups()
    try:
        return datetime.fromisoformat(
            f"{day}T{clock}.{(fraction or '0').ljust(6, '0')}{offset or '+00:00'}"
        ).astimezone(UTC)
    except (ValueError, OverflowError) as error:  # the 30th of February; the year 0; a leap second
        raise InvalidInput(field, "names no day and time that exists") from error


def render_timestamp(time: datetime) -> str:
    """Return RFC 3339 text of an aware time in UTC, with a fraction if there is one."""
    return time.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"


def _what_is_wrong(value: str) -> str:
    if re.fullmatch(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d\.\d{7,}(?:[Zz]|[+-]\d\d:\d\d)", value, re.ASCII):
        return "is finer than a microsecond: round it first"
    if re.fullmatch(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?", value, re.ASCII):
        return "has no offset from UTC: write Z, or +03:00, at its end"
    return "is no RFC 3339 time: write it like 2026-01-31T12:00:00Z"
