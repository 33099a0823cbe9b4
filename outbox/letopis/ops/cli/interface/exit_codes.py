"""Turn errors into exit codes and one line on stderr."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from letopis.store.database.faults import StoreFault

MAX_LINE_LENGTH: Final = 500  # characters of an error that are shown: what it quotes may come from any file


class Exit(IntEnum):
    """What the exit codes mean; part of the contract."""

    OK = 0
    FAILED = 1  # it failed, or what was checked is unhealthy
    USAGE = 2
    NOTHING = 3  # nothing matched
    LATER = 75  # Temporary: the store or the outbox cannot be used now. sysexits.h: EX_TEMPFAIL.
    CONFIGURATION = 78  # it will fail until an operator changes the configuration. sysexits.h: EX_CONFIG.


class _StoreInUse:
    """The history store that the command works on, without secrets, for the line that tells of its fault."""

    name: str | None = None


def name_store(name: str | None) -> None:
    """Note the name of the history store that the command works on, as it may be shown."""
    _StoreInUse.name = name


class CommandExit(Exception):
    """Ends the command with an exit code and, unless it is empty, one line on stderr."""

    def __init__(self, code: Exit, line: str = "") -> None:
        super().__init__(line)
        self.code = code


def run(command: click.Command, arguments: Sequence[str] | None = None) -> int:
    """Run ``command`` and return its exit code. Never raises; shows a traceback with ``--debug`` only."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    name_store(None)
    try:
        # The context's exit() comes back as a number; a verb's own return value is ignored.
        code = command.main(given, prog_name="letopis", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else Exit.OK
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.message)
        return Exit.OK
    except click.ClickException as error:
        # It may quote an argument, which may hold anything. Click names the attribute final; its own code sets it.
        error.message = one_line(error.message)  # type: ignore[misc]
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("letopis: interrupted", err=True)
        return 130
    except BrokenPipeError:
        # The reader closed the pipe. Without this the interpreter would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except Exception as error:  # the last handler: everything becomes one line and an exit code
        cause: BaseException = error
        while isinstance(cause, BaseExceptionGroup):  # of a task group; the first of several
            cause = cause.exceptions[0]
        if "--debug" in given or os.environ.get("LETOPIS_DEBUG", "").lower() in ("1", "true", "yes", "on"):
            traceback.print_exception(error)
        code, line = explain(cause)
        if line:
            click.echo(f"letopis: {line}", err=True)
        return code


def explain(error: BaseException) -> tuple[Exit, str]:
    """Return the exit code of an error, and the line that says what was wrong and what to do."""
    # Imported here: a run that fails may take the time, `--help` may not.
    from letopis.store.database.faults import DISK_FULL_CODE, FaultClass, StoreFault
    from letopis.store.errors import (
        ConfigurationError,
        InvalidInput,
        LetopisError,
        OriginSuperseded,
        OutboxFull,
        OutboxUnavailable,
        ReadTimeout,
        StoreUnavailable,
    )

    if isinstance(error, CommandExit):
        return error.code, one_line(str(error))
    if isinstance(error, StoreFault):
        lasting = error.fault_class in (FaultClass.MISCONFIGURED, FaultClass.WRONG_STORE)
        if lasting and error.code != DISK_FULL_CODE:
            return Exit.CONFIGURATION, one_line(_about_the_store(error))
        return Exit.LATER, one_line(f"{_about_the_store(error)}; nothing is lost, try again later")
    match error:
        case ConfigurationError() | OriginSuperseded():
            return Exit.CONFIGURATION, one_line(str(error))
        case OutboxUnavailable() | OutboxFull() | ReadTimeout() | StoreUnavailable():
            return Exit.LATER, one_line(str(error))
        case InvalidInput():
            return Exit.USAGE, one_line(str(error))
        case LetopisError():
            return Exit.FAILED, one_line(str(error))
        case OSError():
            name = f" {error.filename!r}" if error.filename else ""
            return Exit.FAILED, one_line(f"{error.strerror or type(error).__name__}{name}")
        case _:
            # Its text is not ours: a driver may quote data or the URL.
            return Exit.FAILED, f"unexpected {type(error).__name__}: run it again with --debug, and please report it"


def _about_the_store(fault: StoreFault) -> str:
    said = str(fault)
    if _StoreInUse.name is not None:
        return f"{_StoreInUse.name}: {said}"
    return said if said.startswith("the history store") else f"the history store: {said}"


def one_line(text: str) -> str:
    """Return ``text`` on one line, safe for a terminal, without a URL, truncated at 500 characters."""
    from letopis.store.errors import without_credentials

    text = without_credentials(text)
    line = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    return line if len(line) <= MAX_LINE_LENGTH else f"{line[:MAX_LINE_LENGTH]}..."
