"""How the command ends: exit codes, and one line for people instead of a traceback."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from letopis.store.faults import StoreFault

LONGEST_LINE: Final = 500
"""Characters of an error that are shown: what it quotes may come from a file of somebody else's."""


class Exit(IntEnum):
    """What the exit codes mean; part of the contract."""

    OK = 0
    FAILED = 1
    """It failed, or what was looked at is unhealthy."""
    USAGE = 2
    NOTHING = 3
    """Nothing matched."""
    LATER = 75
    """Temporary: the store or the outbox cannot be used now. sysexits.h: EX_TEMPFAIL."""
    CONFIGURATION = 78
    """Nothing will change until a person changes the configuration. sysexits.h: EX_CONFIG."""


class Ended(Exception):
    """The command ends here, with a code and, where there is something to say, one line on stderr."""

    def __init__(self, code: Exit, line: str = "") -> None:
        super().__init__(line)
        self.code = code


def run(command: click.Command, arguments: Sequence[str] | None = None) -> int:
    """Run ``command`` and return its exit code; nothing is raised, and a traceback is shown with ``--debug`` only."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        # Its context's exit() comes back as a number; a verb's own return value is of no interest.
        code = command.main(given, prog_name="letopis", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else Exit.OK
    except click.ClickException as error:
        # It may quote an argument, and that may hold anything. Click names the attribute final; its own code sets it.
        error.message = shown(error.message)  # type: ignore[misc]
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("letopis: interrupted", err=True)
        return 130
    except BrokenPipeError:
        # Who read us has seen enough. The interpreter would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except Exception as error:  # the end of the line: everything becomes one line and an exit code
        cause = _innermost(error)
        if _debugging(given):
            traceback.print_exception(error)
        code, line = explain(cause)
        if line:
            click.echo(f"letopis: {line}", err=True)
        return code


def explain(error: BaseException) -> tuple[Exit, str]:
    """Return the exit code that an error deserves, and the line that says what was wrong and what to do."""
    # Here and not above: a run that fails may take the time to import them, `--help` may not.
    from letopis.store.errors import (
        ConfigurationError,
        InvalidInput,
        LetopisError,
        OriginSuperseded,
        OutboxFull,
        OutboxUnavailable,
    )
    from letopis.store.faults import FaultClass, StoreFault

    if isinstance(error, Ended):
        return error.code, shown(str(error))
    if isinstance(error, StoreFault):
        if error.fault_class is FaultClass.MISCONFIGURED:
            return Exit.CONFIGURATION, shown(_about_the_store(error))
        return Exit.LATER, shown(f"{_about_the_store(error)}; nothing is lost, try again later")
    match error:
        case ConfigurationError() | OriginSuperseded():
            return Exit.CONFIGURATION, shown(str(error))
        case OutboxUnavailable() | OutboxFull():
            return Exit.LATER, shown(str(error))
        case InvalidInput():
            return Exit.USAGE, shown(str(error))
        case LetopisError():
            return Exit.FAILED, shown(str(error))
        case OSError():
            name = f" {error.filename!r}" if error.filename else ""
            return Exit.FAILED, shown(f"{error.strerror or type(error).__name__}{name}")
        case _:
            # Its text is not ours: a driver's may quote the data, or the URL.
            return Exit.FAILED, f"unexpected {type(error).__name__}: run it again with --debug, and please report it"


def _about_the_store(fault: StoreFault) -> str:
    said = str(fault)
    return said if said.startswith("the history store") else f"the history store: {said}"


def shown(text: str) -> str:
    """Return ``text`` on one line, safe for a terminal, and not longer than people read."""
    line = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}..."


def _debugging(arguments: Sequence[str]) -> bool:
    return "--debug" in arguments or os.environ.get("LETOPIS_DEBUG", "").lower() in ("1", "true", "yes", "on")


def _innermost(error: Exception) -> BaseException:
    """Return the error that a task group wrapped; where there are several, the first."""
    found: BaseException = error
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
