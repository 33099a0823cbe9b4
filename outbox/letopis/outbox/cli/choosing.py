"""Which events a verb is about, and whether whoever typed it means it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID

import click

from letopis.outbox.cli.exits import Ended, Exit

if TYPE_CHECKING:
    from letopis.outbox.repair import Selection

F = TypeVar("F", bound=Callable[..., Any])

STATES: Final = ("ready", "retrying", "blocked", "paused")

YES = click.option("--yes", is_flag=True, help="Do not ask; needed where nobody can be asked.")
"""The option of every verb that changes what the history will hold."""

_KEPT: Final = "letopis.outbox.cli.choosing"


def choosing(*, whole: bool = True) -> Callable[[F], F]:
    """Give a verb its ways to say which events: by id, conversation, state, fault class, or all.

    :param whole: whether ``--all`` is one of them. :func:`chosen` reads what was said.
    """

    def decorate(function: F) -> F:
        options = [
            click.argument(
                "events", metavar="[EVENT_ID]...", nargs=-1, type=click.UUID, expose_value=False, callback=_keep
            ),
            click.option(
                "--conversation",
                "conversations",
                metavar="ID",
                multiple=True,
                expose_value=False,
                callback=_keep,
                help="Those of this conversation; may be repeated.",
            ),
            click.option(
                "--state",
                "states",
                type=click.Choice(STATES),
                multiple=True,
                expose_value=False,
                callback=_keep,
                help="Those of conversations in this state; may be repeated.",
            ),
            click.option(
                "--fault-class",
                "fault_classes",
                metavar="CLASS",
                multiple=True,
                expose_value=False,
                callback=_keep,
                help="Those of conversations with this class of fault (poison, diverged, lost ...); may be repeated.",
            ),
        ]
        if whole:
            options.append(
                click.option("--all", "whole", is_flag=True, expose_value=False, callback=_keep, help="All of them.")
            )
        for one in reversed(options):
            function = one(function)
        return function

    return decorate


def said_which() -> bool:
    """Return whether the command line says which events it is about."""
    return any(_kept().values())


def chosen(*, fronts: bool = False) -> Selection:
    """Return what the running command is about; everything where nothing was said.

    :param fronts: of conversations, states and fault classes only the event that the others wait for.
    """
    from letopis.outbox.repair import Selection

    kept = _kept()
    events: tuple[UUID, ...] = kept.get("events", ())
    return Selection(
        event_ids=events,
        conversation_ids=kept.get("conversations", ()),
        states=kept.get("states", ()),
        fault_classes=kept.get("fault_classes", ()),
        fronts=fronts and not events,
    )


def named() -> Selection:
    """Return what the running command is about, which has to be said.

    :raises click.UsageError: nothing was said.
    """
    _must_say()
    return chosen()


def named_fronts() -> Selection:
    """Return as :func:`named`, of conversations only the event that the others wait for."""
    _must_say()
    return chosen(fronts=True)


def ask(question: str, *, yes: bool) -> None:
    """Go on only if whoever sits at the terminal says so, or said so before with ``--yes``.

    :raises Ended: nobody can be asked, or the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise Ended(Exit.USAGE, "nobody can be asked here: give --yes")
    if not click.confirm(question, err=True):
        raise Ended(Exit.FAILED, "nothing was changed")


def whoever() -> str | None:
    """Return the name of the user who runs the command, for the record; ``None`` where the system knows none."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user without an entry; Windows without its variables
        return None


def _must_say() -> None:
    if not said_which():
        raise click.UsageError(
            "Say which: event ids, --conversation, --state, --fault-class"
            + (", or --all." if "whole" in _kept() else ".")
        )


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    context.meta.setdefault(_KEPT, {})[parameter.name] = value


def _kept() -> dict[str, Any]:
    kept: dict[str, Any] = click.get_current_context().meta.get(_KEPT, {})
    return kept
