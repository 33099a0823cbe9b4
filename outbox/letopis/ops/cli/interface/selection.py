"""Select the events a verb works on, and confirm changes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID

import click

from letopis.ops.cli.interface.exit_codes import CommandExit, Exit

if TYPE_CHECKING:
    from letopis.outbox.file.outbox_file import OutboxFile
    from letopis.outbox.operations.admin import OutboxAdmin
    from letopis.outbox.operations.pending_events import Selection

F = TypeVar("F", bound=Callable[..., Any])

STATES: Final = ("ready", "retrying", "blocked", "paused")


class EventId(click.ParamType[UUID]):
    """The id of an event, as `letopis outbox list` prints it."""

    name = "event id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> UUID:
        try:
            return value if isinstance(value, UUID) else UUID(str(value))
        except ValueError:
            self.fail(
                f"{str(value)[:60]!a} is not the id of an event, as `letopis outbox list` prints it."
                " For the events of a conversation, give --conversation ID.",
                param,
                ctx,
            )


YES = click.option("--yes", is_flag=True, help="Skip confirmation (required when stdin is not a terminal).")
"""The option of every verb that changes the history."""

_KEPT: Final = "letopis.ops.cli.interface.selection"


def with_selection(*, whole: bool = True) -> Callable[[F], F]:
    """Give a verb the options that select events: by id, conversation, state, fault class, or all."""
    kept: dict[str, Any] = {"expose_value": False, "callback": _keep}
    several = partial(click.option, multiple=True, **kept)
    fault_help = "Events of conversations with this fault class (poison, diverged, lost ...); may be repeated."
    state_help = "Events of conversations in this state; may be repeated."
    options: list[Callable[[F], F]] = [
        click.argument("events", metavar="[EVENT_ID]...", nargs=-1, type=EventId(), **kept),
        several("--conversation", "conversations", metavar="ID", help="Events of this conversation; may be repeated."),
        several("--state", "states", type=click.Choice(STATES), help=state_help),
        several("--fault-class", "fault_classes", metavar="CLASS", help=fault_help),
    ]
    if whole:
        options.append(click.option("--all", "whole", is_flag=True, help="All pending events.", **kept))

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def has_selection() -> bool:
    return any(_kept().values())


def current_selection(*, fronts: bool = False) -> Selection:
    """Return the selection of the running command; everything if there is none."""
    from letopis.outbox.operations.pending_events import Selection
    from letopis.store.model.identifiers import check_identifier

    kept = _kept()
    events: tuple[UUID, ...] = kept.get("events", ())
    return Selection(
        event_ids=events,
        conversation_ids=kept.get("conversations", ()),
        states=kept.get("states", ()),
        fault_classes=tuple(check_identifier(name, "--fault-class") for name in kept.get("fault_classes", ())),
        fronts=fronts and not events,
    )


def required_selection(*, fronts: bool = False) -> Selection:
    """Return :func:`current_selection`; refuse a command line that selects nothing."""
    if not has_selection():
        options = "event ids, --conversation, --state, --fault-class"
        raise click.UsageError(f"Select events: {options}{', or --all' if 'whole' in _kept() else ''}.")
    return current_selection(fronts=fronts)


def confirm(question: str, *, yes: bool) -> None:
    """Ask at the terminal whether to continue, unless ``--yes`` was given."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandExit(Exit.USAGE, "confirmation is required and stdin is not a terminal: give --yes")
    if not click.confirm(question, err=True):
        raise CommandExit(Exit.FAILED, "nothing was changed")


def current_user() -> str | None:
    """Return the name of the user who runs the command, for the record; ``None`` if the system knows none."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user without an entry; Windows without its variables
        return None


def as_operator(file: OutboxFile) -> OutboxAdmin:
    """Return what an operator can do to an outbox, in the name of the user who runs the command."""
    from letopis.outbox.operations.admin import OutboxAdmin

    return OutboxAdmin(file, by=current_user(), via="command")


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    context.meta.setdefault(_KEPT, {})[parameter.name] = value


def _kept() -> dict[str, Any]:
    kept: dict[str, Any] = click.get_current_context().meta.get(_KEPT, {})
    return kept
