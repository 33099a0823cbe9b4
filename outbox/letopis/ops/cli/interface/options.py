"""Define the options of every verb: which outbox, which store, which configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from click.core import ParameterSource

from letopis.ops.cli.interface.command import SharedOption, Verb
from letopis.ops.cli.interface.output import JSON

if TYPE_CHECKING:
    from letopis.ops.config.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

_META: Final = "letopis.ops.cli.interface.options"

_HELP: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "outbox": ("The outbox file. Default: bot.outbox.db.", {"type": click.Path(), "metavar": "PATH", "multiple": True}),
    "store": (
        (
            "The history store: postgresql://, mysql:// or sqlite:///, or the path of a SQLite file. "
            "LETOPIS_STORE_FILE names a file that holds it. Default: a SQLite file beside the outbox."
        ),
        {"metavar": "URL"},
    ),
    "config": (
        "The configuration file. Default: letopis.toml in the current folder, if it exists.",
        {"type": click.Path(), "metavar": "FILE"},
    ),
    "debug": ("Show tracebacks. They may quote messages.", {"is_flag": True}),
}


def with_options(function: F) -> F:
    """Give a verb ``--outbox``, ``--store``, ``--config`` and ``--debug``; :func:`settings` reads them."""
    for name, (text, kind) in reversed(_HELP.items()):
        function = click.option(
            f"--{name}",
            cls=SharedOption,
            envvar=f"LETOPIS_{name.upper()}",
            show_envvar=True,
            expose_value=False,
            callback=_keep,
            help=text,
            **kind,
        )(function)
    return function


def verb(
    *examples: str, group: click.Group | None = None, name: str | None = None, json: bool = False
) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function a verb with the options of every command, perhaps ``--json``, and examples below its help."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        own = getattr(function, "__click_params__", [])
        common = with_options(lambda: None)
        if json:
            common = JSON(common)
        # In reverse: click lists first the option that was added last.
        function.__click_params__ = [*common.__click_params__, *own]  # type: ignore[attr-defined]
        command = click.command(name=name, cls=Verb, examples=examples)(function)
        if group is not None:
            group.add_command(command)
        return command

    return decorate


def settings(*, several: bool = False) -> Settings:
    from letopis.ops.config.settings import load_settings

    outboxes = given_outboxes()
    if len(outboxes) > 1 and not several:
        raise click.UsageError("this command takes one --outbox: only `letopis relay` and `healthcheck` take several")
    given = _given(click.get_current_context())
    return load_settings(outbox=next(iter(outboxes), None), store=given.get("store"), config=given.get("config"))


def given_outboxes() -> tuple[str, ...]:
    """Return every ``--outbox`` of the command line; empty if there is none."""
    outboxes: tuple[str, ...] = _given(click.get_current_context()).get("outbox", ())
    return outboxes


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    # The environment is read by `load_settings`: here it would override an option that stands before the verb.
    name = parameter.name or ""
    if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
        _given(context)[name] = value


def _given(context: click.Context) -> dict[str, Any]:
    """Return the options of the command line; shared by a command and its group."""
    given: dict[str, Any] = context.meta.setdefault(_META, {})
    return given
