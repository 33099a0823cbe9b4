"""``letopis doctor``: print one line per check, with what to do."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Final

import click

from letopis.outbox.cli.interface.command import Verb
from letopis.outbox.cli.interface.exit_codes import CommandExit, Exit, one_line
from letopis.outbox.cli.interface.options import settings, with_options
from letopis.outbox.cli.interface.output import JSON, emit, note, printable, supports_style, wants_json

if TYPE_CHECKING:
    from letopis.outbox.diagnostics.finding import Finding

COLOURS: Final = {"ok": "green", "warn": "yellow", "fail": "red", "skip": None}


@click.command(
    cls=Verb,
    examples=(
        "letopis doctor",
        """letopis doctor --json | jq '.checks[] | select(.level == "fail")'""",
    ),
)
@JSON
@with_options
def doctor() -> None:
    """Diagnose problems and suggest fixes: in the configuration, the outbox, the relay and the history store.

    One line per check. Creates and changes nothing. Exits with 1 if a check fails; a warning is not a failure.
    """
    from letopis.outbox.diagnostics.doctor import examine, healthy
    from letopis.outbox.diagnostics.finding import fail
    from letopis.store.errors import ConfigurationError

    try:
        found = settings()
    except ConfigurationError as error:
        findings = [fail("configuration", str(error), "correct it: all other checks depend on it")]
        outbox = None
    else:
        outbox = found.outbox.name
        findings = asyncio.run(examine(found))
    well = healthy(findings)
    checks = [{"check": one.check, "level": one.level, "said": one.said, "hint": one.hint or None} for one in findings]
    emit({"outbox": outbox, "healthy": well, "checks": checks}, text="\n".join(map(_line, findings)))
    if not well:
        raise CommandExit(Exit.FAILED)
    if not wants_json():
        note("nothing is wrong")


def _line(one: Finding) -> str:
    level = f"{one.level:<4}"
    if supports_style(sys.stdout):
        level = click.style(level, fg=COLOURS[one.level], bold=one.level == "fail")
    said = one_line(printable(one.said))
    return f"{level}  {one.check:<18} {said}" + (f" -> {one_line(printable(one.hint))}" if one.hint else "")
