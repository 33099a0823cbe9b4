"""``letopis doctor``: a line a check, with what to do."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Final

import click

from letopis.outbox.cli.exits import Ended, Exit, shown
from letopis.outbox.cli.options import settings, with_options
from letopis.outbox.cli.output import JSON, clean, fancy, note, print_json

if TYPE_CHECKING:
    from letopis.outbox.checks.finding import Finding

COLOURS: Final = {"ok": "green", "warn": "yellow", "fail": "red", "skip": None}


@click.command()
@JSON
@with_options
def doctor(as_json: bool) -> None:
    """Look for what is wrong with the configuration, the outbox, the relay and the history store.

    One line a check, with what to do. Creates and changes nothing. Exits with 1 if a check fails; a warning is no
    failure.
    """
    from letopis.outbox.checks.finding import fail
    from letopis.outbox.doctor import examine, healthy
    from letopis.store.errors import ConfigurationError

    try:
        found = settings()
    except ConfigurationError as error:
        findings = [fail("configuration", str(error), "correct it; everything else depends on it")]
        outbox = None
    else:
        outbox = found.outbox.name
        findings = asyncio.run(examine(found))
    well = healthy(findings)
    if as_json:
        checks = [
            {"check": one.check, "level": one.level, "said": one.said, "hint": one.hint or None} for one in findings
        ]
        print_json({"outbox": outbox, "healthy": well, "checks": checks})
    else:
        for one in findings:
            click.echo(_line(one))
    if not well:
        raise Ended(Exit.FAILED)
    if not as_json:
        note("nothing is wrong")


def _line(one: Finding) -> str:
    level = f"{one.level:<4}"
    if fancy(sys.stdout):
        level = click.style(level, fg=COLOURS[one.level], bold=one.level == "fail")
    said = shown(clean(one.said))
    return f"{level}  {one.check:<18} {said}" + (f" -> {shown(clean(one.hint))}" if one.hint else "")
